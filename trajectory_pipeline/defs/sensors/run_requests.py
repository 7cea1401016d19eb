"""What the sensors share: which of the hours that need a run are requested now, and the run requests."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import dagster as dg

from trajectory_pipeline.defs.assets.partition_runner import FAILED_KEYS
from trajectory_pipeline.defs.partitions import PARTITION_TAG, hours_of_tags, range_tags
from trajectory_pipeline.partition_keys import contiguous, parse_partition_key, partition_key
from trajectory_pipeline.settings import Settings

if TYPE_CHECKING:
    from trajectory_pipeline.storage.postgres.partition_writer import StoredEntry

TRAJECTORY_JOB = "trajectory_job"
MAX_RUNS_PER_TICK = 10
"""The next tick finds the rest again."""
_RUNS_PER_PAGE = 1000
SECONDS_BETWEEN_TICKS = 30
PAUSE_AFTER_FAILURE = timedelta(minutes=10)
"""Time after a failure in which a partition is not requested: one that cannot succeed would fail every tick."""
SUSPECT_AFTER_FAILURE = timedelta(hours=1)
"""Time after a killed run of a range in which its partitions are requested one by one."""
_RUN_START = timedelta(seconds=7)
"""What a Dagster run costs to begin with."""
_PAUSE_FACTOR = 10
_LONGEST_PAUSE = timedelta(hours=1)

Hours = tuple[datetime, datetime]
"""A range of hours, both ends included."""
Clock = Callable[[], datetime]
IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def run_requests(
    hours: Sequence[datetime],
    selection: Sequence[dg.AssetKey],
    longest: int,
    reason: str,
    alone: Sequence[Hours] = (),
    tags: Mapping[str, str] | None = None,
) -> list[dg.RunRequest]:
    """Return at most ``MAX_RUNS_PER_TICK`` run requests, newest hours first.

    Consecutive hours are one range, but for those in ``alone``, which get a run each.
    """
    together = exclude_hours(hours, alone)
    ranges = [*contiguous(sorted(together), longest), *((hour, hour) for hour in hours if hour not in together)]
    chosen = sorted(ranges, reverse=True)[:MAX_RUNS_PER_TICK]
    return [
        dg.RunRequest(
            # No run key: Dagster deduplicates by it for ever, and a partition may have to be read again.
            asset_selection=list(selection),
            partition_key=partition_key(first) if first == last else None,
            tags={"trajectory/reason": reason, **(tags or {}), **({} if first == last else range_tags(first, last))},
        )
        for first, last in chosen
    ]


def hours_requested(run_requests: Sequence[dg.RunRequest], hours: Sequence[datetime]) -> list[datetime]:
    """Return which of these hours the requests include."""
    ranges = [hours_of_tags({PARTITION_TAG: each.partition_key or "", **each.tags}) for each in run_requests]
    return [hour for hour in hours if any(first <= hour <= last for first, last in filter(None, ranges))]


def hours_in_progress(instance: dg.DagsterInstance, selection: Sequence[dg.AssetKey]) -> list[Hours]:
    """Return the hours of all runs that are queued or running and materialize any of these assets."""
    return [hours for _, hours in _runs_with_hours(instance, dg.RunsFilter(statuses=IN_PROGRESS), selection)]


def hours_failed_since(instance: dg.DagsterInstance, selection: Sequence[dg.AssetKey], moment: datetime) -> list[Hours]:
    """Return the hours that failed since a moment, of all runs that would have materialized any of these assets.

    Of a range these are the hours that its failed steps name; all hours where one names none, as after a crash.
    """
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=moment)
    runs = _runs_with_hours(instance, failed, selection)
    return [one for run, hours in runs for one in _failed_hours(instance, run, hours)]


def suspect_hours(instance: dg.DagsterInstance, selection: Sequence[dg.AssetKey], now: datetime) -> list[Hours]:
    """Return the ranges of which a run failed lately without naming a partition: one of them may have killed it."""
    failed = hours_failed_since(instance, selection, now - SUSPECT_AFTER_FAILURE)
    return [hours for hours in failed if hours[0] != hours[1]]


def _failed_hours(instance: dg.DagsterInstance, run: dg.DagsterRun, hours: Hours) -> list[Hours]:
    if hours[0] == hours[1]:
        return [hours]
    failed: list[Hours] = []
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        failure = entry.dagster_event.step_failure_data.user_failure_data if entry.dagster_event else None
        keys = failure.metadata.get(FAILED_KEYS) if failure else None
        if keys is None:
            return [hours]
        failed += [(hour, hour) for hour in map(parse_partition_key, cast(Sequence[str], keys.value))]
    return failed or [hours]


def _runs_with_hours(
    instance: dg.DagsterInstance, filters: dg.RunsFilter, selection: Sequence[dg.AssetKey]
) -> Iterator[tuple[dg.DagsterRun, Hours]]:
    for run in all_runs(instance, filters):
        hours = hours_of_tags(run.tags)
        # A run without a selection runs the whole job.
        if hours and (run.asset_selection is None or not run.asset_selection.isdisjoint(selection)):
            yield run, hours


def all_runs(instance: dg.DagsterInstance, filters: dg.RunsFilter) -> Iterator[dg.DagsterRun]:
    """Yield every run of a filter, a page at a time: a backfill of a year may have thousands in the queue."""
    cursor: str | None = None
    while True:
        runs = instance.get_runs(filters=filters, limit=_RUNS_PER_PAGE, cursor=cursor)
        yield from runs
        if len(runs) < _RUNS_PER_PAGE:
            return
        cursor = runs[-1].run_id


def exclude_hours(hours: Sequence[datetime], busy: Sequence[Hours]) -> list[datetime]:
    """Return the hours that are in none of these ranges."""
    return [hour for hour in hours if not any(first <= hour <= last for first, last in busy)]


def pause_after(entry: "StoredEntry") -> timedelta:
    """Return the least time between a partition's materialization and the next request of it.

    It is ten times what the last one took, with the start of its run: of a busy hour, reading it again and again costs
    a tenth of the time at most, and Dagster stores at most 52 runs an hour.
    """
    took = entry.materialized_at - (entry.snapshot_at or entry.materialized_at)
    return min(_PAUSE_FACTOR * (_RUN_START + max(took, timedelta(0))), _LONGEST_PAUSE)


def due_hours(
    instance: dg.DagsterInstance,
    wanted: Sequence[datetime],
    selection: Sequence[dg.AssetKey],
    waits_for: Sequence[dg.AssetKey],
    now: datetime,
    entries: Mapping[str, "StoredEntry"],
) -> tuple[list[datetime], str]:
    """Return which of these hours to request now, and why the others are not: text for the tick's message.

    Runs of ``selection`` are requested; an hour waits for runs of ``waits_for``. ``entries`` are the ledger's of its
    first asset.
    """
    idle = exclude_hours(wanted, hours_in_progress(instance, waits_for))
    sound = exclude_hours(idle, hours_failed_since(instance, selection, now - PAUSE_AFTER_FAILURE))
    # An entry from the future was written by another clock: it says nothing.
    paused = {
        hour
        for hour in sound
        if (entry := entries.get(partition_key(hour)))
        and timedelta(0) <= now - entry.materialized_at < pause_after(entry)
    }
    due = [hour for hour in sound if hour not in paused]
    minutes = PAUSE_AFTER_FAILURE.seconds // 60
    not_due = {
        "in progress": len(wanted) - len(idle),
        f"failed in the last {minutes} minutes": len(idle) - len(sound),
        "materialized a moment ago": len(paused),
    }
    reason = ", ".join(f"{number} {state}" for state, number in not_due.items() if number)
    return due, f": {reason}" if reason else ""


def utc_now() -> datetime:
    """Return the system's time."""
    return datetime.now(UTC)


def default_status(settings: Settings) -> dg.DefaultSensorStatus:
    """Return whether a sensor runs by default."""
    return dg.DefaultSensorStatus.RUNNING if settings.capture.enabled else dg.DefaultSensorStatus.STOPPED
