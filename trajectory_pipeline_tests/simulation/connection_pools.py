"""Pools of connections, for a simulation that would otherwise spend most of its time on opening them.

Closing a pooled connection ends its transaction, and with it its locks and temporary tables; only the session stays. A
connection that is not idle afterwards is really closed.
"""

import threading
from collections import defaultdict
from contextlib import suppress
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import psycopg
import pytest
from psycopg.pq import TransactionStatus

from trajectory_pipeline.letta import connection as source_connection
from trajectory_pipeline.storage.postgres import connection as sink_connection

_POOL_LOCK = threading.Lock()


class _SinkConnection(psycopg.Connection[Any]):
    """A connection to a sink that goes back to the pool when it is closed."""

    pool: list["_SinkConnection"]

    def close(self) -> None:
        if not self.closed and self.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            self.rollback()
        if not self.closed and self.pgconn.transaction_status == TransactionStatus.IDLE:
            with _POOL_LOCK:
                # Closing a connection twice does nothing; one that is in the pool twice would have two users.
                if self not in self.pool:
                    self.pool.append(self)
        else:
            super().close()


class _SourceConnection:
    """A connection to a source that goes back to the pool when it is closed."""

    def __init__(self, connection: adbc.Connection, pool: list["_SourceConnection"]) -> None:
        self._connection = connection
        self._pool = pool

    def cursor(self) -> Any:
        return self._connection.cursor()

    @property
    def adbc_connection(self) -> Any:
        return self._connection.adbc_connection

    def close(self) -> None:
        with suppress(adbc.Error):
            # It is not in a transaction.
            self._connection.adbc_connection.set_autocommit(True)
        with _POOL_LOCK:
            self._pool.append(self)

    def really_close(self) -> None:
        self._connection.close()


class ConnectionPools:
    """The connections opened so far, by address; to be closed at the end."""

    def __init__(self) -> None:
        self._sinks: dict[Any, list[_SinkConnection]] = defaultdict(list)
        self._sources: dict[str, list[_SourceConnection]] = defaultdict(list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the package take its connections from these pools."""
        monkeypatch.setattr(sink_connection.psycopg, "connect", self._sink)
        monkeypatch.setattr(source_connection, "open_connection", self._source)

    def close(self) -> None:
        for sinks in self._sinks.values():
            for sink in sinks:
                psycopg.Connection.close(sink)
        for sources in self._sources.values():
            for source in sources:
                source.really_close()

    def _sink(self, url: str, *, autocommit: bool = False, **options: Any) -> psycopg.Connection[Any]:
        pool = self._sinks[url, autocommit, tuple(sorted((name, str(value)) for name, value in options.items()))]
        with _POOL_LOCK:
            if pool:
                return pool.pop()
        connection = _SinkConnection.connect(url, autocommit=autocommit, **options)
        connection.pool = pool
        return connection

    def _source(self, url: str) -> _SourceConnection:
        pool = self._sources[url]
        with _POOL_LOCK:
            if pool:
                return pool.pop()
        return _SourceConnection(open_source_connection(url), pool)


open_source_connection = source_connection.open_connection
