"""One partition's transaction: its lock, its rows, its ledger entry; all of it becomes visible at once, or nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import class_row

from trajectory_pipeline.lossless_json import storable_text, write_json
from trajectory_pipeline.runtime.threads import WriteBehind
from trajectory_pipeline.storage.parquet.store import StagedFile, WrittenFile
from trajectory_pipeline.storage.postgres import invalidations, run_locations
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.copy_writer import STAGED, CopyWriter

_LOCK: LiteralString = "SELECT clock_timestamp() FROM pg_advisory_xact_lock(hashtextextended(%s, 0))"
_SHARED_LOCK: LiteralString = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))"

_COLUMNS = ", ".join(column.name for column in STAGED)
_STAGE = (
    f"CREATE TEMP TABLE staged ON COMMIT DROP AS SELECT {_COLUMNS} FROM trajectory.trajectories WITH NO DATA".encode()
)
_COPY = f"COPY staged ({_COLUMNS}) FROM STDIN".encode()


def _columns_of(alias: str) -> str:
    return ", ".join(f"{alias}.{column.name}" for column in STAGED)


def merge_statement(unique: str = "run_id") -> bytes:
    """Return the statement that takes over the staged rows of a partition; ``unique`` are the table's key columns."""
    return (
        f"WITH merged AS (INSERT INTO trajectory.trajectories AS t ({_COLUMNS}, first_captured_at, updated_at)"
        f" SELECT {_COLUMNS}, coalesce(first_captured_at, now()), now() FROM staged s"
        " LEFT JOIN (SELECT run_id, partition_key AS located, first_captured_at FROM trajectory.run_locations) c"
        # Where another partition took a run meanwhile, that one has the newer version of it.
        " USING (run_id) WHERE (located IS NULL OR located = %s)"
        # Left out here, not only below: ON CONFLICT locks every row that it meets, and the server logs each lock.
        " AND NOT EXISTS (SELECT FROM trajectory.trajectories t WHERE t.run_id = s.run_id"
        f" AND ({_columns_of('t')}) IS NOT DISTINCT FROM ({_columns_of('s')})) ORDER BY run_id"
        f" ON CONFLICT ({unique}) DO UPDATE SET ({_COLUMNS}) = ROW({_columns_of('EXCLUDED')}), updated_at = now()"
        f" WHERE ({_columns_of('t')}) IS DISTINCT FROM ({_columns_of('EXCLUDED')}) RETURNING (xmax = 0) AS inserted)"
        " SELECT (SELECT count(*) FROM staged), count(*) FILTER (WHERE inserted),"
        " count(*) FILTER (WHERE NOT inserted) FROM merged"
    ).encode()


_MERGE = merge_statement()

_QUARANTINE = (
    "INSERT INTO trajectory.quarantine (run_id, partition_key, json_path, error, raw, steps, messages, first_seen_at,"
    " last_seen_at) VALUES (%(run_id)s, %(key)s, %(json_path)s, %(error)s, %(raw)s, %(steps)s, %(messages)s, now(),"
    " now())"
    " ON CONFLICT (run_id) DO UPDATE SET partition_key = EXCLUDED.partition_key, json_path = EXCLUDED.json_path,"
    " error = EXCLUDED.error, raw = EXCLUDED.raw, steps = EXCLUDED.steps, messages = EXCLUDED.messages,"
    " last_seen_at = EXCLUDED.last_seen_at"
)

_ROWS_CHECKSUM: LiteralString = (
    "SELECT md5(string_agg(concat_ws(':', kind, rows, sum), ',' ORDER BY kind)) FROM ("
    "SELECT 1 AS kind, count(*) AS rows, sum(hashtextextended(run_id || ':' || xmin::text, 0)::numeric) AS sum"
    " FROM trajectory.trajectories WHERE partition_key = %(key)s"
    " UNION ALL SELECT 2, count(*), sum(hashtextextended(run_id || ':' || xmin::text, 0)::numeric)"
    " FROM trajectory.quarantine WHERE partition_key = %(key)s) p"
)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What a partition of an asset holds; see ``schema.bookkeeping.PARTITIONS``."""

    asset: str
    partition_key: str
    result: str
    counts: Mapping[str, int]
    content_digest: str
    schema_version: str
    fingerprint: str | None = None
    upstream_digest: str | None = None
    snapshot_at: datetime | None = None
    dagster_run_id: str | None = None
    inputs_digest: str | None = None
    rows_checksum: str | None = None
    source_identity: str | None = None
    source_position: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry(LedgerEntry):
    """An entry as the ledger has it."""

    materialized_at: datetime


ENTRY_COLUMNS = ", ".join(field.name for field in fields(StoredEntry))
"""Columns to select for a ``StoredEntry``."""
_ENTRY = tuple(field.name for field in fields(LedgerEntry))
_RECORD = (
    f"INSERT INTO trajectory.partitions ({', '.join(_ENTRY)}, materialized_at)"
    f" VALUES ({', '.join(f'%({name})s' for name in _ENTRY)}, clock_timestamp())"
    f" ON CONFLICT (asset, partition_key) DO UPDATE SET ({', '.join(_ENTRY)}, materialized_at)"
    f" = ROW({', '.join(f'EXCLUDED.{name}' for name in _ENTRY)}, EXCLUDED.materialized_at)"
).encode()


@dataclass(frozen=True)
class MergeStats:
    """What a partition's rows did to the table; ``removed`` are rows of the partition that it no longer has."""

    inserted: int
    updated: int
    unchanged: int
    removed: int


