"""The trajectory database: rows of one partition in one transaction, and what is read back.

Belongs here: every statement against the schema ``trajectory`` that concerns trajectories, the ledger and the
quarantine. Does not belong here: verdicts (``sinks.verdicts``), and what a row means.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from trajectory_pipeline.schema.ledger import PARTITIONS, QUARANTINE
from trajectory_pipeline.schema.sql import SCHEMA_NAME
from trajectory_pipeline.schema.trajectory import TRAJECTORIES
from trajectory_pipeline.schema.types import Column, ListOf, Scalar, Sink, Struct
from trajectory_pipeline.sinks.connection import connect, writing
from trajectory_pipeline.sinks.migration import require_migrated
from trajectory_pipeline.trajectories.json_text import storable_text, write

Row = Mapping[str, Any]

_OURS = ("first_captured_at", "updated_at")
_STAGED = tuple(column for column in TRAJECTORIES.in_sink(Sink.POSTGRES) if column.name not in _OURS)


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
    snapshot_at: datetime | None = None
    dagster_run_id: str | None = None


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

    def __init__(self, url: str, connection: psycopg.Connection, asset: str, partition_key: str) -> None:
        self._url = url
        self._connection = connection
        self._asset = asset
        self._key = partition_key

    @contextmanager
    def staging(self) -> Iterator["Staging"]:
        """Open a COPY into a staging table; after the block ``merge`` takes its rows over."""
        columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in _STAGED)
        with writing(self._url, f"Staging trajectories of {self._key}"):
            self._connection.execute(
                sql.SQL("CREATE TEMP TABLE staged ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                    columns, _table(TRAJECTORIES.name)
                )
            )
            with (
                self._connection.cursor() as cursor,
                cursor.copy(sql.SQL("COPY staged ({}) FROM STDIN").format(columns)) as copy,
            ):
                yield Staging(copy)

    def merge(self) -> Merged:
        """Make the partition's rows equal to the staged ones; rows that did not change are left alone."""
        names = [column.name for column in _STAGED]
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        with writing(self._url, f"Writing trajectories of {self._key}"):
            self._connection.execute("ALTER TABLE staged ADD PRIMARY KEY (run_id)")
            removed = self._connection.execute(
                sql.SQL(
                    "DELETE FROM {table} t WHERE t.partition_key = %s"
                    " AND NOT EXISTS (SELECT FROM staged s WHERE s.run_id = t.run_id)"
                ).format(table=_table(TRAJECTORIES.name)),
                [self._key],
            ).rowcount
            row = self._connection.execute(
                sql.SQL(
                    "WITH merged AS (INSERT INTO {table} AS t ({columns}, first_captured_at, updated_at)"
                    " SELECT {columns}, now(), now() FROM staged ORDER BY run_id"
                    " ON CONFLICT (run_id) DO UPDATE SET {updates}, updated_at = now()"
                    " WHERE ({old}) IS DISTINCT FROM ({new}) RETURNING (xmax = 0) AS inserted)"
                    " SELECT (SELECT count(*) FROM staged), count(*) FILTER (WHERE inserted),"
                    " count(*) FILTER (WHERE NOT inserted) FROM merged"
                ).format(
                    table=_table(TRAJECTORIES.name),
                    columns=columns,
                    updates=sql.SQL(", ").join(
                        sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in names if name != "run_id"
                    ),
                    old=sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in names),
                    new=sql.SQL(", ").join(sql.SQL("EXCLUDED.{}").format(sql.Identifier(name)) for name in names),
                )
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
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE run_id = ANY(%s)").format(_table(TRAJECTORIES.name)), [run_ids]
            )
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

    def record(self, entry: LedgerEntry) -> None:
        """Write the partition's ledger entry."""
        with writing(self._url, f"Writing the ledger of {self._key}"):
            self._connection.execute(
                sql.SQL(
                    "INSERT INTO {} (asset, partition_key, result, fingerprint, counts, content_digest, snapshot_at,"
                    " materialized_at, schema_version, dagster_run_id) VALUES (%s, %s, %s, %s, %s, %s, %s,"
                    " clock_timestamp(), %s, %s) ON CONFLICT (asset, partition_key) DO UPDATE SET"
                    " result = EXCLUDED.result, fingerprint = EXCLUDED.fingerprint, counts = EXCLUDED.counts,"
                    " content_digest = EXCLUDED.content_digest, snapshot_at = EXCLUDED.snapshot_at,"
                    " materialized_at = EXCLUDED.materialized_at, schema_version = EXCLUDED.schema_version,"
                    " dagster_run_id = EXCLUDED.dagster_run_id"
                ).format(_table(PARTITIONS.name)),
                [
                    entry.asset,
                    entry.partition_key,
                    entry.result,
                    entry.fingerprint,
                    write(dict(entry.counts)),
                    entry.content_digest,
                    entry.snapshot_at,
                    entry.schema_version,
                    entry.dagster_run_id,
                ],
            )


