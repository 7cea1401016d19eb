"""What Dagster loads: ``workspace.yaml`` names this module.

Belongs here: putting the floors together. Does not belong here: any asset, and any setting: they are read when Dagster
asks for the definitions, not when this module is imported.
"""

import os

import dagster as dg

from trajectory_pipeline.defs import completeness
from trajectory_pipeline.defs.assets.assets import SOURCE_SPECS, build_assets
from trajectory_pipeline.defs.dagster_retention import build_retention as build_dagster_retention
from trajectory_pipeline.defs.jobs import build_job
from trajectory_pipeline.defs.partitions import hourly_partitions
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.retention import build_retention
from trajectory_pipeline.defs.schedules import build_schedule
from trajectory_pipeline.defs.sensors.capture import build_capture_sensor
from trajectory_pipeline.defs.sensors.reconciliation import build_reconciliation_sensor
from trajectory_pipeline.defs.sensors.refinement import build_refinement_sensor
from trajectory_pipeline.settings import Settings, load_settings


def build_defs(settings: Settings, pipeline: PipelineResource | None = None) -> dg.Definitions:
    """Return fresh definitions for given settings.

    Args:
        settings: what the definitions depend on: the first partition, what runs by default, whether there is a judge.
        pipeline: what assets and sensors reach out to; by default what the settings name.

    Example:
        >>> from trajectory_pipeline.settings import Settings
        >>> defs = build_defs(Settings())
        >>> sorted(job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__"))
        ['completeness_job', 'dagster_retention_job', 'retention_job', 'trajectory_job']
    """
    # Read by Dagster whenever it stores events: one by one otherwise, which is what most of a range would wait for.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "100")
    dagster_retention_job, dagster_retention_schedule = build_dagster_retention(settings)
    retention_job, retention_schedule = build_retention(settings)
    partitions_def = hourly_partitions(settings.capture.start)
    return dg.Definitions(
        assets=[
            *SOURCE_SPECS,
            *build_assets(partitions_def, settings.dagster.backfill_batch, settings.judge.disabled_reason),
        ],
        asset_checks=[completeness.completeness],
        jobs=[build_job(), retention_job, dagster_retention_job],
        schedules=[
            build_schedule(settings),
            completeness.build_schedule(settings),
            retention_schedule,
            dagster_retention_schedule,
        ],
        sensors=[
            build_capture_sensor(settings),
            build_refinement_sensor(settings),
            build_reconciliation_sensor(settings),
        ],
        resources={"pipeline": pipeline or PipelineResource(settings)},
        # Also what backfills from the UI use; a run launcher spreads runs over machines, a run stays in its process.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions for the environment's settings."""
    return build_defs(load_settings())
