"""Statements whose plans a session keeps, because planning them takes longer than running them.

They are prepared by ``PREPARE``, under a name made of their text, in each session that lacks them. So a pooler may give
every transaction another session.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg.pq import Escaping, abc

_THERE = "SELECT name FROM pg_catalog.pg_prepared_statements WHERE name = ANY(%s)"


@dataclass(frozen=True)
class Prepared:
    """A statement; its text states the type of each parameter (``$1::text``)."""

    text: LiteralString
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"trajectory_{hashlib.sha256(self.text.encode()).hexdigest()[:16]}")


Call = tuple[Prepared, Sequence[str | None]]
"""A statement, and its values as Postgres reads them from text."""


def execute_prepared(connection: psycopg.Connection, *calls: Call, stay: bool = False) -> psycopg.Cursor[Any]:
    """Run statements in one transaction and one round trip.

    Args:
        connection: one that commits by itself, outside of a transaction.
        calls: the statements.
        stay: whether the connection stays in the transaction; else it is committed.

    Returns:
        A cursor at the first result; ``nextset`` leads to the others.
    """
    escaping = Escaping(connection.pgconn)
    executing = b"; ".join(_execute(escaping, *call) for call in calls)
    try:
        # Without BEGIN, what is sent together is one transaction.
        cursor = connection.execute(b"BEGIN; " + executing if stay else executing)
    except psycopg.errors.InvalidSqlStatementName:
        if stay:
            connection.execute("ROLLBACK")
    else:
        if stay:
            cursor.nextset()
        return cursor
    # From here on one transaction, which is one session.
    connection.execute("BEGIN")
    names = {prepared.name: prepared for prepared, _ in calls}
    there = {row[0] for row in connection.execute(_THERE, [list(names)])}
    for name in names.keys() - there:
        connection.execute(f"PREPARE {name} AS {names[name].text}".encode())
    cursor = connection.execute(executing)
    if not stay:
        connection.execute("COMMIT")
    return cursor


def _execute(escaping: abc.Escaping, prepared: Prepared, values: Sequence[str | None]) -> bytes:
    given = b", ".join(b"NULL" if one is None else escaping.escape_literal(one.encode()) for one in values)
    return f"EXECUTE {prepared.name}".encode() + (b"(%b)" % given if values else b"")