class Staging:
    """An open COPY into the staging table."""

    def __init__(self, copy: psycopg.Copy) -> None:
        self._copy = copy
        self.rows = 0

    def add(self, row: Row, data: str | None, data_omitted_reason: str | None) -> None:
        """Stage a trajectory with its document as JSON text."""
        values = {**row, "data": data, "data_omitted_reason": data_omitted_reason}
        self._copy.write_row([_copied(column, values[column.name]) for column in _STAGED])
        self.rows += 1


@dataclass(frozen=True)
class TrajectoryDatabase:
    """The Postgres that holds the schema ``trajectory``.

    Attributes:
        url: ``postgresql://user:password@host:port/database``.
    """

    url: str = field(repr=False)

    @contextmanager
    def connect(self, *, autocommit: bool = False) -> Iterator[psycopg.Connection]:
        """Open a connection to a migrated schema.

        Raises:
            SinkError: the database cannot be reached, or is not migrated; the text says what to run.
        """
        with connect(self.url, autocommit=autocommit) as connection:
            with writing(self.url, "Looking for the schema"):
                require_migrated(self.url, connection)
            yield connection

    @contextmanager
    def partition(self, asset: str, partition_key: str) -> Iterator[PartitionTransaction]:
        """Open one partition for writing: waits until nobody else writes it, commits at the end or not at all.

        Raises:
            SinkError: the database cannot be reached, is not migrated or refuses.
        """
        with self.connect() as connection:
            with writing(self.url, f"Waiting for {asset} {partition_key}"):
                connection.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"trajectory {asset} {partition_key}"]
                )
            yield PartitionTransaction(self.url, connection, asset, partition_key)

    def ledger(self, asset: str, partition_keys: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """Return the ledger's rows of an asset by partition key; of all partitions if none is named."""
        condition = "" if partition_keys is None else " AND partition_key = ANY(%s)"
        parameters: list[Any] = [asset] if partition_keys is None else [asset, list(partition_keys)]
        rows = self.rows(f"SELECT * FROM {SCHEMA_NAME}.partitions WHERE asset = %s{condition}", parameters)
        return {row["partition_key"]: row for row in rows}

    def moved_on(self, partition_key: str, run_ids: Sequence[str]) -> list[str]:
        """Return which of these runs another partition holds by a newer look at the source than this partition's.

        A run moves when its ``completed_at`` changes. Until the partition that it left is read again, raw rows of it
        stand in both; the newer ones count, so that the run is in one place.
        """
        rows = self.rows(
            f"SELECT t.run_id FROM {SCHEMA_NAME}.trajectories t"
            f" JOIN {SCHEMA_NAME}.partitions theirs ON theirs.asset = 'terminal_runs'"
            " AND theirs.partition_key = t.partition_key"
            f" JOIN {SCHEMA_NAME}.partitions ours ON ours.asset = 'terminal_runs' AND ours.partition_key = %(key)s"
            " WHERE t.run_id = ANY(%(ids)s) AND t.partition_key <> %(key)s"
            " AND theirs.snapshot_at > ours.snapshot_at ORDER BY 1",
            {"key": partition_key, "ids": list(run_ids)},
        )
        return [row["run_id"] for row in rows]

    def trajectory(self, run_id: str) -> dict[str, Any] | None:
        """Return a run's row of ``trajectories``; None where there is none."""
        return next(iter(self.rows(f"SELECT * FROM {SCHEMA_NAME}.trajectories WHERE run_id = %s", [run_id])), None)

    def quarantined(self, run_id: str) -> dict[str, Any] | None:
        """Return a run's row of ``quarantine``; None where it is not there."""
        return next(iter(self.rows(f"SELECT * FROM {SCHEMA_NAME}.quarantine WHERE run_id = %s", [run_id])), None)

    def rows(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query as dicts.

        Raises:
            SinkError: it cannot be run.
        """
        with (
            self.connect() as connection,
            writing(self.url, "Reading"),
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(statement.encode(), parameters)
            return cursor.fetchall()


def _table(name: str) -> sql.Identifier:
    return sql.Identifier(SCHEMA_NAME, name)


def _copied(column: Column, value: Any) -> Any:
    """Return a value as COPY takes it: what is nested as JSON text, JSON text as it is."""
    if value is None or column.type is Scalar.JSON:
        return value
    if isinstance(column.type, Struct) or (
        isinstance(column.type, ListOf) and not isinstance(column.type.item, Scalar)
    ):
        return write(value)
    return value
