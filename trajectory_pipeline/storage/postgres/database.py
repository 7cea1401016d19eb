"""The trajectory database: its connections, one partition's transaction at a time, and reading rows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.storage.postgres import invalidations, run_locations
from trajectory_pipeline.storage.postgres.connection import begin, translating_database_errors
from trajectory_pipeline.storage.postgres.partition_writer import ENTRY_COLUMNS, PartitionTransaction, StoredEntry
from trajectory_pipeline.storage.postgres.pool import ConnectionPool
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection


@dataclass(frozen=True)
class TrajectoryDatabase:
    """The Postgres that holds the schema ``trajectory``, at ``postgresql://user:password@host:port/database``.

    Methods raise ``SinkError`` if it cannot be reached, is not migrated (the text says what to run) or refuses.
    """

    url: str = field(repr=False)
    _pool: ConnectionPool | None = field(default=None, repr=False, compare=False)

    @contextmanager
    def connect(self, *, autocommit: bool = False) -> Iterator[psycopg.Connection]:
        """Begin a transaction in a migrated schema, on a connection of its own or of the pool; committed at the end.

        ``autocommit``: on a connection of the kind that is not kept in a transaction between two loans.
        """
        with self.session(autocommit=autocommit) as connection:
            if not autocommit:
                yield connection
                return
            with connection.transaction():
                begin(connection)
                yield connection

    @contextmanager
    def session(self, *, autocommit: bool) -> Iterator[psycopg.Connection]:
        """Lend a connection to a migrated schema: one that commits by itself, or one in a transaction."""
        with (
            nullcontext(self._pool) if self._pool else ConnectionPool(self.url) as pool,
            pool.connection(autocommit=autocommit) as connection,
        ):
            yield connection

    @contextmanager
    def retrying(self) -> Iterator[RetryingConnection]:
        """Open a connection for long work, which reconnects when it is lost."""
        with self.session(autocommit=True) as connection:
            retrying = RetryingConnection(self.url, connection)
            try:
                yield retrying
            finally:
                retrying.close()

    @contextmanager
    def pooled(self, idle: int = 1) -> Iterator["TrajectoryDatabase"]:
        """Reuse connections inside the block instead of one a transaction; a lost one is replaced.

        Nothing is opened before it is needed; inside such a block, another changes nothing. ``idle``: how many
        connections there are at the most, for as many threads; one: one of each kind is kept while nobody uses it.
        """
        if self._pool is not None:
            yield self
            return
        with ConnectionPool(self.url, idle) as pool:
            yield replace(self, _pool=pool)

    def close_idle(self) -> None:
        """Close the connections that are kept for reuse, as before a process forks."""
        if self._pool is not None:
            self._pool.close_idle()

    @contextmanager
    def partition(self, asset: str, partition_key: str, *, reads: str | None = None) -> Iterator[PartitionTransaction]:
        """Open one partition for writing: waits for other writers, commits at the end or not at all.

        ``reads`` is the asset that it is made of, if any: no process writes that until the end.
        """
        connect = partial(self.connect, autocommit=True)
        with self.connect() as connection:
            yield PartitionTransaction(self.url, connection, connect, asset, partition_key, reads=reads)

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        now: datetime = self.rows("SELECT clock_timestamp() AS now")[0]["now"]
        return now

    def ledger(self, asset: str, partition_keys: Sequence[str] | None = None) -> dict[str, StoredEntry]:
        """Return the ledger's entries of an asset by partition key; of all partitions if none is named."""
        condition = "" if partition_keys is None else " AND partition_key = ANY(%s)"
        parameters: list[Any] = [asset] if partition_keys is None else [asset, list(partition_keys)]
        entries = self.entries(f"WHERE asset = %s{condition}", parameters)
        return {entry.partition_key: entry for entry in entries}

    def entries(self, condition: str, parameters: Sequence[Any]) -> list[StoredEntry]:
        """Return the ledger's entries by a condition of SQL."""
        rows = self.rows(f"SELECT {ENTRY_COLUMNS} FROM trajectory.partitions {condition}", parameters)
        return [StoredEntry(**row) for row in rows]

    def runs_moved_away(self, partition_key: str, run_ids: Sequence[str]) -> list[str]:
        """Return which of these runs are in another partition, by the newest observation of the source.

        A run moves when its ``completed_at`` changes. Until the partition that it left is read again, both have raw
        rows of it; the newer ones count, so that the run is in one partition.
        """
        with self.connect(autocommit=True) as connection, translating_database_errors(self.url, "Reading"):
            return run_locations.find_moved_runs(connection, partition_key, run_ids)

    def invalidations(self, partition_keys: Sequence[str]) -> dict[str, str]:
        """Return which of these partitions must be materialized again whatever the source holds, and why, in words."""
        rows = self.rows(invalidations.INVALIDATED_PARTITIONS, {"keys": list(partition_keys)})
        return {row["partition_key"]: row["reasons"] for row in rows}

    def withheld_deletions(self) -> dict[str, str]:
        """Return the partitions that were not captured because of what is missing at the source, and why, in words."""
        return {row["partition_key"]: row["reason"] for row in self.rows(invalidations.WITHHELD_DELETIONS)}

    def trajectory(self, run_id: str) -> dict[str, Any] | None:
        """Return a run's row of ``trajectories``; None where there is none."""
        return next(iter(self.rows("SELECT * FROM trajectory.trajectories WHERE run_id = %s", [run_id])), None)

    def quarantined(self, run_id: str) -> dict[str, Any] | None:
        """Return a run's row of ``quarantine``; None where there is none."""
        return next(iter(self.rows("SELECT * FROM trajectory.quarantine WHERE run_id = %s", [run_id])), None)

    def rows(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query as dicts."""
        with (
            self.connect(autocommit=True) as connection,
            translating_database_errors(self.url, "Reading"),
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(statement.encode(), parameters)
            return cursor.fetchall()
