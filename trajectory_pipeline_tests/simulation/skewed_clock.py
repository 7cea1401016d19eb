"""A database clock that a test can set: own ``now()`` and ``clock_timestamp()`` come before those of Postgres."""

from typing import Any

import psycopg
from psycopg import sql

_STATEMENTS = (
    "CREATE SCHEMA clock",
    "CREATE TABLE clock.skew (by interval NOT NULL)",
    "INSERT INTO clock.skew VALUES ('0')",
    "CREATE FUNCTION clock.now() RETURNS timestamptz STABLE LANGUAGE sql"
    " AS 'SELECT pg_catalog.now() + by FROM clock.skew'",
    "CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql"
    " AS 'SELECT pg_catalog.clock_timestamp() + by FROM clock.skew'",
)


def install_clock(url: str) -> None:
    """Give a database a clock of its own, for all connections from now on."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in _STATEMENTS:
            connection.execute(statement.encode())
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET search_path = clock, pg_catalog, public").format(
                sql.Identifier(connection.info.dbname)
            )
        )


def set_clock_skew(connection: psycopg.Connection[Any], seconds: int) -> None:
    """Set a database's clock so many seconds ahead of the real one; negative: behind it."""
    connection.execute("UPDATE clock.skew SET by = make_interval(secs => %s)", [seconds])
