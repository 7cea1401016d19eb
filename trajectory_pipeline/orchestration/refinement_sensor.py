"""The refinement sensor: requests the partitions whose trajectories lack a verdict.

Belongs here: when a tick requests nothing, and why. Does not belong here: the queries (``sinks``), and what makes run
requests of the hours that are due (``orchestration.requesting``).
"""

from datetime import timedelta

import dagster as dg

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.hours import floor, hour_of
from trajectory_pipeline.orchestration.assets import CAPTURE, REFINEMENT, refinement_batch
from trajectory_pipeline.orchestration.jobs import JOB_NAME
from trajectory_pipeline.orchestration.requesting import (
    SECONDS_BETWEEN_TICKS,
    Clock,
    default_status,
    due_of,
    requests,
    utc_now,
)
from trajectory_pipeline.orchestration.resources import PipelineResource
from trajectory_pipeline.orchestration.words import counted
from trajectory_pipeline.settings import Settings

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
        due, held_back = due_of(context.instance, missing, REFINEMENT, [*CAPTURE, *REFINEMENT], now)
        return dg.SensorResult(
            run_requests=requests(due, REFINEMENT, refinement_batch(settings.backfill_batch), "verdicts are missing"),
            skip_reason=None if due else dg.SkipReason(f"{found}{held_back}."),
        )

    return refinement_sensor
