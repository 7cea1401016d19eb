"""Removing partitions from the sinks that are older than a set age: opt-in, daily.

Belongs here: the job, its schedule, and what the UI shows of it. Does not belong here: the work
(``maintenance.retention``), and Dagster's own old runs (``defs.dagster_retention``).

A pruned partition stays materialised in the UI, for it was; an observation says that it is pruned now. Were it missing,
"materialise missing partitions" would bring all of it back.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.sensors.run_requests import utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.maintenance.retention import Retention

JOB_NAME = "retention_job"
SCHEDULE_NAME = "daily_retention"
NOT_SET = (
    "Neither TRAJECTORY_RETENTION_DAYS nor TRAJECTORY_RAW_RETENTION_DAYS is set: everything is kept, and nothing is"
    " pruned."
)


def retention_of(settings: Settings) -> "Retention":
    """Return how long the settings have everything kept.

    Raises:
        PipelineError: for ever.
    """
    from trajectory_pipeline.maintenance.retention import Retention

    if settings.retention.trajectory_days is None and settings.retention.raw_days is None:
        raise PipelineError(NOT_SET)
    days = settings.retention.trajectory_days, settings.retention.raw_days
    return Retention(*(None if number is None else timedelta(days=number) for number in days))


def prune_old_partitions(
    pipeline: PipelineResource, log: dg.DagsterLogManager, now: datetime
) -> Iterator[dg.AssetObservation]:
    """Prune what is old enough; yield what the UI shows of each partition that was.

    Raises:
        PipelineError: no age is set, a sink cannot be read, or some partitions failed, after the others are done.
    """
    from trajectory_pipeline.maintenance.retention import find_expired_partitions, prune_expired

    due = find_expired_partitions(pipeline.storage, retention_of(pipeline.settings), now)
    failed: dict[str, str] = {}
    for expired, done in prune_expired(pipeline.storage, due):
        name = f"{expired.target} {expired.partition_key}"
        if isinstance(done, PipelineError):
            failed[name] = str(done)
            continue
        if done.skip_reason:
            log.warning(f"{name} is old enough, but not deleted: {done.skip_reason}")
            continue
        log.info(f"{name}: {pluralize(done.rows, 'row')}, {pluralize(done.files.count, 'file')} removed")
        for asset in (expired.target, REFINED_OUTCOMES.name) if expired.target == "trajectories" else (expired.target,):
            yield dg.AssetObservation(
                asset,
                partition=expired.partition_key,
                description="Removed from the sinks because of its age.",
                metadata={"pruned": True},
            )
    if failed:
        name, reason = next(iter(failed.items()))
        raise PipelineError(f"{len(failed)} of {len(due)} could not be pruned, the others are. First, {name}: {reason}")


def build_retention(settings: Settings) -> tuple[dg.JobDefinition, dg.ScheduleDefinition]:
    """Return the job and its daily schedule; on by default where an age is set and capture is enabled."""

    @dg.op(description="Removes from both sinks what is older than TRAJECTORY_RETENTION_DAYS and its raw counterpart.")
    def prune_sinks(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineResource]) -> None:
        try:
            for observation in prune_old_partitions(pipeline, context.log, utc_now()):
                context.log_event(observation)
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None

    @dg.job(name=JOB_NAME, description="Removes old partitions from Postgres and Parquet, where an age is set.")
    def retention_job() -> None:
        prune_sinks()

    wanted = settings.capture.enabled and (settings.retention.trajectory_days or settings.retention.raw_days)
    schedule = dg.ScheduleDefinition(
        name=SCHEDULE_NAME,
        job=retention_job,
        cron_schedule="27 2 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING if wanted else dg.DefaultScheduleStatus.STOPPED,
        description=(
            "Removes old partitions from both sinks once a day, where TRAJECTORY_RETENTION_DAYS or"
            " TRAJECTORY_RAW_RETENTION_DAYS says how old."
        ),
    )
    return retention_job, schedule
