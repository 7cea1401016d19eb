"""Connections to the trajectory database, kept and lent again instead of one a transaction.

``psycopg_pool`` is not used: it connects in threads of its own, so that a wrong password or a missing schema reaches
the borrower as ``PoolTimeout`` after the whole timeout, without the cause.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import psycopg

from trajectory_pipeline.storage.postgres.connection import open_connection, translating_database_errors
from trajectory_pipeline.storage.postgres.migrate import require_migrated

_FRESH_SECONDS = 1.0
"""So long after its last use, a connection is taken to be there; if it is not, one partition fails by itself."""


class ConnectionPool:
    """At most one idle connection of each kind: one that commits by itself, and one for transactions.

    Used as a context manager: at the end of the block what is idle is closed. Several threads may borrow at once; who
    finds none idle gets a new one. Nothing of a session lasts from one loan to the next, so a pooler may stand between.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: dict[bool, tuple[psycopg.Connection, float]] = {}
        self._guard = threading.Lock()
        self._open = True

    @contextmanager
    def connection(self, *, autocommit: bool) -> Iterator[psycopg.Connection]:
        """Lend a connection to a migrated schema; committed at the end, and closed without on any error.

        Raises:
            SinkError: the database cannot be reached, is not migrated or refuses.
        """
        connection = self._ready(autocommit)
        given_back = False
        try:
            with translating_database_errors(self._url, "Committing"):
                yield connection
                if not autocommit:
                    connection.commit()
            given_back = self._give_back(connection)
        finally:
            if not given_back:
                connection.close()
                # What one has lost, the other has as well; which it would notice at another partition's expense.
                self._close_idle()

    def _ready(self, autocommit: bool) -> psycopg.Connection:
        with self._guard:
            idle, since = self._idle.pop(autocommit, (None, 0.0))
        if idle is not None:
            if time.monotonic() - since < _FRESH_SECONDS:
                return idle
            # The query tells as well whether it was lost since.
            with suppress(psycopg.Error):
                return self._require_migrated(idle)
            self._close_idle()
        with translating_database_errors(self._url, "Connecting"):
            connection = open_connection(self._url, autocommit=autocommit)
        with translating_database_errors(self._url, "Looking for the schema"):
            return self._require_migrated(connection)

    def _require_migrated(self, connection: psycopg.Connection) -> psycopg.Connection:
        try:
            require_migrated(self._url, connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: psycopg.Connection) -> bool:
        with self._guard:
            if not self._open or connection.autocommit in self._idle:
                return False
            self._idle[connection.autocommit] = connection, time.monotonic()
            return True

    def _close_idle(self) -> None:
        with self._guard:
            idle = [connection for connection, _ in self._idle.values()]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what is idle; what is lent is closed when it is given back."""
        with self._guard:
            self._open = False
        self._close_idle()
