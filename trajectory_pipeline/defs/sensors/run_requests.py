"""What both sensors do with the hours that they find: leave out what is under way or just failed, request the rest.

Belongs here: run requests, and what Dagster's instance says of runs. Does not belong here: which hours are not as they
should be (``sensors``, ``refinement_sensor``).
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from trajectory_pipeline.defs.partitions import PARTITION_TAG, hours_of_tags, range_tags
from trajectory_pipeline.partition_keys import contiguous, partition_key
from trajectory_pipeline.settings import Settings

RUNS_A_TICK = 10
"""Runs that one tick requests at most; what is left over is found again by the next."""
SECONDS_BETWEEN_TICKS = 30
PAUSE_AFTER_FAILURE = timedelta(minutes=10)
"""A partition whose run failed is left alone so long: one that cannot succeed would fail at every tick."""

Hours = tuple[datetime, datetime]
"""A range of hours, both ends included."""
Clock = Callable[[], datetime]

_RUNS_AT_ONCE = 1000
_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def run_requests(
    hours: Sequence[datetime], selection: Sequence[dg.AssetKey], longest: int, reason: str
) -> list[dg.RunRequest]:
    """Return run requests for these hours, the newest first: neighbours as one range, at most ``RUNS_A_TICK`` runs."""
    ranges = contiguous(sorted(hours), longest)
    chosen = sorted(ranges, reverse=True)[:RUNS_A_TICK]
    return [
        dg.RunRequest(
            # No run key: it dedupes for ever, and a partition may have to be read again.
            asset_selection=list(selection),
            partition_key=partition_key(first) if first == last else None,
            tags={"trajectory/reason": reason, **({} if first == last else range_tags(first, last))},
        )
        for first, last in chosen
    ]


def hours_requested(run_requests: Sequence[dg.RunRequest], hours: Sequence[datetime]) -> list[datetime]:
    """Return those of these hours that the requests name."""
    named = [
        found
        for request in run_requests
        if (found := hours_of_tags({**request.tags, **_partition_tag(request.partition_key)})) is not None
    ]
    return [hour for hour in hours if any(first <= hour <= last for first, last in named)]


def _partition_tag(partition_key: str | None) -> dict[str, str]:
    return {PARTITION_TAG: partition_key} if partition_key else {}


def hours_in_progress(instance: dg.DagsterInstance, selection: Sequence[dg.AssetKey]) -> list[Hours]:
    """Return the hours of all runs that are queued or running and materialise any of these assets."""
    return _hours_of_runs(instance, dg.RunsFilter(statuses=_UNDER_WAY), selection)


def hours_failed_since(instance: dg.DagsterInstance, selection: Sequence[dg.AssetKey], moment: datetime) -> list[Hours]:
    """Return the hours of all runs that failed since a moment and were to materialise any of these assets."""
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=moment)
    return _hours_of_runs(instance, failed, selection)


def _hours_of_runs(
    instance: dg.DagsterInstance, filters: dg.RunsFilter, selection: Sequence[dg.AssetKey]
) -> list[Hours]:
    return [
        hours
        for run in _all_runs(instance, filters)
        # A run without a selection takes the whole job.
        if (run.asset_selection is None or not run.asset_selection.isdisjoint(selection))
        and (hours := hours_of_tags(run.tags)) is not None
    ]


def _all_runs(instance: dg.DagsterInstance, filters: dg.RunsFilter) -> Iterator[dg.DagsterRun]:
    """Yield every run of a filter, some at a time: a backfill of a year may have thousands in the queue."""
    cursor: str | None = None
    while True:
        runs = instance.get_runs(filters=filters, limit=_RUNS_AT_ONCE, cursor=cursor)
        yield from runs
        if len(runs) < _RUNS_AT_ONCE:
            return
        cursor = runs[-1].run_id


def exclude_hours(hours: Sequence[datetime], busy: Sequence[Hours]) -> list[datetime]:
    """Return the hours that none of these ranges holds."""
    return [hour for hour in hours if not any(first <= hour <= last for first, last in busy)]


def due_hours(
    instance: dg.DagsterInstance,
    missing: Sequence[datetime],
    selection: Sequence[dg.AssetKey],
    waits_for: Sequence[dg.AssetKey],
    now: datetime,
) -> tuple[list[datetime], str]:
    """Return which of these hours to request now, and in words why the others are not.

    Args:
        instance: whose runs are looked at.
        missing: hours that are not as they should be.
        selection: assets to be requested.
        waits_for: assets whose runs must have ended first.
        now: aware.
    """
    idle = exclude_hours(missing, hours_in_progress(instance, waits_for))
    due = exclude_hours(idle, hours_failed_since(instance, selection, now - PAUSE_AFTER_FAILURE))
    minutes = PAUSE_AFTER_FAILURE.seconds // 60
    reasons = [(len(missing) - len(idle), "under way"), (len(idle) - len(due), f"failed in the last {minutes} minutes")]
    words = ", ".join(f"{number} {why}" for number, why in reasons if number)
    return due, f": {words}" if words else ""


def utc_now() -> datetime:
    """Return the system's time."""
    return datetime.now(UTC)


def default_status(settings: Settings) -> dg.DefaultSensorStatus:
    """Return whether a sensor runs by default."""
    return dg.DefaultSensorStatus.RUNNING if settings.capture.enabled else dg.DefaultSensorStatus.STOPPED
