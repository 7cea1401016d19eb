"""The job that materializes all stages, and its schedule: each closed hour, a few minutes after it closed.

Dagster's own builder of partitioned schedules would request the open hour, which is the capture sensor's.
"""

import warnings
from contextlib import suppress
from datetime import datetime, timedelta

import dagster as dg

from trajectory_pipeline.defs.asset_keys import CAPTURE, REFINEMENT, capture_keys, embedding_keys, refinement_keys
from trajectory_pipeline.defs.jobs.daily import AnyJob, ScheduledJob, default_status
from trajectory_pipeline.defs.resources import LettaResource, StorageResource
from trajectory_pipeline.defs.sensors.capture import capture_sensor_is_on, find_stale_in_tick, source_in_tick
from trajectory_pipeline.defs.sensors.run_requests import TRAJECTORY_JOB, exclude_hours, hours_in_progress
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import HOUR, LETTA, floor_to_hour, name_at, partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

SCHEDULE_NAME = "closed_hour"


def last_closed_hour(scheduled_at: datetime, closing_lag: timedelta) -> datetime:
    """Return the last hour that had been closed for the closing lag at a moment.

    Late metrics, callbacks, messages of cancelled runs and finalized steps arrive within two minutes (measured on a
    Letta 0.16.8 server). A read up to the last second can also miss a run whose commit is later than its timestamp.
    """
    return floor_to_hour(scheduled_at - closing_lag) - HOUR


def build_source_job(source: str) -> AnyJob:
    """Return the job that materializes all stages of a source."""
    name = name_at(TRAJECTORY_JOB, source)
    # Intended (see ``refinement_batch``). Dagster warns whenever it resolves the job, which is later than here.
    warnings.filterwarnings("ignore", f"Asset job {name} materializes assets with varying BackfillPolicies")
    return dg.define_asset_job(
        name,
        selection=[*capture_keys(source), *refinement_keys(source), *embedding_keys(source)],
        description="Captures, converts, judges and embeds one partition, or a range.",
    )


def build_trajectory_job(settings: Settings) -> ScheduledJob:
    """Return the job and its hourly schedule, which runs by default where capture is enabled."""
    capture = settings.capture
    job = build_source_job(LETTA)
    lag, start, judge_disabled = capture.closing_lag_minutes, capture.start, settings.judge.disabled_reason

    @dg.schedule(
        name=SCHEDULE_NAME,
        cron_schedule=f"{lag % 60} * * * *",
        execution_timezone="UTC",
        job=job,
        default_status=default_status(running=capture.enabled),
        description=(
            f"Requests the hour that closed {pluralize(lag, 'minute')} ago, with its verdicts where a judge is"
            " configured. Skips an hour that the capture sensor has already captured."
        ),
    )
    def closed_hour(
        context: dg.ScheduleEvaluationContext, letta: LettaResource, storage: StorageResource
    ) -> dg.RunRequest | dg.SkipReason:
        hour = last_closed_hour(context.scheduled_execution_time, timedelta(minutes=lag))
        key = partition_key(hour)
        if hour < start:
            return dg.SkipReason(f"{key} is before the first partition, {partition_key(start)}.")
        if capture_sensor_is_on(context.instance, settings):
            if not exclude_hours([hour], hours_in_progress(context.instance, CAPTURE)):
                return dg.SkipReason(f"{key} is already in progress.")
            # If that cannot be found out, request the run: its failure shows what is wrong where people look for it.
            with suppress(PipelineError):
                if not find_stale_in_tick(source_in_tick(letta), storage, [hour], settings):
                    return dg.SkipReason(f"{key} is already up to date; the capture sensor handled it.")
        if judge_disabled:
            context.log.info(f"refined_outcomes is not requested. {judge_disabled}")
        return dg.RunRequest(
            partition_key=key,
            asset_selection=CAPTURE if judge_disabled else [*CAPTURE, *REFINEMENT],
            tags={"trajectory/reason": "the hour closed"},
        )

    return job, closed_hour
