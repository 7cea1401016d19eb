"""Counting the source: how many terminal runs each hour holds, and which runs never ended."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from trajectory_pipeline.letta.connection import literal
from trajectory_pipeline.letta.snapshot import Snapshot, naive_utc
from trajectory_pipeline.schema.raw import RUNS, TERMINAL_STATUSES


@dataclass(frozen=True)
class StuckRun:
    """A run that is not terminal, and old.

    Attributes:
        run_id: the run.
        status: ``created`` or ``running``.
        age: since its creation, by the source's clock.
    """

    run_id: str
    status: str
    age: timedelta


def count_runs_by_hour(snapshot: Snapshot) -> dict[datetime, int]:
    """Return the number of terminal runs in each hour that has any, over the whole history.

    Raises:
        SourceError: the source cannot be read.
    """
    rows = snapshot.read(
        "Counting terminal runs",
        f"SELECT date_trunc('hour', {snapshot.ended_at('r')}) AS hour, count(*) AS runs"
        f" FROM {snapshot.catalog.table(RUNS)} r"
        f" WHERE r.status::text IN ({', '.join(map(literal, TERMINAL_STATUSES))})"
        f" AND {snapshot.ended_at('r')} IS NOT NULL GROUP BY 1",
    )
    hours = cast(list[datetime], rows["hour"].to_pylist())
    return {
        hour.replace(tzinfo=UTC): count
        for hour, count in zip(hours, cast(list[int], rows["runs"].to_pylist()), strict=True)
    }


def find_stuck_runs(snapshot: Snapshot, older_than: timedelta, at_most: int = 1000) -> list[StuckRun]:
    """Return the runs that are not terminal and older than so long, the oldest first.

    A blocking call on a conversation leaves its run ``created`` forever, and so does a killed server (Letta 0.16.8).

    Raises:
        SourceError: the source cannot be read.
    """
    created = next(column for column in RUNS.columns if column.name == "created_at")
    created_at = f"({snapshot.catalog.expression(RUNS, created, 'r')} AT TIME ZONE 'UTC')"
    rows = snapshot.read(
        "Looking for runs that never ended",
        f"SELECT r.id::text AS id, r.status::text AS status, {created_at} AS created_at"
        f" FROM {snapshot.catalog.table(RUNS)} r"
        f" WHERE r.status::text NOT IN ({', '.join(map(literal, TERMINAL_STATUSES))})"
        f" AND {created_at} < {naive_utc(snapshot.taken_at - older_than)} ORDER BY 3, 1 LIMIT {int(at_most)}",
    )
    return [
        StuckRun(run_id, status, snapshot.taken_at - created_at.replace(tzinfo=UTC))
        for run_id, status, created_at in zip(
            cast(list[str], rows["id"].to_pylist()),
            cast(list[str], rows["status"].to_pylist()),
            cast(list[datetime], rows["created_at"].to_pylist()),
            strict=True,
        )
    ]
