"""Counts of the source: terminal runs by hour, runs that never ended, and whether it has an index on the end of runs.

Letta makes no such index, and without one finding the runs of an hour reads the whole table.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from trajectory_pipeline.letta.connection import literal
from trajectory_pipeline.letta.snapshot import TERMINAL, Snapshot, naive_utc, utc
from trajectory_pipeline.schema.raw import RUNS


@dataclass(frozen=True)
class StuckRun:
    """A run that is not terminal (``created`` or ``running``), and old: its age is by the source's clock."""

    run_id: str
    status: str
    age: timedelta


@dataclass(frozen=True)
class EndIndex:
    """The index on the end of runs.

    Attributes:
        runs: about how many rows the table has, by the server's statistics.
        statement: what the source's owner could run to create it.
    """

    exists: bool
    runs: int
    statement: str


def count_runs_by_hour(snapshot: Snapshot) -> dict[datetime, int]:
    """Return the number of terminal runs in each hour that has any, over the whole history."""
    rows = snapshot.read(
        "Counting terminal runs",
        f"SELECT date_trunc('hour', {snapshot.ended_at('r')}) AS hour, count(*) AS runs"
        f" FROM {snapshot.catalog.table(RUNS)} r WHERE r.status::text IN {TERMINAL}"
        f" AND {snapshot.ended_at('r')} IS NOT NULL GROUP BY 1",
    )
    return {utc(row["hour"]): row["runs"] for row in rows.to_pylist()}


def find_stuck_runs(snapshot: Snapshot, older_than: timedelta, at_most: int = 1000) -> list[StuckRun]:
    """Return the runs that are not terminal and older than so long, the oldest first.

    A blocking call on a conversation leaves its run ``created`` forever, and so does a killed server (Letta 0.16.8).
    """
    created_at = f"({snapshot.catalog.expression(RUNS, 'created_at', 'r')} AT TIME ZONE 'UTC')"
    rows = snapshot.read(
        "Looking for runs that never ended",
        f"SELECT r.id::text AS id, r.status::text AS status, {created_at} AS created_at"
        f" FROM {snapshot.catalog.table(RUNS)} r WHERE r.status::text NOT IN {TERMINAL}"
        f" AND {created_at} < {naive_utc(snapshot.taken_at - older_than)} ORDER BY 3, 1 LIMIT {int(at_most)}",
    )
    return [StuckRun(row["id"], row["status"], snapshot.taken_at - utc(row["created_at"])) for row in rows.to_pylist()]


def find_end_index(snapshot: Snapshot) -> EndIndex:
    """Look for an index on ``completed_at`` of the runs."""
    table = snapshot.catalog.table(RUNS)
    rows = snapshot.read(
        "Looking for indexes",
        "SELECT count(*) FILTER (WHERE pg_get_indexdef(i.indexrelid) LIKE '%completed_at%') AS indexes,"
        " max(c.reltuples)::bigint AS runs FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_index i"
        f" ON i.indrelid = c.oid WHERE c.oid = to_regclass({literal(table)})",
    )
    return EndIndex(
        exists=bool(rows["indexes"][0].as_py()),
        runs=max(rows["runs"][0].as_py() or 0, 0),
        statement=f"CREATE INDEX CONCURRENTLY ix_runs_ended_at ON {table} (({snapshot.ended_at('runs')}))"
        f" WHERE status::text IN {TERMINAL}",
    )
