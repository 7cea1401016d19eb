"""The schedule: each closed hour, a few minutes after it closed.

Belongs here: which hour a tick requests. Does not belong here: the open hour, which is the capture sensor's (the stock
builder would request it).
"""

from datetime import datetime, timedelta

import dagster as dg

from trajectory_pipeline.defs.assets.assets import CAPTURE, REFINEMENT
from trajectory_pipeline.defs.jobs import JOB_NAME
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.sensors.capture import sensor_is_on, tick_source
from trajectory_pipeline.defs.sensors.run_requests import exclude_hours, hours_in_progress
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

NAME = "closed_hour"


def closed_hour(scheduled_at: datetime, closing_lag: timedelta) -> datetime:
    """Return the last hour that was closed for the closing lag at a moment.

    Late metrics, callbacks, messages of cancelled runs and finalised steps arrive within two minutes (measured on a
    Letta 0.16.8 server); a reader that goes up to the last second can also miss a run whose commit follows its clock.
    """
    return floor_to_hour(scheduled_at - closing_lag) - HOUR


def build_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule; running by default where ENABLE_TRAJECTORY_CAPTURE says so."""

    @dg.schedule(
        name=NAME,
        cron_schedule=f"{settings.capture.closing_lag_minutes % 60} * * * *",
        execution_timezone="UTC",
        job_name=JOB_NAME,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if settings.capture.enabled
        else dg.DefaultScheduleStatus.STOPPED,
        description=(
            f"Requests the hour that closed {pluralize(settings.capture.closing_lag_minutes, 'minute')} ago; its"
            " verdicts too,"
            " where a judge is configured. With the capture sensor on, an hour that is captured already is skipped."
        ),
    )
    def closed_hour_schedule(
        context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> dg.RunRequest | dg.SkipReason:
        hour = closed_hour(context.scheduled_execution_time, timedelta(minutes=settings.capture.closing_lag_minutes))
        if hour < settings.capture.start:
            return dg.SkipReason(
                f"{partition_key(hour)} lies before the first partition, {partition_key(settings.capture.start)}."
            )
        why_not = _done_by_the_sensor(context.instance, pipeline, hour)
        if why_not:
            return dg.SkipReason(why_not)
        if settings.judge.disabled_reason:
            context.log.info(f"refined_outcomes is not requested. {settings.judge.disabled_reason}")
        return dg.RunRequest(
            partition_key=partition_key(hour),
            asset_selection=CAPTURE if settings.judge.disabled_reason else [*CAPTURE, *REFINEMENT],
            tags={"trajectory/reason": "the hour closed"},
        )

    return closed_hour_schedule


def _done_by_the_sensor(instance: dg.DagsterInstance, pipeline: PipelineResource, hour: datetime) -> str | None:
    """Return why an hour need not be requested; None where it must be, or where one cannot know."""
    from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions

    if not sensor_is_on(instance, pipeline.settings):
        return None
    if not exclude_hours([hour], hours_in_progress(instance, CAPTURE)):
        return f"{partition_key(hour)} is under way already."
    try:
        stale = find_stale_partitions(
            tick_source(pipeline), pipeline.database, [hour], pipeline.settings.capture.deleted_content
        )
    except PipelineError:
        # The run will say what is wrong, where people look for it.
        return None
    return None if stale else f"{partition_key(hour)} is as the source has it: the capture sensor was here before."
