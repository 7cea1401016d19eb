"""What the daily schedules have in common."""

from typing import TYPE_CHECKING, Union

import dagster as dg

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

AnyJob = Union[dg.JobDefinition, "UnresolvedAssetJobDefinition"]


def daily_schedule(name: str, job: AnyJob, at: str, *, running: bool, description: str) -> dg.ScheduleDefinition:
    """Return a schedule that runs a job once a day.

    Args:
        name: of the schedule.
        job: to run.
        at: time of day, UTC, as ``HH:MM``.
        running: whether it runs by default.
        description: for the UI.
    """
    hour, _, minute = at.partition(":")
    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=f"{int(minute)} {int(hour)} * * *",
        execution_timezone="UTC",
        default_status=default_status(running=running),
        description=description,
    )


def default_status(*, running: bool) -> dg.DefaultScheduleStatus:
    """Return whether a schedule runs by default, as Dagster names it."""
    return dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
