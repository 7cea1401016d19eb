"""Two sensors that compare states: what is missing is found by looking, not by remembering.

Belongs here: which partitions a tick requests. Does not belong here: the queries (``letta.fingerprint``, ``sinks``).

A lost tick, a crash or a restored backup heals itself: the next tick sees what is not as it should be. A cursor is a
hint of where to go on looking; delete it, and nothing is lost.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.hours import HOUR, floor, hour_of, hours_between, key_of
from trajectory_pipeline.orchestration.assets import CAPTURE, REFINEMENT
from trajectory_pipeline.orchestration.partitions import contiguous, hours_of_tags, range_tags
from trajectory_pipeline.orchestration.resources import PipelineResource
from trajectory_pipeline.settings import Settings

if TYPE_CHECKING:
    from trajectory_pipeline.sinks.database import TrajectoryDatabase

CAPTURE_SENSOR = "capture_sensor"
REFINEMENT_SENSOR = "refinement_sensor"

RECENT = timedelta(hours=48)
"""Compared at every tick."""
OLDER_AT_ONCE = 240
"""Older partitions that one tick compares, in turn: ten days of them, so that a year goes round in about twenty minutes."""
RUNS_A_TICK = 10
"""Runs that one tick requests at most; what is left over is found again by the next."""
SECONDS_BETWEEN_TICKS = 30

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


def hours_under_way(instance: dg.DagsterInstance) -> list[tuple[datetime, datetime]]:
    """Return the ranges of hours, both ends included, of all runs that are queued or running."""
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=_UNDER_WAY), limit=1000)
    return [hours for run in runs if (hours := hours_of_tags(dict(run.tags))) is not None]


def without(hours: Sequence[datetime], busy: Sequence[tuple[datetime, datetime]]) -> list[datetime]:
    """Return the hours that no range under way holds."""
    return [hour for hour in hours if not any(first <= hour <= last for first, last in busy)]


def build_capture_sensor(job: "dg.UnresolvedAssetJobDefinition", settings: Settings) -> dg.SensorDefinition:  # type: ignore[name-defined]
    """Return the sensor that requests partitions whose fingerprint in the source is not the ledger's."""

    @dg.sensor(
        name=CAPTURE_SENSOR,
        job=job,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=_status(settings),
        description=(
            "Requests the partitions whose rows in the source are not what was captured: new, late, edited and deleted"
            " rows alike, the open hour included. The last 48 hours at every tick, older ones in turn."
        ),
    )
    def capture_sensor(
        context: dg.SensorEvaluationContext, pipeline: PipelineResource
    ) -> dg.SensorResult | dg.SkipReason:
        from trajectory_pipeline.letta.fingerprint import EMPTY, fingerprints

        hours, cursor = hours_to_compare(datetime.now(UTC), settings.start, context.cursor)
        try:
            with pipeline.source.snapshot() as snapshot:
                there: dict[datetime, str] = {}
                for first, last in contiguous(hours, len(hours)):
                    there.update(fingerprints(snapshot, first, last + HOUR))
            captured = _captured(pipeline.database, hours)
        except PipelineError as error:
            return dg.SkipReason(str(error))
        stale = [hour for hour in hours if there.get(hour, EMPTY) != captured.get(key_of(hour), EMPTY)]
        due = without(stale, hours_under_way(context.instance))
        return dg.SensorResult(
            run_requests=requests(due, CAPTURE, settings.backfill_batch, "the source changed"),
            cursor=cursor,
            skip_reason=None
            if due
            else dg.SkipReason(
                f"{len(hours)} partitions compared, {len(stale)} differ"
                + (", all of which are under way." if stale else ".")
            ),
        )

    return capture_sensor


def build_refinement_sensor(job: "dg.UnresolvedAssetJobDefinition", settings: Settings) -> dg.SensorDefinition:  # type: ignore[name-defined]
    """Return the sensor that requests partitions whose trajectories lack a verdict under the current policy."""

    @dg.sensor(
        name=REFINEMENT_SENSOR,
        job=job,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=_status(settings),
        description=(
            "Requests the partitions whose trajectories lack a verdict under the current policy: quiet for"
            f" {settings.quiet_minutes} minutes, not older than {settings.horizon_days} days, while less than"
            f" {settings.daily_budget_usd} dollars were spent today."
        ),
    )
    def refinement_sensor(
        context: dg.SensorEvaluationContext, pipeline: PipelineResource
    ) -> dg.SensorResult | dg.SkipReason:
        if settings.judge_missing:
            return dg.SkipReason(settings.judge_missing)
        from trajectory_pipeline.sinks.verdicts import open_verdicts

        now = datetime.now(UTC)
        try:
            with open_verdicts(pipeline.database) as verdicts:
                spent = verdicts.spent_since(now.replace(hour=0, minute=0, second=0, microsecond=0))
                if spent >= settings.daily_budget_usd:
                    return dg.SkipReason(
                        f"{spent} dollars were spent today, the budget is {settings.daily_budget_usd}"
                        " (TRAJECTORY_DAILY_BUDGET_USD): the rest is judged tomorrow."
                    )
                keys = verdicts.partitions_without_verdicts(
                    pipeline.policy.policy_id,
                    quiet_since=now - timedelta(minutes=settings.quiet_minutes),
                    ended_since=now - timedelta(days=settings.horizon_days),
                )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        due = without([hour_of(key) for key in keys], hours_under_way(context.instance))
        return dg.SensorResult(
            run_requests=requests(due, REFINEMENT, settings.backfill_batch, "verdicts are missing"),
            skip_reason=None
            if due
            else dg.SkipReason(
                f"{len(keys)} partitions lack verdicts" + (", all of which are under way." if keys else ".")
            ),
        )

    return refinement_sensor


def _status(settings: Settings) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if settings.enable_capture else dg.DefaultSensorStatus.STOPPED


def _captured(database: "TrajectoryDatabase", hours: Sequence[datetime]) -> dict[str, str]:
    """Return the fingerprint of what was captured and converted: raw rows without trajectories count as nothing."""
    keys = [key_of(hour) for hour in hours]
    raw, converted = database.ledger(CAPTURE[0].path[0], keys), database.ledger(CAPTURE[1].path[0], keys)
    return {
        key: entry["fingerprint"]
        for key, entry in raw.items()
        if key in converted and converted[key]["materialized_at"] >= entry["materialized_at"]
    }
