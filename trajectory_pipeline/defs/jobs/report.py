"""The report job: makes ``trajectory_report`` once a day."""

import dagster as dg

from trajectory_pipeline.defs.assets.trajectory_report import REPORT
from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily
from trajectory_pipeline.settings import Settings

JOB_NAME = "report_job"


def build_report_job(settings: Settings) -> ScheduledJob:
    """Return the job and its daily schedule, which runs by default where capture is enabled."""
    # Its checks have a job of their own.
    job = dg.define_asset_job(
        JOB_NAME, dg.AssetSelection.assets(REPORT).without_checks(), description="Makes the report."
    )
    return scheduled_daily(job, "05:30", running=settings.capture.enabled)
