"""The report job: makes ``judge_quality`` and ``trajectory_report`` once a day."""

import dagster as dg

from trajectory_pipeline.defs.assets.trajectory_report import REPORT
from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily
from trajectory_pipeline.quality.packages import missing_packages
from trajectory_pipeline.schema.quality import JUDGE_QUALITY
from trajectory_pipeline.settings import Settings

JOB_NAME = "report_job"


def build_report_job(settings: Settings) -> ScheduledJob:
    """Return the job and its daily schedule, which runs by default where capture is enabled."""
    measured = [] if missing_packages() else [JUDGE_QUALITY.name]
    job = dg.define_asset_job(
        JOB_NAME,
        # Its checks have a job of their own.
        dg.AssetSelection.assets(*measured, REPORT).without_checks(),
        description="Measures the judge by labels of people, and makes the report.",
    )
    return scheduled_daily(job, "05:30", running=settings.capture.enabled)
