"""Two sensors that compare states: what is missing is found by looking, not by remembering.

Belongs here: which partitions a tick requests. Does not belong here: the queries (``stages.staleness``, ``sinks``).

A lost tick, a crash or a restored backup heals itself: the next tick sees what is not as it should be. A cursor is a
hint of where to go on looking; delete it, and nothing is lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.hours import HOUR, contiguous, floor, hour_of, hours_between, key_of
from trajectory_pipeline.orchestration.assets import CAPTURE, REFINEMENT, refinement_batch
from trajectory_pipeline.orchestration.jobs import JOB_NAME
from trajectory_pipeline.orchestration.partitions import hours_of_tags, range_tags
from trajectory_pipeline.orchestration.resources import PipelineResource
from trajectory_pipeline.orchestration.words import counted
from trajectory_pipeline.settings import Settings

CAPTURE_SENSOR = "capture_sensor"
REFINEMENT_SENSOR = "refinement_sensor"

RECENT = timedelta(hours=48)
"""Compared at every tick."""
OLDER_AT_ONCE = 240
"""Older partitions that one tick compares, in turn: ten days of them; a year goes round in about twenty minutes."""
RUNS_A_TICK = 10
"""Runs that one tick requests at most; what is left over is found again by the next."""
SECONDS_BETWEEN_TICKS = 30
SECONDS_A_QUERY = 120
"""That a tick waits for the source at most: the daemon gives up on a whole tick after 300 s, and nobody learns why."""
PAUSE_AFTER_FAILURE = timedelta(minutes=10)
"""A partition whose run failed is left alone so long: one that cannot succeed would fail at every tick."""

Hours = tuple[datetime, datetime]
"""A range of hours, both ends included."""
Clock = Callable[[], datetime]

_RUNS_LOOKED_AT = 1000
_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def hours_to_compare(now: datetime, start: datetime, cursor: str | None) -> tuple[list[datetime], str]:
    """Return the hours that a tick compares, the open one included, and the cursor for the next tick.

    Args:
        now: aware.
        start: first partition.
        cursor: key of the hour that the last tick's older part ended before; whatever else it holds is ignored.
    """
    open_hour = floor(now)
    recent_from = max(floor(start), floor(now - RECENT))
    try:
        older_to = min(hour_of(cursor), recent_from) if cursor else recent_from
    except PipelineError:
        older_to = recent_from
    if older_to <= floor(start):
        older_to = recent_from
    older_from = max(floor(start), older_to - OLDER_AT_ONCE * HOUR)
    hours = sorted({*hours_between(older_from, older_to), *hours_between(recent_from, open_hour + HOUR)})
    return hours, key_of(older_from)


def requests(
    hours: Sequence[datetime], selection: Sequence[dg.AssetKey], longest: int, reason: str
) -> list[dg.RunRequest]:
    """Return run requests for these hours, the newest first: neighbours as one range, at most ``RUNS_A_TICK`` runs."""
    ranges = contiguous(sorted(hours), longest)
    chosen = sorted(ranges, reverse=True)[:RUNS_A_TICK]
    return [
        dg.RunRequest(
            # No run key: it dedupes for ever, and a partition may have to be read again.
            asset_selection=list(selection),
            partition_key=key_of(first) if first == last else None,
            tags={"trajectory/reason": reason, **({} if first == last else range_tags(first, last))},
        )
        for first, last in chosen
    ]


def hours_under_way(instance: dg.DagsterInstance, selection: Sequence[dg.AssetKey]) -> list[Hours]:
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
        for run in instance.get_runs(filters=filters, limit=_RUNS_LOOKED_AT)
        # A run without a selection takes the whole job.
        if (run.asset_selection is None or not run.asset_selection.isdisjoint(selection))
        and (hours := hours_of_tags(run.tags)) is not None
    ]


def without(hours: Sequence[datetime], busy: Sequence[Hours]) -> list[datetime]:
    """Return the hours that none of these ranges holds."""
    return [hour for hour in hours if not any(first <= hour <= last for first, last in busy)]


def build_capture_sensor(settings: Settings, clock: Clock | None = None) -> dg.SensorDefinition:
    """Return the sensor that requests partitions whose fingerprint in the source is not the ledger's.

    Args:
        settings: first partition, batch, and what runs by default.
        clock: the time, aware; by default the system's.
    """
    clock = clock or _utc_now

    @dg.sensor(
        name=CAPTURE_SENSOR,
        job_name=JOB_NAME,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=_status(settings),
        description=(
            "Requests the partitions whose rows in the source are not what was captured: new, late, edited and deleted"
            " rows alike, the open hour included. The last 48 hours at every tick, older ones in turn."
        ),
    )
    def capture_sensor(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> dg.SensorResult | dg.SkipReason:
        from trajectory_pipeline.stages.staleness import stale_hours

        now = clock()
        hours, cursor = hours_to_compare(now, settings.start, context.cursor)
        try:
            source = replace(
                pipeline.source, timeout_seconds=min(SECONDS_A_QUERY, pipeline.settings.source_timeout_seconds)
            )
            stale = stale_hours(source, pipeline.database, hours)
        except PipelineError as error:
            return dg.SkipReason(str(error))
        found = f"{counted(len(hours), 'partition')} compared, {len(stale)} differ"
        due, held_back = _due(context.instance, stale, CAPTURE, CAPTURE, now)
        return dg.SensorResult(
            run_requests=requests(due, CAPTURE, settings.backfill_batch, "the source changed"),
            cursor=cursor,
            skip_reason=None if due else dg.SkipReason(f"{found}{held_back}."),
        )

    return capture_sensor


def build_refinement_sensor(settings: Settings, clock: Clock | None = None) -> dg.SensorDefinition:
    """Return the sensor that requests partitions whose trajectories lack a verdict under the current policy.

    Args:
        settings: judge, quiet time, horizon, budget, batch, and what runs by default.
        clock: the time, aware; by default the system's.
    """
    clock = clock or _utc_now

    @dg.sensor(
        name=REFINEMENT_SENSOR,
        job_name=JOB_NAME,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=_status(settings),
        description=(
            "Requests the partitions whose trajectories lack a verdict under the current policy: quiet for"
            f" {counted(settings.quiet_minutes, 'minute')}, not older than {counted(settings.horizon_days, 'day')},"
            f" while less than {settings.daily_budget_usd} dollars were spent today (UTC)."
            + (f"\n\n**Requests nothing.** {settings.judge_missing}" if settings.judge_missing else "")
        ),
    )
    def refinement_sensor(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> dg.SensorResult | dg.SkipReason:
        if settings.judge_missing:
            return dg.SkipReason(settings.judge_missing)
        from trajectory_pipeline.sinks.verdicts import open_verdicts

        now = clock()
        try:
            with open_verdicts(pipeline.database) as verdicts:
                spent = verdicts.spent_since(now.replace(hour=0, minute=0, second=0, microsecond=0))
                if spent >= settings.daily_budget_usd:
                    return dg.SkipReason(
                        f"{spent:.2f} dollars were spent today (UTC), the budget is {settings.daily_budget_usd}"
                        " (TRAJECTORY_DAILY_BUDGET_USD): the rest is judged tomorrow."
                    )
                keys = verdicts.partitions_without_verdicts(
                    pipeline.policy.policy_id,
                    quiet_since=now - timedelta(minutes=settings.quiet_minutes),
                    ended_since=now - timedelta(days=settings.horizon_days),
                )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        found = f"{counted(len(keys), 'partition lacks', 'partitions lack')} verdicts"
        # What was captured before the first partition was moved is no partition any more.
        missing = [hour for key in keys if floor(settings.start) <= (hour := hour_of(key)) <= floor(now)]
        # A verdict on what is being captured anew would be stale at once.
        due, held_back = _due(context.instance, missing, REFINEMENT, [*CAPTURE, *REFINEMENT], now)
        return dg.SensorResult(
            run_requests=requests(due, REFINEMENT, refinement_batch(settings.backfill_batch), "verdicts are missing"),
            skip_reason=None if due else dg.SkipReason(f"{found}{held_back}."),
        )

    return refinement_sensor


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _due(
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
    idle = without(missing, hours_under_way(instance, waits_for))
    due = without(idle, hours_failed_since(instance, selection, now - PAUSE_AFTER_FAILURE))
    minutes = PAUSE_AFTER_FAILURE.seconds // 60
    reasons = [(len(missing) - len(idle), "under way"), (len(idle) - len(due), f"failed in the last {minutes} minutes")]
    words = ", ".join(f"{number} {why}" for number, why in reasons if number)
    return due, f": {words}" if words else ""


def _status(settings: Settings) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if settings.enable_capture else dg.DefaultSensorStatus.STOPPED
