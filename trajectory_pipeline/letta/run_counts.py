"""Counts of the source: terminal runs by hour, runs that never ended, and whether it has an index on the end of runs.

Letta makes no such index, and without one finding the runs of an hour reads the whole table.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from trajectory_pipeline.letta.connection import literal
from trajectory_pipeline.letta.snapshot import TERMINAL, Snapshot, naive_utc, utc
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour
from trajectory_pipeline.schema.raw import RUNS


@dataclass(frozen=True)
class StuckRun:
    """A run that is not terminal (``created`` or ``running``), and old: its age is by the source's clock."""

    run_id: str
    status: str
    age: timedelta


@dataclass(frozen=True)
class MisdatedRuns:
    """Terminal runs, by id, that ended in the future, or whose times are all null or infinite."""

    after_now: tuple[str, ...]
    without_time: tuple[str, ...]


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
    """Return the number of terminal runs in each hour that has any, over the whole history.

    Years before 1 and after 9999 count in the first and the last hour that Python knows.
    """
    rows = snapshot.read(
        "Counting terminal runs",
        f"SELECT {snapshot.hour_ended('r')} AS hour, count(*) AS runs"
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
        f"SELECT r.id::text AS id, coalesce(r.status::text, 'null') AS status,"
        f" extract(epoch FROM {naive_utc(snapshot.taken_at)} - {created_at})::bigint AS seconds"
        f" FROM {snapshot.catalog.table(RUNS)} r WHERE coalesce(r.status::text NOT IN {TERMINAL}, true)"
        f" AND {created_at} < {naive_utc(snapshot.taken_at - older_than)} ORDER BY 3 DESC, 1 LIMIT {int(at_most)}",
    )
    return [StuckRun(row["id"], row["status"], timedelta(seconds=row["seconds"])) for row in rows.to_pylist()]


def find_misdated_runs(snapshot: Snapshot, at_most: int = 1000) -> MisdatedRuns:
    """Return the terminal runs that are in no partition: they ended after the open hour, or at no known time."""
    ended, open_until = snapshot.ended_at("r"), naive_utc(floor_to_hour(snapshot.taken_at) + HOUR)
    rows = snapshot.read(
        "Looking for runs that end at no possible time",
        f"SELECT r.id::text AS id, {ended} IS NULL AS without_time FROM {snapshot.catalog.table(RUNS)} r"
        f" WHERE r.status::text IN {TERMINAL} AND coalesce({ended} >= {open_until}, true)"
        f" ORDER BY 1 LIMIT {int(at_most)}",
    ).to_pylist()
    return MisdatedRuns(
        after_now=tuple(row["id"] for row in rows if not row["without_time"]),
        without_time=tuple(row["id"] for row in rows if row["without_time"]),
    )


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
