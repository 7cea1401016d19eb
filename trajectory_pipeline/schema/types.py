"""The small type language in which every column is declared; it imports no library, so that declarations load fast."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

SCHEMA_NAME: Final = "trajectory"
"""The Postgres schema of this project's tables and views."""


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
    WORDS = "tsvector"
    """Words of a text for full-text search, only in Postgres."""
    VECTOR = "halfvec"
    """Numbers of half precision, of the extension pgvector, only in Postgres."""


@dataclass(frozen=True)
class ListOf:
    """Any number of one type, in order; never null inside a trajectory, possibly empty."""

    item: "Type"


@dataclass(frozen=True)
class Struct:
    """Named parts."""

    fields: tuple["Column", ...]


Type = Scalar | ListOf | Struct

STRING: Final = Scalar.STRING
INT: Final = Scalar.INT
FLOAT: Final = Scalar.FLOAT
BOOL: Final = Scalar.BOOL
TIMESTAMP: Final = Scalar.TIMESTAMP
NAIVE_TIMESTAMP: Final = Scalar.NAIVE_TIMESTAMP
MONEY: Final = Scalar.MONEY
JSON: Final = Scalar.JSON
WORDS: Final = Scalar.WORDS
VECTOR: Final = Scalar.VECTOR
STRINGS: Final = ListOf(STRING)


class Sink(Enum):
    """Where a column is stored."""

    PARQUET = "Parquet"
    POSTGRES = "Postgres"


BOTH: Final = frozenset(Sink)
PARQUET_ONLY: Final = frozenset({Sink.PARQUET})
POSTGRES_ONLY: Final = frozenset({Sink.POSTGRES})


@dataclass(frozen=True)
class Column:
    """One column or field, and all that is known of it.

    Attributes:
        name: the same in every sink.
        type: see ``Type``.
        description: one sentence.
        null: what a null means; empty where there is never one.
        unit: of the number, where it has one (``ns``, ``tokens``, ``USD``).
        source: the columns that it comes from (``runs.agent_id``, or another of the same table by its name), or the
            rule. Column lineage in the UI is read from it.
        sinks: where it is stored.
        document: its path in the trajectory document (``metadata.agent_id``); None where it is not in it.
        since: the schema version that introduced it.
        key: part of the table's primary key.
    """

    name: str
    type: Type
    description: str
    null: str = ""
    unit: str = ""
    source: str = ""
    sinks: frozenset[Sink] = BOTH
    document: str | None = None
    since: str = "1"
    key: bool = False

    @property
    def nullable(self) -> bool:
        """Whether it can be null."""
        return bool(self.null)


def tokens(name: str, description: str, *, null: str = "", source: str = "") -> Column:
    """Return a column that counts tokens."""
    return Column(name, INT, description, null, "tokens", source)


def dollars(name: str, description: str, *, null: str = "", source: str = "") -> Column:
    """Return a column with an amount of US dollars."""
    return Column(name, MONEY, description, null, "USD", source)


def nanoseconds(name: str, description: str, *, null: str, source: str = "") -> Column:
    """Return a column with a duration in nanoseconds."""
    return Column(name, INT, description, null, "ns", source)


def parquet_only(*columns: Column) -> tuple[Column, ...]:
    """Return the columns as stored in Parquet alone."""
    return tuple(replace(column, sinks=PARQUET_ONLY) for column in columns)


def postgres_only(*columns: Column) -> tuple[Column, ...]:
    """Return the columns as stored in Postgres alone."""
    return tuple(replace(column, sinks=POSTGRES_ONLY) for column in columns)


def from_source(source: str, *columns: Column) -> tuple[Column, ...]:
    """Return the columns as coming from this source."""
    return tuple(replace(column, source=source) for column in columns)


def in_document(parent: str, *columns: Column) -> tuple[Column, ...]:
    """Return the columns with their path in the trajectory document: under their own name in ``parent``."""
    return tuple(replace(column, document=f"{parent}.{column.name}") for column in columns)


@dataclass(frozen=True)
class Table:
    """A dataset: its columns, and what one row is.

    Attributes:
        name: of its asset and its Postgres table.
        description: one sentence.
        row: what one row is.
        columns: in order.
        indexes: the columns of each index in Postgres.
        extension: of Postgres that its types are from; without it, the table is not there.
    """

    name: str
    description: str
    row: str
    columns: tuple[Column, ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    extension: str = ""

    def __getitem__(self, name: str) -> Column:
        """Return the column of that name.

        Raises:
            KeyError: there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def __hash__(self) -> int:
        """Of the name: hashing hundreds of columns, whenever a schema is looked up, takes longer than using it."""
        return hash(self.name)

    def in_sink(self, sink: Sink) -> tuple[Column, ...]:
        """Return the columns that are stored in one sink, in order."""
        return tuple(column for column in self.columns if sink in column.sinks)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the primary key's columns."""
        return tuple(column.name for column in self.columns if column.key)

    def names(self, sink: Sink) -> list[str]:
        """Return the names of the columns of one sink, in order."""
        return [column.name for column in self.in_sink(sink)]


def struct(*fields: Column) -> Struct:
    """Return a struct of these fields."""
    return Struct(fields)


def list_of(fields: tuple[Column, ...]) -> ListOf:
    """Return a list of structs of these fields."""
    return ListOf(Struct(fields))
