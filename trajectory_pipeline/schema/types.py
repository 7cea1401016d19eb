"""The small type language that every column of the project is declared in.

Belongs here: types and the ``Column`` record. Does not belong here: any column (those are in the modules beside this
one), and any library that columns are turned into types of: ``arrow`` and ``sql`` do that, so that declaring a
column costs no heavy import.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class Scalar(Enum):
    """A type without parts."""

    STRING = "string"
    INT = "int64"
    FLOAT = "float64"
    BOOL = "bool"
    TIMESTAMP = "timestamp"
    """Microseconds, UTC."""
    NAIVE_TIMESTAMP = "naive timestamp"
    """Microseconds without a zone, only where the source stores it so (Letta's ``completed_at``: UTC by convention)."""
    MONEY = "decimal(18, 9)"
    """US dollars."""
    JSON = "json"
    """JSON text: a string in Parquet (Arrow structs would merge keys across rows), ``jsonb`` in Postgres."""


@dataclass(frozen=True)
class ListOf:
    """Any number of one type, in order; never null inside a trajectory, possibly empty."""

    item: "Type"


@dataclass(frozen=True)
class Struct:
    """Named parts."""

    fields: tuple["Column", ...]

    def __getitem__(self, name: str) -> "Column":
        """Return the field of that name.

        Raises:
            KeyError: there is none.
        """
        for column in self.fields:
            if column.name == name:
                return column
        raise KeyError(name)


Type = Scalar | ListOf | Struct

STRING: Final = Scalar.STRING
INT: Final = Scalar.INT
FLOAT: Final = Scalar.FLOAT
BOOL: Final = Scalar.BOOL
TIMESTAMP: Final = Scalar.TIMESTAMP
NAIVE_TIMESTAMP: Final = Scalar.NAIVE_TIMESTAMP
MONEY: Final = Scalar.MONEY
JSON: Final = Scalar.JSON
STRINGS: Final = ListOf(STRING)


SCHEMA_NAME: Final = "trajectory"
"""The Postgres schema of this project's tables and views."""


class Sink(Enum):
    """Where a column stands."""

    PARQUET = "Parquet"
    POSTGRES = "Postgres"


BOTH: Final = frozenset(Sink)
PARQUET_ONLY: Final = frozenset({Sink.PARQUET})
POSTGRES_ONLY: Final = frozenset({Sink.POSTGRES})


@dataclass(frozen=True)
class Column:
    """One column or field, and all that is known of it.

    Attributes:
        name: as it is called in every sink.
        type: see ``Type``.
        description: one sentence.
        unit: of the number, where it has one (``ns``, ``tokens``, ``USD``).
        null: what a null says; empty where there is never one.
        source: the Letta column, or the rule, that it comes from.
        sinks: where it stands.
        document: where it stands in the trajectory document (``metadata.agent_id``); None where it does not.
        since: the schema version that brought it.
        key: part of the table's primary key.
    """

    name: str
    type: Type
    description: str
    null: str = ""
    unit: str = ""
    source: str = ""
    sinks: frozenset[Sink] = field(default=BOTH)
    document: str | None = None
    since: str = "1"
    key: bool = False

    @property
    def nullable(self) -> bool:
        """Whether a null may stand in it."""
        return bool(self.null)


def postgres_column(
    name: str, kind: Type, description: str, *, null: str = "", unit: str = "", key: bool = False
) -> Column:
    """Return a column of a table that stands in Postgres alone."""
    return Column(name, kind, description, null=null, unit=unit, sinks=POSTGRES_ONLY, key=key)


@dataclass(frozen=True)
class Table:
    """A dataset: its columns, and what one row is.

    Attributes:
        name: as its asset and its Postgres table are called.
        description: one sentence; ``row`` says what one row is.
        columns: in order.
        indexes: columns of each index that Postgres keeps.
    """

    name: str
    description: str
    row: str
    columns: tuple[Column, ...]
    indexes: tuple[tuple[str, ...], ...] = ()

    def __getitem__(self, name: str) -> Column:
        """Return the column of that name.

        Raises:
            KeyError: there is none.
        """
        return Struct(self.columns)[name]

    def __hash__(self) -> int:
        """Of the name: hashing hundreds of columns, whenever a schema is looked up, takes longer than using it."""
        return hash(self.name)

    def in_sink(self, sink: Sink) -> tuple[Column, ...]:
        """Return the columns that stand in one sink, in order."""
        return tuple(column for column in self.columns if sink in column.sinks)

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the names of the primary key's columns."""
        return tuple(column.name for column in self.columns if column.key)

    def names(self, sink: Sink) -> list[str]:
        """Return the names of the columns of one sink, in order."""
        return [column.name for column in self.in_sink(sink)]


def struct(*fields: Column) -> Struct:
    """Return a struct of these fields."""
    return Struct(tuple(fields))


def list_of(fields: Sequence[Column]) -> ListOf:
    """Return a list of structs of these fields."""
    return ListOf(Struct(tuple(fields)))
