"""Compares the files and tables that are there with the declaration of their columns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.types import SCHEMA_NAME, ListOf, Scalar, Sink, Table, Type
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.storage import Storage

_COLUMNS = (
    "SELECT c.relname AS table, a.attname AS name,"
    " format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END AS type"
    " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
    " WHERE c.relnamespace = %s::regnamespace AND c.relname = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped"
)
_KEYS = (
    "SELECT c.relname AS table, pg_get_constraintdef(k.oid) AS key FROM pg_constraint k"
    " JOIN pg_class c ON c.oid = k.conrelid"
    " WHERE c.relnamespace = %s::regnamespace AND c.relname = ANY(%s) AND k.contype = 'p'"
)
_LONGEST_TYPE = 80
"""Characters of a type that a sentence shows."""
_POSTGRES_TYPES = {
    Scalar.STRING: "text",
    Scalar.INT: "bigint",
    Scalar.FLOAT: "double precision",
    Scalar.BOOL: "boolean",
    Scalar.TIMESTAMP: "timestamp with time zone",
    Scalar.NAIVE_TIMESTAMP: "timestamp without time zone",
    Scalar.MONEY: "numeric(18,9)",
    Scalar.JSON: "jsonb",
    Scalar.WORDS: "tsvector",
    Scalar.VECTOR: "halfvec",
}


@dataclass(frozen=True)
class SchemaDifference:
    """What is not as declared; ``extra`` is a column more than declared, which nothing reads."""

    where: str
    text: str
    extra: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def schema_differences(
    storage: Storage, table: Table, hours: Iterable[datetime], postgres_tables: Sequence[Table] = ()
) -> list[SchemaDifference]:
    """Return where the files of these partitions, and these tables of Postgres, differ from the declaration.

    Raises:
        SinkError: a sink cannot be read.
    """
    declared = {field.name: str(field.type) for field in arrow_schema(table)}
    found: list[SchemaDifference] = []
    for hour in hours:
        columns = storage.parquet.column_types(table, hour)
        if columns is not None:
            found += _compare(f"{partition_key(hour)}, the file of {table.name}", declared, columns)
    if postgres_tables:
        found += _postgres_differences(storage.postgres, postgres_tables)
    return found


def _postgres_differences(database: TrajectoryDatabase, tables: Sequence[Table]) -> Iterator[SchemaDifference]:
    parameters = [SCHEMA_NAME, [table.name for table in tables]]
    columns: dict[str, dict[str, str]] = {table.name: {} for table in tables}
    for row in database.rows(_COLUMNS, parameters):
        columns[row["table"]][row["name"]] = row["type"]
    keys = {row["table"]: row["key"] for row in database.rows(_KEYS, parameters)}
    for table in tables:
        where = f"the table {SCHEMA_NAME}.{table.name}"
        declared = {
            column.name: _postgres_type(column.type) + ("" if column.nullable else " NOT NULL")
            for column in table.in_sink(Sink.POSTGRES)
        }
        yield from _compare(where, declared, columns[table.name])
        key = f"PRIMARY KEY ({', '.join(table.keys)})"
        if keys.get(table.name) != key:
            yield SchemaDifference(where, f"it has no {key}")


def _compare(where: str, declared: Mapping[str, str], found: Mapping[str, str]) -> Iterator[SchemaDifference]:
    for name in declared.keys() - found.keys():
        yield SchemaDifference(where, f"it has no column {name}")
    for name, kind in found.items():
        if name not in declared:
            yield SchemaDifference(where, f"its column {name} is not declared", extra=True)
        elif declared[name] != kind:
            is_short = max(len(kind), len(declared[name])) <= _LONGEST_TYPE
            types = f"is {kind}, declared is {declared[name]}" if is_short else "has other fields than declared"
            yield SchemaDifference(where, f"its column {name} {types}")


def _postgres_type(kind: Type) -> str:
    if isinstance(kind, ListOf) and isinstance(kind.item, Scalar):
        return f"{_POSTGRES_TYPES[kind.item]}[]"
    return _POSTGRES_TYPES[kind] if isinstance(kind, Scalar) else "jsonb"
