"""The refinement sensor: requests the partitions whose trajectories lack a verdict.

Belongs here: when a tick requests nothing, and why. Does not belong here: the queries (``sinks``), and what makes run
requests of the hours that are due (``defs.sensors.run_requests``).
"""

from datetime import timedelta

import dagster as dg

from trajectory_pipeline.defs.asset_checks import ABANDONED
from trajectory_pipeline.defs.assets.assets import CAPTURE, REFINEMENT, refinement_batch
from trajectory_pipeline.defs.jobs import JOB_NAME
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.sensors.run_requests import (
    SECONDS_BETWEEN_TICKS,
    Clock,
    default_status,
    due_hours,
    run_requests,
    utc_now,
)
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import floor_to_hour, parse_partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

REFINEMENT_SENSOR = "refinement_sensor"


def build_refinement_sensor(settings: Settings, clock: Clock | None = None) -> dg.SensorDefinition:
    """Return the sensor that requests partitions whose trajectories lack a verdict under the current policy.

    Args:
        settings: judge, quiet time, horizon, budget, batch, and what runs by default.
        clock: the time, aware; by default the system's.
    """
    clock = clock or utc_now

    @dg.sensor(
        name=REFINEMENT_SENSOR,
        job_name=JOB_NAME,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description=(
            "Requests the partitions whose trajectories lack a verdict under the current policy: quiet for"
            f" {pluralize(settings.judge.settle_minutes, 'minute')}, not older than"
            f" {pluralize(settings.judge.lookback_days, 'day')},"
            f" as far as the budget goes ({settings.budget.daily_usd} dollars a day, UTC)."
            + (f"\n\n**Requests nothing.** {settings.judge.disabled_reason}" if settings.judge.disabled_reason else "")
        ),
    )
    def refinement_sensor(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> dg.SensorResult | dg.SkipReason:
        if settings.judge.disabled_reason:
            return dg.SkipReason(settings.judge.disabled_reason)
        from trajectory_pipeline.pipeline.pending_verdicts import find_pending_verdicts

        now = clock()
        try:
            missing = find_pending_verdicts(
                pipeline.database,
                pipeline.judge,
                now=now,
                settle_for=timedelta(minutes=settings.judge.settle_minutes),
                lookback=timedelta(days=settings.judge.lookback_days),
                give_up_after=settings.judge.give_up_after,
            )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        given_up = (
            f" {pluralize(len(missing.abandoned), 'verdict')} given up: see the check {ABANDONED.name}."
            if missing.abandoned
            else ""
        )
        if missing.shortfall:
            spent = missing.spent
            return dg.SkipReason(
                f"Today (UTC) {spent.spent.usd:.4f} USD and {spent.spent.tokens} tokens were spent, and"
                f" {spent.reserved.usd:.4f} USD and {spent.reserved.tokens} tokens are reserved:"
                f" {missing.shortfall}. The rest is judged when there is room: tomorrow, or with a higher"
                f" cap.{given_up}"
            )
        keys = missing.partition_keys
        found = f"{pluralize(len(keys), 'partition lacks', 'partitions lack')} verdicts"
        # What was captured before the first partition was moved is no partition any more.
        hours = [
            hour
            for key in keys
            if floor_to_hour(settings.capture.start) <= (hour := parse_partition_key(key)) <= floor_to_hour(now)
        ]
        # A verdict on what is being captured anew would be stale at once.
        due, held_back = due_hours(context.instance, hours, REFINEMENT, [*CAPTURE, *REFINEMENT], now)
        return dg.SensorResult(
            run_requests=run_requests(
                due, REFINEMENT, refinement_batch(settings.dagster.backfill_batch), "verdicts are missing"
            ),
            skip_reason=None if due else dg.SkipReason(f"{found}{held_back}.{given_up}"),
        )

    return refinement_sensor
