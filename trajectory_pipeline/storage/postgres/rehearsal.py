"""Tries every kind of statement of the pipeline in a transaction that is rolled back, so that a missing right shows."""

from collections.abc import Callable
from functools import partial

import psycopg
from psycopg import sql

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.schema.types import SCHEMA_NAME
from trajectory_pipeline.storage.postgres.connection import database_error
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction

_RELATIONS = (
    "SELECT c.relname, c.relkind = 'v', min(a.attname) FILTER (WHERE a.attidentity = '' AND a.attgenerated = '')"
    " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    " WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p', 'v') AND c.relname <> 'alembic_version'"
    " GROUP BY 1, 2 ORDER BY 1"
)
# Each needs its right, though it meets no row.
_STATEMENTS = {
    "SELECT": "SELECT * FROM {table} WHERE false",
    "INSERT": "INSERT INTO {table} ({column}) SELECT {column} FROM {table} WHERE false",
    "UPDATE": "UPDATE {table} SET {column} = {column} WHERE false",
    "DELETE": "DELETE FROM {table} WHERE false",
}
_FUNCTIONS = {
    "pg_advisory_xact_lock(bigint)": "SELECT pg_advisory_xact_lock(hashtextextended('trajectory rehearsal', 0))",
    "pg_advisory_xact_lock_shared(bigint)": (
        "SELECT pg_advisory_xact_lock_shared(hashtextextended('trajectory rehearsal', 0))"
    ),
}


def find_refused_statements(database: TrajectoryDatabase) -> list[str]:
    """Return a sentence for each statement that the database refuses, with the right that is missing; changes nothing.

    Raises:
        SinkError: the database cannot be reached, or is not migrated.
    """
    with database.connect() as connection:
        try:
            return _refusals(database, connection)
        finally:
            connection.rollback()


def _refusals(database: TrajectoryDatabase, connection: psycopg.Connection) -> list[str]:
    user = sql.Identifier(connection.execute("SELECT current_user").fetchall()[0][0])

    def refusal(doing: str, right: str, work: Callable[[], object]) -> str | None:
        grant = f"GRANT {right} TO {user.as_string(connection)}"
        try:
            with connection.transaction():
                work()
        except psycopg.Error as error:
            # A policy that hides rows has the same SQLSTATE, and no GRANT helps.
            lacks_right = isinstance(error, psycopg.errors.InsufficientPrivilege) and "row-level" not in str(error)
            advice = f"its owner could run: {grant}" if lacks_right else None
            return str(database_error(database.url, doing, error, advice))
        except SinkError as error:
            return str(error)
        return None

    found: list[str | None] = []
    for name, call in _FUNCTIONS.items():
        found.append(refusal(f"Calling {name}", f"EXECUTE ON FUNCTION pg_catalog.{name}", _run(connection, call)))
    for name, is_view, column in connection.execute(_RELATIONS, [SCHEMA_NAME]).fetchall():
        names = {"table": sql.Identifier(SCHEMA_NAME, name), "column": sql.Identifier(column)}
        for verb, statement in list(_STATEMENTS.items())[: 1 if is_view else None]:
            text = sql.SQL(statement).format(**names).as_string(connection)
            found.append(refusal(f"{verb} on {name}", f"{verb} ON {SCHEMA_NAME}.{name}", _run(connection, text)))
    if not any(found):
        write = partial(_write_nothing, database, connection)
        target = sql.Identifier(connection.info.dbname).as_string(connection)
        found.append(refusal("Writing a partition without rows", f"TEMPORARY ON DATABASE {target}", write))
    return [sentence for sentence in found if sentence]


def _run(connection: psycopg.Connection, statement: str) -> Callable[[], object]:
    return partial(connection.execute, statement.encode())


def _write_nothing(database: TrajectoryDatabase, connection: psycopg.Connection) -> None:
    """Run the statements of a partition's transaction: the temporary table, COPY, merge and quarantine."""
    connect = partial(database.connect, autocommit=True)
    partition = PartitionTransaction(database.url, connection, connect, "rehearsal", "rehearsal")
    with partition.staging():
        pass
    partition.merge()
    partition.set_quarantine([])
