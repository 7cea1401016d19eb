"""What the daily jobs have in common."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Union

import dagster as dg

from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

AnyJob = Union[dg.JobDefinition, "UnresolvedAssetJobDefinition"]
ScheduledJob = tuple[AnyJob, dg.ScheduleDefinition]


def scheduled_daily(job: AnyJob, at: str, *, running: bool) -> ScheduledJob:
    """Return the job and a schedule that runs it each day at a time, UTC, as ``HH:MM``; by default if ``running``."""
    hour, _, minute = at.partition(":")
    return job, dg.ScheduleDefinition(
        name=f"daily_{job.name.removesuffix('_job')}",
        job=job,
        cron_schedule=f"{int(minute)} {int(hour)} * * *",
        execution_timezone="UTC",
        default_status=default_status(running=running),
        description=f"Once a day. {job.description}",
    )


def storage_job(
    name: str, description: str, work: Callable[[dg.OpExecutionContext, StorageResource], None]
) -> dg.JobDefinition:
    """Return a job that does some work on storage, and fails with the text of the work's ``PipelineError``.

    The name of its only step is the work's.
    """

    @dg.op(name=work.__name__, description=description)
    def step(context: dg.OpExecutionContext, storage: StorageResource) -> None:
        try:
            work(context, storage)
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None

    @dg.job(name=name, description=description)
    def job() -> None:
        step()

    return job


def default_status(*, running: bool) -> dg.DefaultScheduleStatus:
    """Return whether a schedule runs by default, as Dagster names it."""
    return dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
