"""What was captured from, of which one is accepted for each source, and a sample of the runs that were captured.

Every function raises ``SinkError`` if the database refuses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.partition_keys import LETTA, source_of_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction

_NEAREST = 500
"""Runs of the sample from each of: the hours before, the hours after, the first and the last hours."""
_RECENT = timedelta(days=1)


@dataclass(frozen=True)
class AcceptedSource:
    """The database whose deletions count, and when a person last accepted deletions, by its clock."""

    identity: str
    accepted_at: datetime | None


@dataclass(frozen=True)
class CapturedRun:
    """A run as the last capture found it.

    Attributes:
        owner: its agent, and its conversation if it has one.
        rows: how many rows it had, by source table.
        deleted_recently: whether it was noticed missing within a day, and no deletion was accepted since.
    """

    run_id: str
    owner: tuple[str, str | None]
    partition_key: str
    rows: Mapping[str, int]
    deleted_recently: bool


def accepted_source(url: str, connection: psycopg.Connection, source: str = LETTA) -> AcceptedSource | None:
    """Return what is accepted as a source; None where nothing of it was captured yet."""
    with translating_database_errors(url, "Reading the sources"):
        row = connection.execute(
            "SELECT identity, accepted_at FROM trajectory.sources WHERE accepted AND source = %s", [source]
        ).fetchone()
    return AcceptedSource(*row) if row else None


def record_source(partition: PartitionTransaction, identity: str) -> None:
    """Remember what a partition is captured from; the first one of its source is accepted."""
    with translating_database_errors(partition.url, "Recording the source"):
        _commit_first_source(partition, identity)
        partition.connection.execute(_RECORD_SOURCE, _values(partition, identity))


def _values(partition: PartitionTransaction, identity: str) -> dict[str, str]:
    return {"identity": identity, "source": source_of_key(partition.partition_key)}


def _commit_first_source(partition: PartitionTransaction, identity: str) -> None:
    # At once: a file that was captured from it may stay though the partition's transaction is rolled back.
    values = _values(partition, identity)
    is_first = partition.connection.execute(
        "SELECT WHERE NOT EXISTS (SELECT FROM trajectory.sources WHERE source = %(source)s)", values
    ).fetchone()
    if is_first is not None:
        with partition.connect_apart() as other:
            other.execute(_RECORD_SOURCE, values)


_RECORD_SOURCE: LiteralString = (
    "INSERT INTO trajectory.sources (identity, accepted, first_seen_at, source)"
    " SELECT %(identity)s, NOT EXISTS (SELECT FROM trajectory.sources WHERE source = %(source)s), now(), %(source)s"
    " ON CONFLICT (identity) DO NOTHING"
)


def accept_source(partition: PartitionTransaction, identity: str, moment: datetime) -> None:
    """Make a database the accepted one; deletions that were noticed until this moment do not count any more."""
    with translating_database_errors(partition.url, "Recording the source"):
        _commit_first_source(partition, identity)
        partition.connection.execute("LOCK TABLE trajectory.sources IN SHARE ROW EXCLUSIVE MODE")
        partition.connection.execute(_RECORD_SOURCE, _values(partition, identity))
        partition.connection.execute(
            "UPDATE trajectory.sources SET accepted = identity = %(identity)s,"
            " accepted_at = CASE WHEN identity = %(identity)s THEN %(moment)s ELSE accepted_at END"
            " WHERE source = %(source)s AND (accepted OR identity = %(identity)s)",
            {**_values(partition, identity), "moment": moment},
        )


def runs_held(partition: PartitionTransaction, run_ids: list[str]) -> list[str]:
    """Return which of these runs the partition's trajectories hold, not marked as deleted."""
    if not run_ids:
        return []
    with translating_database_errors(partition.url, f"Looking for the trajectories of {partition.partition_key}"):
        rows = partition.connection.execute(
            "SELECT run_id FROM trajectory.trajectories"
            " WHERE run_id = ANY(%s) AND partition_key = %s AND deleted_at IS NULL",
            [run_ids, partition.partition_key],
        )
        return [row[0] for row in rows]


def sample_captured_runs(
    partition: PartitionTransaction, run_ids: list[str], moment: datetime, accepted_at: datetime | None
) -> list[CapturedRun]:
    """Return captured runs of other partitions (the nearest, the first and the last ones), and these.

    Those that were noticed missing recently before a moment are included; those noticed earlier are not.
    """
    since = max(moment - _RECENT, accepted_at) if accepted_at else moment - _RECENT
    of_source = "source = %(source)s"
    present = f"SELECT run_id FROM trajectory.trajectories WHERE deleted_at IS NULL AND {of_source} AND partition_key"
    nearest = " UNION ".join(
        f"({present} {condition} ORDER BY partition_key {order} LIMIT {_NEAREST})"
        for condition, order in (
            ("> %(key)s", "ASC"),
            ("< %(key)s", "DESC"),
            ("<> %(key)s", "ASC"),
            ("<> %(key)s", "DESC"),
        )
    )
    statement = (
        "SELECT run_id, agent_id, conversation_id, partition_key, deleted_at IS NOT NULL AS deleted_recently,"
        " message_count AS messages, step_count AS steps, (run_ns IS NOT NULL)::int AS run_metrics,"
        " (agent_name IS NOT NULL)::int AS agents FROM trajectory.trajectories"
        f" WHERE (deleted_at IS NULL AND (run_id = ANY(%(ids)s) OR run_id IN ({nearest})))"
        f" OR (deleted_at > %(since)s AND {of_source} AND partition_key IN"
        " (SELECT partition_key FROM trajectory.partitions WHERE asset = %(asset)s AND snapshot_at > %(since)s"
        " AND (counts ->> 'deleted_runs')::bigint > 0))"
    )
    values = {
        "key": partition.partition_key,
        "ids": run_ids,
        "since": since,
        "asset": TERMINAL_RUNS.name,
        "source": source_of_key(partition.partition_key),
    }
    with (
        translating_database_errors(partition.url, f"Looking for captured runs near {partition.partition_key}"),
        partition.connection.cursor(row_factory=dict_row) as cursor,
    ):
        return [_captured(row) for row in cursor.execute(statement.encode(), values)]


def _captured(row: dict[str, Any]) -> CapturedRun:
    rows = {name: row[name] for name in ("messages", "steps", "run_metrics", "agents")}
    owner = (row["agent_id"], row["conversation_id"])
    return CapturedRun(row["run_id"], owner, row["partition_key"], rows, row["deleted_recently"])