class PartitionTransaction:
    """One transaction that holds a partition's lock; nothing of it is visible before it is committed.

    ``connection``, ``url`` and ``partition_key`` are for statements of other modules in the same transaction,
    ``connect_apart`` for those that must stay if it is rolled back: it opens a connection that commits by itself.
    ``locked_at`` is when the lock was taken, by the database's clock.
    Methods raise ``SinkError`` if the database refuses.
    """

    def __init__(
        self,
        url: str,
        connection: psycopg.Connection,
        connect: Callable[[], AbstractContextManager[psycopg.Connection]],
        asset: str,
        partition_key: str,
        *,
        reads: str | None = None,
    ) -> None:
        """Wait for the partition's lock, on a connection in a transaction that the caller commits.

        ``connect`` opens another connection, which commits by itself; no other process may write ``reads`` meanwhile.
        """
        self.url = url
        self.connection = connection
        self.partition_key = partition_key
        self.connect_apart = connect
        self._asset = asset
        self._entries: dict[str, StoredEntry | None] = {}
        self._is_new = False
        with translating_database_errors(url, f"Waiting for {asset} {partition_key}"):
            self.locked_at: datetime = next(connection.execute(_LOCK, [_lock_name(asset, partition_key)]))[0]
            if reads is not None:
                connection.execute(_SHARED_LOCK, [_lock_name(reads, partition_key)])
        with translating_database_errors(url, f"Reading the notes on {partition_key}"):
            # Later ones stay when the entry is recorded: this transaction may not have seen their cause.
            self._invalidations = invalidations.invalidation_ids(connection, asset, partition_key)

    @property
    def has_invalidations(self) -> bool:
        """Whether the partition must be materialized again, whatever it holds."""
        return bool(self._invalidations)

    def entry(self, asset: str) -> StoredEntry | None:
        """Return the ledger's entry of an asset's partition; None where there is none."""
        if asset not in self._entries:
            with (
                translating_database_errors(self.url, f"Reading the ledger of {self.partition_key}"),
                self.connection.cursor(row_factory=class_row(StoredEntry)) as cursor,
            ):
                self._entries[asset] = cursor.execute(
                    f"SELECT {ENTRY_COLUMNS} FROM trajectory.partitions WHERE asset = %s AND partition_key = %s",
                    [asset, self.partition_key],
                ).fetchone()
        return self._entries[asset]

    def lock(self, asset: str, partition_key: str) -> None:
        """Lock one more partition for writing until this transaction ends; waits for another writer."""
        with translating_database_errors(self.url, f"Waiting for {asset} {partition_key}"):
            self.connection.execute(_LOCK, [_lock_name(asset, partition_key)])

    @contextmanager
    def staging(self) -> Iterator[CopyWriter]:
        """Open a COPY into a staging table, whose rows ``merge`` takes over after the block."""
        with translating_database_errors(self.url, f"Staging trajectories of {self.partition_key}"):
            self.connection.execute(_STAGE)
            with (
                self.connection.cursor() as cursor,
                cursor.copy(_COPY) as copy,
                # Inside the COPY: what is still to be written must be there before its end.
                WriteBehind() as behind,
            ):
                yield CopyWriter(copy, behind)

    def merge(self, *, kept: int = 0, gone: Sequence[str] | None = None) -> MergeStats:
        """Make the partition's rows equal to the staged ones; rows that did not change are left alone.

        Where only some were staged, ``gone`` are the rows that the partition has no longer, and ``kept`` counts those
        that stay as they are.
        """
        with translating_database_errors(self.url, f"Writing trajectories of {self.partition_key}"):
            self.connection.execute("ALTER TABLE staged ADD PRIMARY KEY (run_id)")
            if gone is None:
                removed = self.remove(
                    "t.partition_key = %s AND NOT EXISTS (SELECT FROM staged s WHERE s.run_id = t.run_id)",
                    self.partition_key,
                )
            else:
                removed = self.remove("t.partition_key = %s AND t.run_id = ANY(%s)", self.partition_key, list(gone))
            row = self.connection.execute(_MERGE, [self.partition_key]).fetchone()
        staged, inserted, updated = row or (0, 0, 0)
        return MergeStats(inserted, updated, kept + staged - inserted - updated, removed)

    def clear(self) -> MergeStats:
        """Remove the trajectories and the quarantine of a partition that has no runs."""
        with translating_database_errors(self.url, f"Writing trajectories of {self.partition_key}"):
            removed = self.remove("t.partition_key = %s", self.partition_key)
            self.connection.execute("DELETE FROM trajectory.quarantine WHERE partition_key = %s", [self.partition_key])
        return MergeStats(inserted=0, updated=0, unchanged=0, removed=removed)

    def set_quarantine(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make the partition's quarantine equal to these runs; a run that was in it keeps its first date.

        Call it after ``merge``: a run that was merged leaves the quarantine of any partition, and one that is
        quarantined here leaves the trajectories of any partition.
        """
        run_ids = [row["run_id"] for row in rows]
        with (
            translating_database_errors(self.url, f"Writing the quarantine of {self.partition_key}"),
            self.connection.cursor() as cursor,
        ):
            cursor.execute(
                "DELETE FROM trajectory.quarantine q WHERE (q.partition_key = %s AND NOT (q.run_id = ANY(%s)))"
                " OR EXISTS (SELECT FROM staged s WHERE s.run_id = q.run_id)",
                [self.partition_key, run_ids],
            )
            if not rows:
                return
            self.remove("t.run_id = ANY(%s)", run_ids)
            # An error may quote what Postgres text cannot hold.
            storable = [{**row, **{name: storable_text(row[name]) for name in ("json_path", "error")}} for row in rows]
            storable.sort(key=lambda row: str(row["run_id"]))
            cursor.executemany(_QUARANTINE, [{**row, "key": self.partition_key} for row in storable])

    def remove(self, condition: LiteralString, *values: Any) -> int:
        """Remove trajectories ``t`` by a condition; their first capture is remembered, as they may come back."""
        return self.connection.execute(
            f"WITH gone AS (DELETE FROM trajectory.trajectories t WHERE {condition}"
            " RETURNING run_id, first_captured_at),"
            " remembered AS (UPDATE trajectory.run_locations c SET first_captured_at = gone.first_captured_at FROM gone"
            " WHERE c.run_id = gone.run_id) SELECT FROM gone",
            values,
        ).rowcount

    def runs_moved_away(self, run_ids: Sequence[str]) -> list[str]:
        """Return which of these runs are in another partition, by the newest observation of the source."""
        with translating_database_errors(self.url, f"Locating the runs of {self.partition_key}"):
            return run_locations.find_moved_runs(self.connection, self.partition_key, run_ids)

    def all_located(self, run_ids: Sequence[str]) -> bool:
        """Whether each of these runs is recorded as being in this partition."""
        statement: LiteralString = (
            "SELECT count(*) FROM trajectory.run_locations WHERE partition_key = %(key)s AND run_id = ANY(%(ids)s)"
        )
        return bool(self._value("Locating the runs", statement, ids=list(run_ids)) == len(run_ids))

    def rows_checksum(self) -> str:
        """Return a digest that any change to the partition's rows in Postgres changes, whoever makes it.

        Any change to a row changes its ``xmin``, as at the source. Rows of other partitions do not count.
        """
        return str(self._value("Comparing the rows", _ROWS_CHECKSUM))

    def documents_omitted(self) -> int:
        """Return how many of the partition's trajectories have no document in Postgres."""
        statement: LiteralString = (
            "SELECT count(*) FROM trajectory.trajectories"
            " WHERE partition_key = %(key)s AND data_omitted_reason IS NOT NULL"
        )
        return int(self._value("Counting documents", statement))

    def _value(self, doing: str, statement: LiteralString, **parameters: object) -> Any:
        with translating_database_errors(self.url, f"{doing} of {self.partition_key}"):
            row = self.connection.execute(statement, {"key": self.partition_key, **parameters}).fetchone()
        return row[0] if row else None

    def set_run_locations(self, observation: run_locations.SnapshotObservation) -> None:
        """Record where the runs of an observation are."""
        with translating_database_errors(self.url, f"Noting where the runs of {self.partition_key} are"):
            run_locations.record_locations(self.connection, self.partition_key, observation)

    def publish(self, staged: StagedFile) -> WrittenFile:
        """Put the partition's file in place: the last thing before the commit.

        An invalidation is committed first, on another connection, and deleted with this transaction: if the process
        ends in between, file and rows differ, and the partition is materialized again. A new partition without rows
        needs none: no file and an empty one mean the same.
        """
        if not staged.is_published and not (self._is_new and staged.is_first_and_empty):
            with translating_database_errors(self.url, f"Noting that the file of {self.partition_key} is replaced"):
                with self.connect_apart() as other:
                    reason = "a materialization did not end"
                    pending = invalidations.invalidate(other, self._asset, self.partition_key, reason)
                invalidations.clear_invalidations(self.connection, [pending])
        return staged.publish()

    def record(self, entry: LedgerEntry) -> None:
        """Write the partition's ledger entry, and clear the invalidations from before this transaction began."""
        with translating_database_errors(self.url, f"Writing the ledger of {self.partition_key}"):
            self._is_new = self.entry(entry.asset) is None
            invalidations.clear_invalidations(self.connection, self._invalidations)
            self._entries.pop(entry.asset)
            self.connection.execute(_RECORD, {**asdict(entry), "counts": write_json(dict(entry.counts))})


def _lock_name(asset: str, partition_key: str) -> str:
    return f"trajectory {asset} {partition_key}"
