"""One partition's transaction: its lock, its rows, its ledger entry; all of it is seen at once, or nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.lossless_json import storable_text, write_json
from trajectory_pipeline.runtime.threads import WriteBehind
from trajectory_pipeline.schema.bookkeeping import PARTITIONS
from trajectory_pipeline.storage.parquet.store import StagedFile, WrittenFile
from trajectory_pipeline.storage.postgres import invalidations, run_locations
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.copy_writer import STAGED, CopyWriter

Row = Mapping[str, Any]

_LOCK: LiteralString = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_SHARED_LOCK: LiteralString = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))"

_COLUMNS = ", ".join(column.name for column in STAGED)
_STAGE = (
    f"CREATE TEMP TABLE staged ON COMMIT DROP AS SELECT {_COLUMNS} FROM trajectory.trajectories WITH NO DATA".encode()
)
_COPY = f"COPY staged ({_COLUMNS}) FROM STDIN".encode()


def _of(alias: str) -> str:
    return ", ".join(f"{alias}.{column.name}" for column in STAGED)


_MERGE = (
    f"WITH merged AS (INSERT INTO trajectory.trajectories AS t ({_COLUMNS}, first_captured_at, updated_at)"
    f" SELECT {_COLUMNS}, coalesce(first_captured_at, now()), now() FROM staged s"
    " LEFT JOIN (SELECT run_id, partition_key AS place, first_captured_at FROM trajectory.run_locations) c"
    # Where another partition took a run meanwhile, that one has the newer version of it.
    " USING (run_id) WHERE (place IS NULL OR place = %s)"
    # Left out here, not only below: ON CONFLICT locks every row that it meets, and the server logs each lock.
    " AND NOT EXISTS (SELECT FROM trajectory.trajectories t WHERE t.run_id = s.run_id"
    f" AND ({_of('t')}) IS NOT DISTINCT FROM ({_of('s')})) ORDER BY run_id"
    f" ON CONFLICT (run_id) DO UPDATE SET ({_COLUMNS}) = ROW({_of('EXCLUDED')}), updated_at = now()"
    f" WHERE ({_of('t')}) IS DISTINCT FROM ({_of('EXCLUDED')}) RETURNING (xmax = 0) AS inserted)"
    " SELECT (SELECT count(*) FROM staged), count(*) FILTER (WHERE inserted),"
    " count(*) FILTER (WHERE NOT inserted) FROM merged"
).encode()

_ENTRY = tuple(column.name for column in PARTITIONS.columns if column.name != "materialized_at")
_RECORD = (
    f"INSERT INTO trajectory.partitions ({', '.join(_ENTRY)}, materialized_at)"
    f" VALUES ({', '.join(f'%({name})s' for name in _ENTRY)}, clock_timestamp())"
    f" ON CONFLICT (asset, partition_key) DO UPDATE SET ({', '.join(_ENTRY)}, materialized_at)"
    f" = ROW({', '.join(f'EXCLUDED.{name}' for name in _ENTRY)}, EXCLUDED.materialized_at)"
).encode()

_KEEP_IN_QUARANTINE = (
    "INSERT INTO trajectory.quarantine (run_id, partition_key, json_path, error, raw, steps, messages, first_seen_at,"
    " last_seen_at) VALUES (%(run_id)s, %(key)s, %(json_path)s, %(error)s, %(raw)s, %(steps)s, %(messages)s, now(),"
    " now())"
    " ON CONFLICT (run_id) DO UPDATE SET partition_key = EXCLUDED.partition_key, json_path = EXCLUDED.json_path,"
    " error = EXCLUDED.error, raw = EXCLUDED.raw, steps = EXCLUDED.steps, messages = EXCLUDED.messages,"
    " last_seen_at = EXCLUDED.last_seen_at"
)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class MergeStats:
    """What a partition's rows did to the table.

    Attributes:
        inserted: new rows.
        updated: rows whose content changed.
        unchanged: rows left alone.
        removed: rows of the partition that it no longer has.
    """

    inserted: int
    updated: int
    unchanged: int
    removed: int


class PartitionTransaction:
    """One transaction that holds a partition's lock; nothing of it is seen before it is committed."""

    def __init__(
        self,
        url: str,
        connection: psycopg.Connection,
        apart: Callable[[], AbstractContextManager[psycopg.Connection]],
        asset: str,
        partition_key: str,
        *,
        reads: str | None = None,
    ) -> None:
        """Wait for the partition's lock.

        Args:
            url: of the database.
            connection: in a transaction that the caller commits.
            apart: lends another connection, which commits by itself.
            asset: to be written.
            partition_key: of it.
            reads: asset that it is made of, if it is to be kept from being written meanwhile.

        Raises:
            SinkError: the database refuses.
        """
        self._url = url
        self._connection = connection
        self._apart = apart
        self._asset = asset
        self._key = partition_key
        self._entries: dict[str, dict[str, Any] | None] = {}
        self._was_unknown = False
        with translating_database_errors(url, f"Waiting for {asset} {partition_key}"):
            connection.execute(_LOCK, [lock_name(asset, partition_key)])
            if reads is not None:
                connection.execute(_SHARED_LOCK, [lock_name(reads, partition_key)])
        with translating_database_errors(url, f"Reading the notes on {partition_key}"):
            # What is noted from here on, this transaction may not have seen.
            self._invalidations = invalidations.invalidation_ids(connection, asset, partition_key)

    @property
    def connection(self) -> psycopg.Connection:
        """The transaction, for statements of other modules of the sinks."""
        return self._connection

    @property
    def url(self) -> str:
        """Of the database, for what is said when such a statement fails."""
        return self._url

    @property
    def partition_key(self) -> str:
        """Dagster's key of the partition."""
        return self._key

    @property
    def has_invalidations(self) -> bool:
        """Whether a note asks for the partition to be materialized again, whatever it holds."""
        return bool(self._invalidations)

    def entry(self, asset: str) -> dict[str, Any] | None:
        """Return the ledger's entry of an asset's partition; None where there is none."""
        if asset not in self._entries:
            with (
                translating_database_errors(self._url, f"Reading the ledger of {self._key}"),
                self._connection.cursor(row_factory=dict_row) as cursor,
            ):
                self._entries[asset] = cursor.execute(
                    "SELECT * FROM trajectory.partitions WHERE asset = %s AND partition_key = %s", [asset, self._key]
                ).fetchone()
        return self._entries[asset]

    def lock(self, asset: str, partition_key: str) -> None:
        """Keep others from writing one more partition until this transaction ends; waits for who does."""
        with translating_database_errors(self._url, f"Waiting for {asset} {partition_key}"):
            self._connection.execute(_LOCK, [lock_name(asset, partition_key)])

    @contextmanager
    def staging(self) -> Iterator[CopyWriter]:
        """Open a COPY into a staging table; after the block ``merge`` takes its rows over."""
        with translating_database_errors(self._url, f"Staging trajectories of {self._key}"):
            self._connection.execute(_STAGE)
            with (
                self._connection.cursor() as cursor,
                cursor.copy(_COPY) as copy,
                # Inside the COPY: what is still on its way must be there before its end.
                WriteBehind() as behind,
            ):
                yield CopyWriter(copy, behind)

    def merge(self) -> MergeStats:
        """Make the partition's rows equal to the staged ones; rows that did not change are left alone."""
        with translating_database_errors(self._url, f"Writing trajectories of {self._key}"):
            self._connection.execute("ALTER TABLE staged ADD PRIMARY KEY (run_id)")
            removed = self.remove(
                "t.partition_key = %s AND NOT EXISTS (SELECT FROM staged s WHERE s.run_id = t.run_id)", self._key
            )
            row = self._connection.execute(_MERGE, [self._key]).fetchone()
        staged, inserted, updated = row or (0, 0, 0)
        return MergeStats(inserted, updated, staged - inserted - updated, removed)

    def clear(self) -> MergeStats:
        """Take out what the partition holds, trajectories and quarantine: no run is in it."""
        with translating_database_errors(self._url, f"Writing trajectories of {self._key}"):
            removed = self.remove("t.partition_key = %s", self._key)
            self._connection.execute("DELETE FROM trajectory.quarantine WHERE partition_key = %s", [self._key])
        return MergeStats(inserted=0, updated=0, unchanged=0, removed=removed)

    def set_quarantine(self, rows: Sequence[Row]) -> None:
        """Make the partition's quarantine equal to these runs: a mended one leaves, a known one keeps its first date.

        A run is in one place: one that was merged leaves the quarantine of any partition, and one that is put here
        leaves the trajectories of any partition. To be called after ``merge``.
        """
        run_ids = [row["run_id"] for row in rows]
        with (
            translating_database_errors(self._url, f"Writing the quarantine of {self._key}"),
            self._connection.cursor() as cursor,
        ):
            cursor.execute(
                "DELETE FROM trajectory.quarantine q WHERE (q.partition_key = %s AND NOT (q.run_id = ANY(%s)))"
                " OR EXISTS (SELECT FROM staged s WHERE s.run_id = q.run_id)",
                [self._key, run_ids],
            )
            if rows:
                self.remove("t.run_id = ANY(%s)", run_ids)
                cursor.executemany(
                    _KEEP_IN_QUARANTINE,
                    # What an error quotes may hold what Postgres text cannot.
                    [
                        {
                            **row,
                            "key": self._key,
                            "json_path": storable_text(row["json_path"]),
                            "error": storable_text(row["error"]),
                        }
                        for row in sorted(rows, key=lambda row: str(row["run_id"]))
                    ],
                )

    def remove(self, condition: LiteralString, value: Any) -> int:
        """Remove trajectories ``t`` by a condition, and keep when they were first captured: they may come back."""
        return self._connection.execute(
            f"WITH gone AS (DELETE FROM trajectory.trajectories t WHERE {condition}"
            " RETURNING run_id, first_captured_at),"
            " kept AS (UPDATE trajectory.run_locations c SET first_captured_at = gone.first_captured_at FROM gone"
            " WHERE c.run_id = gone.run_id) SELECT FROM gone",
            [value],
        ).rowcount

    def set_run_locations(self, observation: run_locations.SnapshotObservation) -> None:
        """Note where the runs are that a look at the source concerns."""
        with translating_database_errors(self._url, f"Noting where the runs of {self._key} are"):
            run_locations.record_locations(self._connection, self._key, observation)

    def publish(self, prepared: StagedFile) -> WrittenFile:
        """Put the partition's file in place: the last thing before the commit.

        A note of it is committed first, by a connection of its own, and goes with this transaction: if the process
        ends in between, file and rows differ, and the note makes the partition be materialized again. Of a
        partition that was not there, no file and an empty one hold the same: no note is needed of that.
        """
        if not prepared.is_published and not (self._was_unknown and prepared.is_first_and_empty):
            with translating_database_errors(self._url, f"Noting that the file of {self._key} is replaced"):
                with self._apart() as apart:
                    pending = invalidations.invalidate(apart, self._asset, self._key, "a materialization did not end")
                invalidations.clear_invalidations(self._connection, [pending])
        return prepared.publish()

    def record(self, entry: LedgerEntry) -> None:
        """Write the partition's ledger entry; what was noted before this transaction began is settled."""
        with translating_database_errors(self._url, f"Writing the ledger of {self._key}"):
            self._was_unknown = self.entry(entry.asset) is None
            invalidations.clear_invalidations(self._connection, self._invalidations)
            self._entries.pop(entry.asset)
            self._connection.execute(_RECORD, {**asdict(entry), "counts": write_json(dict(entry.counts))})


def lock_name(asset: str, partition_key: str) -> str:
    """Return what the advisory lock of a partition is called, before Postgres makes a number of it."""
    return f"trajectory {asset} {partition_key}"
