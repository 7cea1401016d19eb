"""A connection for long work: when it is lost, or conflicts, the transaction is repeated."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from trajectory_pipeline.storage.postgres.connection import begin, open_connection, translating_database_errors

Query = sql.Composed | sql.SQL | LiteralString
_T = TypeVar("_T")
_RECONNECT_PAUSES_SECONDS = (1.0, 4.0)
_CONFLICT_PAUSES_SECONDS = (0.05, 0.2, 0.8)


class Transaction:
    """Statements that are committed together or not at all."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def rows(self, statement: Query, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Run a statement; returns its rows as dicts."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description is not None else []

    def many(self, statement: Query, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each of these parameters."""
        with self._connection.cursor() as cursor:
            cursor.executemany(statement, parameters)


class RetryingConnection:
    """An open connection on which every piece of work is a transaction of its own.

    Work must be idempotent: where the connection is lost during a commit, its result is unknown, and it is repeated.
    """

    def __init__(self, url: str, connection: psycopg.Connection) -> None:
        self._url = url
        self._connection = connection

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def run(self, doing: str, work: Callable[[Transaction], _T]) -> _T:
        """Run idempotent work in one transaction, and return its result; ``doing`` begins the text of an error."""
        with translating_database_errors(self._url, doing):
            for pause in _CONFLICT_PAUSES_SECONDS:
                try:
                    return self._once(work)
                except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                    # Nothing of it was done. Apart, the next attempts do not meet again.
                    time.sleep(pause * random.random())  # noqa: S311 - no secret
                except (psycopg.OperationalError, psycopg.InterfaceError):
                    if not self._connection.closed:
                        raise
                    self._reconnect()
            return self._once(work)

    def rows(
        self, doing: str, statement: Query, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[dict[str, Any]]:
        """Run one idempotent statement; returns its rows as dicts."""
        return self.run(doing, lambda transaction: transaction.rows(statement, parameters))

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        moment: datetime = self.rows("Asking for the time", "SELECT clock_timestamp() AS now")[0]["now"]
        return moment

    def _once(self, work: Callable[[Transaction], _T]) -> _T:
        with self._connection.transaction():
            begin(self._connection)
            return work(Transaction(self._connection))

    def _reconnect(self) -> None:
        for pause in _RECONNECT_PAUSES_SECONDS:
            try:
                self._connection = open_connection(self._url, autocommit=True)
            except psycopg.OperationalError:
                time.sleep(pause)
            else:
                return
        self._connection = open_connection(self._url, autocommit=True)
