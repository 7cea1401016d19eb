"""The jobs, one file each, with their schedules."""

import dagster as dg

from trajectory_pipeline.defs.jobs.completeness import build_completeness_job
from trajectory_pipeline.defs.jobs.dagster_retention import build_dagster_retention_job
from trajectory_pipeline.defs.jobs.daily_schedule import AnyJob
from trajectory_pipeline.defs.jobs.retention import build_retention_job
from trajectory_pipeline.defs.jobs.trajectory import build_trajectory_job
from trajectory_pipeline.settings import Settings


def build_jobs(settings: Settings) -> list[tuple[AnyJob, dg.ScheduleDefinition]]:
    """Return all jobs, each with its schedule."""
    return [
        build_trajectory_job(settings),
        build_completeness_job(settings),
        build_retention_job(settings),
        build_dagster_retention_job(settings),
    ]
