"""Connections to the trajectory database, reused instead of one a transaction.

Why not psycopg-pool: docs/decisions/0029-keep-our-own-connection-pool.md.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

import psycopg

from trajectory_pipeline.storage.postgres.connection import begin, open_connection, translating_database_errors
from trajectory_pipeline.storage.postgres.schema_revision import require_migrated

_FRESH_SECONDS = 1.0
"""The schema's revision is not read again on a connection that was last used this recently."""


class ConnectionPool:
    """Idle connections of two kinds, those that commit by themselves and those for transactions.

    One of each is kept, or so many that with those on loan there are no more than asked for, as long as no more threads
    borrow at once. Who finds none idle gets a new one. Nothing of a session lasts from one loan to the next, so a
    pooler may stand between. A context manager: what is idle is closed at the end.
    """

    def __init__(self, url: str, idle: int = 1) -> None:
        self._url = url
        self._most_idle = idle
        self._lent = 0
        self._idle: dict[bool, list[tuple[psycopg.Connection, float]]] = {True: [], False: []}
        self._guard = threading.Lock()
        self._open = True

    @contextmanager
    def connection(self, *, autocommit: bool) -> Iterator[psycopg.Connection]:
        """Lend a connection to a migrated schema; it is committed at the end, and closed on any error."""
        with self._guard:
            self._lent += 1
        succeeded = returned = False
        connection: psycopg.Connection | None = None
        try:
            connection = self._take(autocommit)
            with translating_database_errors(self._url, "Committing"):
                yield connection
                if not autocommit:
                    connection.commit()
            succeeded = True
            returned = self._return(connection)
        finally:
            with self._guard:
                self._lent -= 1
            if not returned and connection is not None:
                connection.close()
            if not succeeded:
                # An idle one is probably lost as well, and would fail at another partition's expense.
                self.close_idle()

    def _take(self, autocommit: bool) -> psycopg.Connection:
        with self._guard:
            idle, since = self._idle[autocommit].pop() if self._idle[autocommit] else (None, 0.0)
        if idle is not None:
            # The query also shows whether the connection was lost.
            with suppress(psycopg.Error):
                is_fresh = time.monotonic() - since < _FRESH_SECONDS
                return idle if is_fresh and autocommit else self._begun(idle, check_schema=not is_fresh)
            self.close_idle()
        self._make_room(not autocommit)
        with translating_database_errors(self._url, "Connecting"):
            connection = open_connection(self._url, autocommit=autocommit)
        with translating_database_errors(self._url, "Looking for the schema"):
            return self._begun(connection, check_schema=True)

    def _make_room(self, other: bool) -> None:
        """Close an idle connection of the other kind where one more would be too many; one of each is always kept."""
        with self._guard:
            there = self._lent + sum(map(len, self._idle.values()))
            is_full = there > self._most_idle > 1
            spare = self._idle[other].pop(0)[0] if is_full and self._idle[other] else None
        if spare is not None:
            spare.close()

    def _begun(self, connection: psycopg.Connection, *, check_schema: bool) -> psycopg.Connection:
        """Return the connection, in a transaction unless it commits by itself; close it where that fails."""
        try:
            if not connection.autocommit:
                begin(connection)
            if check_schema:
                require_migrated(self._url, connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _return(self, connection: psycopg.Connection) -> bool:
        if connection.closed:
            # Whoever borrowed it for long work closed it; nothing was lost.
            return True
        with self._guard:
            idle = self._idle[connection.autocommit]
            if not self._open or len(idle) >= self._most_idle:
                return False
            idle.append((connection, time.monotonic()))
            return True

    def close_idle(self) -> None:
        """Close what is idle; the next loans open new connections."""
        with self._guard:
            idle = [connection for kind in self._idle.values() for connection, _ in kind]
            self._idle = {True: [], False: []}
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is idle; a connection on loan is closed when it is returned."""
        with self._guard:
            self._open = False
        self.close_idle()
