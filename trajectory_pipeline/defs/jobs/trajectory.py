"""The job of each source that materializes all stages, and its schedule: each closed hour, minutes after it closed.

Dagster's own builder of partitioned schedules would request the open hour, which is the capture sensor's.
"""

import warnings
from contextlib import suppress
from datetime import datetime, timedelta

import dagster as dg

from trajectory_pipeline.defs.asset_keys import capture_keys, embedding_keys, refinement_keys
from trajectory_pipeline.defs.jobs.daily import ScheduledJob, default_status
from trajectory_pipeline.defs.resources import SourcesResource, StorageResource
from trajectory_pipeline.defs.sensors.capture import capture_sensor_is_on, find_stale_in_tick, source_in_tick
from trajectory_pipeline.defs.sensors.run_requests import TRAJECTORY_JOB, exclude_hours, hours_in_progress
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import HOUR, LETTA, at_source, floor_to_hour, name_at, partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

SCHEDULE_NAME = "closed_hour"


def last_closed_hour(scheduled_at: datetime, closing_lag: timedelta) -> datetime:
    """Return the last hour that had been closed for the closing lag at a moment.

    Late metrics, callbacks, messages of cancelled runs and finalized steps arrive within two minutes (measured on a
    Letta 0.16.8 server). A read up to the last second can also miss a run whose commit is later than its timestamp.
    """
    return floor_to_hour(scheduled_at - closing_lag) - HOUR


def build_trajectory_job(settings: Settings, source: str = LETTA) -> ScheduledJob:
    """Return the job of a source and its hourly schedule, which runs by default where capture is enabled."""
    capture, name = settings.capture, name_at(TRAJECTORY_JOB, source)
    captured, judged = capture_keys(source), refinement_keys(source)
    # Intended (see ``refinement_batch``). Dagster warns whenever it resolves the job, which is later than here.
    warnings.filterwarnings("ignore", f"Asset job {name} materializes assets with varying BackfillPolicies")
    job = dg.define_asset_job(
        name,
        selection=[*captured, *judged, *embedding_keys(source)],
        description="Captures, converts, judges and embeds one partition, or a range.",
    )
    lag, start, judge_disabled = capture.closing_lag_minutes, capture.start, settings.judge.disabled_reason

    @dg.schedule(
        name=name_at(SCHEDULE_NAME, source),
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
        context: dg.ScheduleEvaluationContext, sources: SourcesResource, storage: StorageResource
    ) -> dg.RunRequest | dg.SkipReason:
        hour = at_source(last_closed_hour(context.scheduled_execution_time, timedelta(minutes=lag)), source)
        key = partition_key(hour)
        if hour < start:
            return dg.SkipReason(f"{key} is before the first partition, {partition_key(at_source(start, source))}.")
        if capture_sensor_is_on(context.instance, settings, source):
            if not exclude_hours([hour], hours_in_progress(context.instance, captured)):
                return dg.SkipReason(f"{key} is already in progress.")
            # If that cannot be found out, request the run: its failure shows what is wrong where people look for it.
            with suppress(PipelineError):
                if not find_stale_in_tick(source_in_tick(sources, source), storage, [hour], settings):
                    return dg.SkipReason(f"{key} is already up to date; the capture sensor handled it.")
        if judge_disabled:
            context.log.info(f"refined_outcomes is not requested. {judge_disabled}")
        return dg.RunRequest(
            partition_key=key,
            asset_selection=captured if judge_disabled else [*captured, *judged],
            tags={"trajectory/reason": "the hour closed"},
        )

    return job, closed_hour
