"""The completeness job: the completeness check, daily and on demand.

Dagster's own freshness checks look at the last materialization of any partition: a backfill hides what is missing.
"""

import dagster as dg

from trajectory_pipeline.defs.asset_checks import COMPLETENESS
from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily
from trajectory_pipeline.settings import Settings

JOB_NAME = "completeness_job"


def build_completeness_job(settings: Settings) -> ScheduledJob:
    """Return the job and its daily schedule, which runs by default where capture is enabled."""
    job = dg.define_asset_job(
        JOB_NAME,
        selection=dg.AssetSelection.checks(COMPLETENESS),
        description="Compares source, ledger, Postgres and Parquet over the whole history.",
    )
    return scheduled_daily(job, "03:17", running=settings.capture.enabled)
