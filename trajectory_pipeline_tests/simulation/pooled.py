"""Connections that are used again, for a simulation that would otherwise spend most of its time on opening them.

A connection that is closed ends its transaction, and with it its locks and what it staged, as a closed one does; only
the session stays. One that is in any other state than idle afterwards is really closed.
"""

import threading
from collections import defaultdict
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import psycopg
import pytest
from psycopg.pq import TransactionStatus

from trajectory_pipeline.letta import connection as source_connection
from trajectory_pipeline.storage.postgres import connection as sink_connection

_TURN = threading.Lock()


class _SinkConnection(psycopg.Connection[Any]):
    """A connection to a sink that goes back to the pool when it is closed."""

    pool: list["_SinkConnection"]

    def close(self) -> None:
        if not self.closed and self.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            self.rollback()
        if not self.closed and self.pgconn.transaction_status == TransactionStatus.IDLE:
            with _TURN:
                self.pool.append(self)
        else:
            super().close()


class _SourceConnection:
    """A connection to a source that goes back to the pool when it is closed."""

    def __init__(self, inner: adbc.Connection, pool: list["_SourceConnection"]) -> None:
        self._inner = inner
        self._pool = pool

    def cursor(self) -> Any:
        return self._inner.cursor()

    def close(self) -> None:
        with self._inner.cursor() as cursor:
            cursor.execute("ROLLBACK")
        with _TURN:
            self._pool.append(self)

    def really_close(self) -> None:
        self._inner.close()


class Pools:
    """What was opened so far, by address; to be closed at the end."""

    def __init__(self) -> None:
        self._sinks: dict[Any, list[_SinkConnection]] = defaultdict(list)
        self._sources: dict[str, list[_SourceConnection]] = defaultdict(list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the package's own way to open connections take them from here."""
        monkeypatch.setattr(sink_connection.psycopg, "connect", self._sink)
        monkeypatch.setattr(source_connection.adbc, "connect", self._source)

    def close(self) -> None:
        for sinks in self._sinks.values():
            for sink in sinks:
                psycopg.Connection.close(sink)
        for sources in self._sources.values():
            for source in sources:
                source.really_close()

    def _sink(self, url: str, *, autocommit: bool = False, **more: Any) -> psycopg.Connection[Any]:
        pool = self._sinks[url, autocommit, tuple(sorted((name, str(value)) for name, value in more.items()))]
        with _TURN:
            if pool:
                return pool.pop()
        connection = _SinkConnection.connect(url, autocommit=autocommit, **more)
        connection.pool = pool
        return connection

    def _source(self, url: str, **more: Any) -> _SourceConnection:
        pool = self._sources[url]
        with _TURN:
            if pool:
                return pool.pop()
        return _SourceConnection(adbc_connect(url, **more), pool)


adbc_connect = adbc.connect
