"""The job of exported datasets of pairs, which have no partitions: makes them anew once a day."""

import dagster as dg

from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily
from trajectory_pipeline.settings import Settings

JOB_NAME = "pair_export_job"


def build_pair_export_job(settings: Settings, exports: list[dg.AssetsDefinition]) -> ScheduledJob:
    """Return the job of these assets and its daily schedule, which runs by default where capture is enabled."""
    job = dg.define_asset_job(
        JOB_NAME,
        dg.AssetSelection.assets(*exports),
        description="Makes exported datasets of pairs anew.",
    )
    return scheduled_daily(job, "04:45", running=settings.capture.enabled)
