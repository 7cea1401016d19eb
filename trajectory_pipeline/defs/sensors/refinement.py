"""The refinement sensor: requests the partitions whose trajectories lack a verdict.

Belongs here: when a tick requests nothing, and why. Does not belong here: the queries (``sinks``), and what makes run
requests of the hours that are due (``defs.sensors.run_requests``).
"""

from datetime import timedelta

import dagster as dg

from trajectory_pipeline.defs.asset_checks import GIVEN_UP
from trajectory_pipeline.defs.assets.assets import CAPTURE, REFINEMENT, refinement_batch
from trajectory_pipeline.defs.jobs import JOB_NAME
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.sensors.run_requests import (
    SECONDS_BETWEEN_TICKS,
    Clock,
    default_status,
    due_of,
    requests,
    utc_now,
)
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import floor, hour_of
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import counted

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
            f" {counted(settings.quiet_minutes, 'minute')}, not older than {counted(settings.horizon_days, 'day')},"
            f" as far as the budget goes ({settings.daily_budget_usd} dollars a day, UTC)."
            + (f"\n\n**Requests nothing.** {settings.judge_missing}" if settings.judge_missing else "")
        ),
    )
    def refinement_sensor(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> dg.SensorResult | dg.SkipReason:
        if settings.judge_missing:
            return dg.SkipReason(settings.judge_missing)
        from trajectory_pipeline.pipeline.pending_verdicts import missing_verdicts

        now = clock()
        try:
            missing = missing_verdicts(
                pipeline.database,
                pipeline.judge,
                pipeline.policy,
                pipeline.budget,
                now=now,
                quiet=timedelta(minutes=settings.quiet_minutes),
                horizon=timedelta(days=settings.horizon_days),
                give_up_after=settings.judge_give_up_after,
                consent=pipeline.consent,
            )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        given_up = (
            f" {counted(len(missing.given_up), 'verdict')} given up: see the check {GIVEN_UP.name}."
            if missing.given_up
            else ""
        )
        if missing.no_room:
            spent = missing.spent
            return dg.SkipReason(
                f"Today (UTC) {spent.spent.usd:.4f} USD and {spent.spent.tokens} tokens were spent, and"
                f" {spent.reserved.usd:.4f} USD and {spent.reserved.tokens} tokens are reserved:"
                f" {missing.no_room}. The rest is judged when there is room: tomorrow, or with a higher cap.{given_up}"
            )
        keys = missing.partition_keys
        found = f"{counted(len(keys), 'partition lacks', 'partitions lack')} verdicts"
        # What was captured before the first partition was moved is no partition any more.
        hours = [hour for key in keys if floor(settings.start) <= (hour := hour_of(key)) <= floor(now)]
        # A verdict on what is being captured anew would be stale at once.
        due, held_back = due_of(context.instance, hours, REFINEMENT, [*CAPTURE, *REFINEMENT], now)
        return dg.SensorResult(
            run_requests=requests(due, REFINEMENT, refinement_batch(settings.backfill_batch), "verdicts are missing"),
            skip_reason=None if due else dg.SkipReason(f"{found}{held_back}.{given_up}"),
        )

    return refinement_sensor
