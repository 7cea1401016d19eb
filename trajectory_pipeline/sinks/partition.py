"""One partition's transaction: its lock, its rows, its ledger entry; all of it is seen at once, or nothing.

Belongs here: every statement that writes trajectories, the ledger and the quarantine of a partition. Does not belong
here: connections and what is read back (``sinks.database``), verdicts (``sinks.verdicts``), and what a row means.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from trajectory_pipeline.overlap import WriteBehind
from trajectory_pipeline.schema.ledger import CAPTURED_RUNS, PARTITIONS, QUARANTINE
from trajectory_pipeline.schema.sql import SCHEMA_NAME
from trajectory_pipeline.schema.trajectory import TRAJECTORIES
from trajectory_pipeline.sinks import places
from trajectory_pipeline.sinks.connection import writing
from trajectory_pipeline.sinks.parquet import Prepared, Written
from trajectory_pipeline.sinks.staging import STAGED, Staging
from trajectory_pipeline.trajectories.json_text import storable_text, write

Row = Mapping[str, Any]

_LOCK: LiteralString = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_SHARED_LOCK: LiteralString = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))"


@dataclass(frozen=True)
class LedgerEntry:
    """What a partition of an asset holds; see ``schema.ledger.PARTITIONS``."""

    asset: str
    partition_key: str
    result: str
    counts: Mapping[str, int]
    content_digest: str
    schema_version: str
    fingerprint: str | None = None
    input_digest: str | None = None
    snapshot_at: datetime | None = None
    dagster_run_id: str | None = None
    made_with: str | None = None
    rows_version: str | None = None


@dataclass(frozen=True)
class Merged:
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
        with writing(url, f"Waiting for {asset} {partition_key}"):
            connection.execute(_LOCK, [lock_name(asset, partition_key)])
            if reads is not None:
                connection.execute(_SHARED_LOCK, [lock_name(reads, partition_key)])
        with writing(url, f"Reading the notes on {partition_key}"):
            # What is noted from here on, this transaction may not have seen.
            self._notes = places.notes(connection, asset, partition_key)

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
    def is_noted(self) -> bool:
        """Whether a note asks for the partition to be materialised again, whatever it holds."""
        return bool(self._notes)

    def entry(self, asset: str) -> dict[str, Any] | None:
        """Return the ledger's entry of an asset's partition; None where there is none."""
        with (
            writing(self._url, f"Reading the ledger of {self._key}"),
            self._connection.cursor(row_factory=dict_row) as cursor,
        ):
            return cursor.execute(
                sql.SQL("SELECT * FROM {} WHERE asset = %s AND partition_key = %s").format(_table(PARTITIONS.name)),
                [asset, self._key],
            ).fetchone()

    def lock(self, asset: str, partition_key: str) -> None:
        """Keep others from writing one more partition until this transaction ends; waits for who does."""
        with writing(self._url, f"Waiting for {asset} {partition_key}"):
            self._connection.execute(_LOCK, [lock_name(asset, partition_key)])

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """Open a COPY into a staging table; after the block ``merge`` takes its rows over."""
        columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in STAGED)
        with writing(self._url, f"Staging trajectories of {self._key}"):
            self._connection.execute(
                sql.SQL("CREATE TEMP TABLE staged ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                    columns, _table(TRAJECTORIES.name)
                )
            )
            with (
                self._connection.cursor() as cursor,
                cursor.copy(sql.SQL("COPY staged ({}) FROM STDIN").format(columns)) as copy,
                # Inside the COPY: what is still on its way must be there before its end.
                WriteBehind() as behind,
            ):
                yield Staging(copy, behind)

    def merge(self) -> Merged:
        """Make the partition's rows equal to the staged ones; rows that did not change are left alone."""
        names = [column.name for column in STAGED]
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        with writing(self._url, f"Writing trajectories of {self._key}"):
            self._connection.execute("ALTER TABLE staged ADD PRIMARY KEY (run_id)")
            removed = self.remove(
                sql.SQL("t.partition_key = %s AND NOT EXISTS (SELECT FROM staged s WHERE s.run_id = t.run_id)"),
                self._key,
            )
            row = self._connection.execute(
                sql.SQL(
                    "WITH merged AS (INSERT INTO {table} AS t ({columns}, first_captured_at, updated_at)"
                    " SELECT {columns}, coalesce(first_captured_at, now()), now()"
                    # Where another partition took a run meanwhile, that one has the newer version of it.
                    " FROM staged LEFT JOIN (SELECT run_id, partition_key AS place, first_captured_at FROM {places}) c"
                    " USING (run_id) WHERE place IS NULL OR place = %s ORDER BY run_id"
                    " ON CONFLICT (run_id) DO UPDATE SET {updates}, updated_at = now()"
                    " WHERE ({old}) IS DISTINCT FROM ({new}) RETURNING (xmax = 0) AS inserted)"
                    " SELECT (SELECT count(*) FROM staged), count(*) FILTER (WHERE inserted),"
                    " count(*) FILTER (WHERE NOT inserted) FROM merged"
                ).format(
                    table=_table(TRAJECTORIES.name),
                    places=_table(CAPTURED_RUNS.name),
                    columns=columns,
                    updates=sql.SQL(", ").join(
                        sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in names if name != "run_id"
                    ),
                    old=sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in names),
                    new=sql.SQL(", ").join(sql.SQL("EXCLUDED.{}").format(sql.Identifier(name)) for name in names),
                ),
                [self._key],
            ).fetchone()
        staged, inserted, updated = row or (0, 0, 0)
        return Merged(inserted, updated, staged - inserted - updated, removed)

    def set_quarantine(self, rows: Sequence[Row]) -> None:
        """Make the partition's quarantine equal to these runs: a mended one leaves, a known one keeps its first date.

        A run is in one place: one that was merged leaves the quarantine of any partition, and one that is put here
        leaves the trajectories of any partition. To be called after ``merge``.
        """
        run_ids = [row["run_id"] for row in rows]
        with writing(self._url, f"Writing the quarantine of {self._key}"), self._connection.cursor() as cursor:
            cursor.execute(
                sql.SQL(
                    "DELETE FROM {} q WHERE (q.partition_key = %s AND NOT (q.run_id = ANY(%s)))"
                    " OR EXISTS (SELECT FROM staged s WHERE s.run_id = q.run_id)"
                ).format(_table(QUARANTINE.name)),
                [self._key, run_ids],
            )
            self.remove(sql.SQL("t.run_id = ANY(%s)"), run_ids)
            if rows:
                cursor.executemany(
                    sql.SQL(
                        "INSERT INTO {} (run_id, partition_key, place, error, raw, steps, messages, first_seen_at,"
                        " last_seen_at) VALUES (%(run_id)s, %(key)s, %(place)s, %(error)s, %(raw)s, %(steps)s,"
                        " %(messages)s, now(), now()) ON CONFLICT (run_id) DO UPDATE SET"
                        " partition_key = EXCLUDED.partition_key, place = EXCLUDED.place, error = EXCLUDED.error,"
                        " raw = EXCLUDED.raw, steps = EXCLUDED.steps, messages = EXCLUDED.messages,"
                        " last_seen_at = EXCLUDED.last_seen_at"
                    ).format(_table(QUARANTINE.name)),
                    # What an error quotes may hold what Postgres text cannot.
                    [
                        {
                            **row,
                            "key": self._key,
                            "place": storable_text(row["place"]),
                            "error": storable_text(row["error"]),
                        }
                        for row in sorted(rows, key=lambda row: str(row["run_id"]))
                    ],
                )

    def remove(self, condition: sql.Composable, value: Any) -> int:
        """Remove trajectories ``t`` by a condition, and keep when they were first captured: they may come back."""
        return self._connection.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM {table} t WHERE {condition} RETURNING run_id, first_captured_at),"
                " kept AS (UPDATE {places} c SET first_captured_at = gone.first_captured_at FROM gone"
                " WHERE c.run_id = gone.run_id) SELECT FROM gone"
            ).format(table=_table(TRAJECTORIES.name), places=_table(CAPTURED_RUNS.name), condition=condition),
            [value],
        ).rowcount

    def place(self, sightings: places.Sightings) -> None:
        """Note where the runs are that a look at the source concerns."""
        with writing(self._url, f"Noting where the runs of {self._key} are"):
            places.place(self._connection, self._key, sightings)

    def publish(self, prepared: Prepared) -> Written:
        """Put the partition's file in place: the last thing before the commit.

        A note of it is committed first, by a connection of its own, and goes with this transaction: if the process
        ends in between, file and rows differ, and the note makes the partition be materialised again.
        """
        if not prepared.is_published:
            with writing(self._url, f"Noting that the file of {self._key} is replaced"):
                with self._apart() as apart:
                    note = places.note(apart, self._asset, self._key, "a materialisation did not end")
                places.forget(self._connection, [note])
        return prepared.publish()

    def record(self, entry: LedgerEntry) -> None:
        """Write the partition's ledger entry; what was noted before this transaction began is settled."""
        with writing(self._url, f"Writing the ledger of {self._key}"):
            places.forget(self._connection, self._notes)
        with writing(self._url, f"Writing the ledger of {self._key}"):
            self._connection.execute(
                sql.SQL(
                    "INSERT INTO {} (asset, partition_key, result, fingerprint, counts, content_digest, input_digest,"
                    " snapshot_at, materialized_at, schema_version, dagster_run_id, made_with, rows_version)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp(), %s, %s, %s, %s)"
                    " ON CONFLICT (asset, partition_key) DO UPDATE SET"
                    " result = EXCLUDED.result, fingerprint = EXCLUDED.fingerprint, counts = EXCLUDED.counts,"
                    " content_digest = EXCLUDED.content_digest, input_digest = EXCLUDED.input_digest,"
                    " snapshot_at = EXCLUDED.snapshot_at,"
                    " materialized_at = EXCLUDED.materialized_at, schema_version = EXCLUDED.schema_version,"
                    " dagster_run_id = EXCLUDED.dagster_run_id, made_with = EXCLUDED.made_with,"
                    " rows_version = EXCLUDED.rows_version"
                ).format(_table(PARTITIONS.name)),
                [
                    entry.asset,
                    entry.partition_key,
                    entry.result,
                    entry.fingerprint,
                    write(dict(entry.counts)),
                    entry.content_digest,
                    entry.input_digest,
                    entry.snapshot_at,
                    entry.schema_version,
                    entry.dagster_run_id,
                    entry.made_with,
                    entry.rows_version,
                ],
            )


def lock_name(asset: str, partition_key: str) -> str:
    """Return what the advisory lock of a partition is called, before Postgres makes a number of it."""
    return f"trajectory {asset} {partition_key}"


def _table(name: str) -> sql.Identifier:
    return sql.Identifier(SCHEMA_NAME, name)
