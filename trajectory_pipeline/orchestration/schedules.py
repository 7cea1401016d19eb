"""The schedule: each closed hour, a few minutes after it closed.

Belongs here: which hour a tick requests. Does not belong here: the open hour, which is the capture sensor's (the stock
builder would request it).
"""

from datetime import datetime, timedelta

import dagster as dg

from trajectory_pipeline.hours import HOUR, floor, key_of
from trajectory_pipeline.orchestration.assets import CAPTURE, REFINEMENT
from trajectory_pipeline.orchestration.jobs import JOB_NAME
from trajectory_pipeline.settings import Settings

CLOSING_LAG = timedelta(minutes=5)
"""Late metrics, callbacks, messages of cancelled runs and finalised steps arrive within two minutes (measured on a
Letta 0.16.8 server); a reader that goes up to the last second can also miss a run whose commit follows its clock."""
NAME = "closed_hour"


def closed_hour(scheduled_at: datetime) -> datetime:
    """Return the last hour that was closed for the closing lag at a moment."""
    return floor(scheduled_at - CLOSING_LAG) - HOUR


def build_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule; running by default where ENABLE_TRAJECTORY_CAPTURE says so."""

    @dg.schedule(
        name=NAME,
        cron_schedule=f"{CLOSING_LAG.seconds // 60} * * * *",
        execution_timezone="UTC",
        job_name=JOB_NAME,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if settings.enable_capture
        else dg.DefaultScheduleStatus.STOPPED,
        description="Requests the hour that closed five minutes ago; its verdicts too, where a judge is configured.",
    )
    def closed_hour_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        hour = closed_hour(context.scheduled_execution_time)
        if hour < settings.start:
            return dg.SkipReason(f"{key_of(hour)} lies before the first partition, {key_of(settings.start)}.")
        if settings.judge_missing:
            context.log.info(f"refined_outcomes is not requested. {settings.judge_missing}")
        return dg.RunRequest(
            partition_key=key_of(hour),
            asset_selection=CAPTURE if settings.judge_missing else [*CAPTURE, *REFINEMENT],
            tags={"trajectory/reason": "the hour closed"},
        )

    return closed_hour_schedule
