"""The data dictionary as comments on tables, views and columns of the schema ``trajectory``, for any SQL client."""

from collections.abc import Iterator

import psycopg
from psycopg import sql

from trajectory_pipeline.schema.tables import TABLES
from trajectory_pipeline.schema.types import SCHEMA_NAME, Sink, Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.schema.views import VIEWS

Target = tuple[str, str]
"""Table or view, and column; the column is empty for a comment on the table itself."""

_FOUND = (
    "SELECT c.relname, coalesce(a.attname, ''), d.description FROM pg_description d"
    " JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass"
    " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0"
    " WHERE c.relnamespace = %s::regnamespace"
)


def declared_comments() -> dict[Target, str]:
    """Return the comment of every table, view and column."""
    alembic = {
        ("alembic_version", ""): "The migration that the schema is at; written by Alembic.",
        ("alembic_version", "version_num"): "Revision of the newest migration that has run.",
    }
    return {**alembic, **{target: text for table in (*TABLES, *VIEWS) for target, text in _comments(table)}}


def apply_comments(connection: psycopg.Connection) -> int:
    """Set the comments that differ from the declaration; return how many. Needs the owner of the tables."""
    found = {(table, column): text for table, column, text in connection.execute(_FOUND, [SCHEMA_NAME])}
    views = {view.name for view in VIEWS}
    missing = {table.name for table in TABLES if table.extension} - _tables(connection)
    changed = [
        (target, text)
        for target, text in declared_comments().items()
        if found.get(target) != text and target[0] not in missing
    ]
    for (name, column), text in changed:
        kind = "COLUMN" if column else "VIEW" if name in views else "TABLE"
        target = sql.Identifier(*filter(None, (SCHEMA_NAME, name, column)))
        connection.execute(sql.SQL("COMMENT ON {} {} IS {}").format(sql.SQL(kind), target, sql.Literal(text)))
    return len(changed)


def _tables(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace", [SCHEMA_NAME])
    return {row[0] for row in rows}


def _comments(table: Table) -> Iterator[tuple[Target, str]]:
    columns = () if table is REFINED_OUTCOMES else table.in_sink(Sink.POSTGRES)
    if columns:
        yield (table.name, ""), f"{table.description} One row is {table.row}."
    for column in columns:
        unit = f" Unit: {column.unit}." if column.unit else ""
        null = f" Null: {column.null}." if column.null else ""
        yield (table.name, column.name), f"{column.description}{unit}{null}"
