"""What Dagster loads: ``workspace.yaml`` names this module. Settings are read when Dagster asks for the definitions."""

from collections.abc import Mapping

import dagster as dg

from trajectory_pipeline.defs.asset_checks import build_completeness_check
from trajectory_pipeline.defs.assets import build_assets
from trajectory_pipeline.defs.jobs import build_jobs
from trajectory_pipeline.defs.resources import build_resources
from trajectory_pipeline.defs.sensors.capture import build_capture_sensor
from trajectory_pipeline.defs.sensors.reconciliation import build_reconciliation_sensor
from trajectory_pipeline.defs.sensors.refinement import build_refinement_sensor
from trajectory_pipeline.settings import Settings, load_settings


def build_defs(settings: Settings, resource_overrides: Mapping[str, object] | None = None) -> dg.Definitions:
    """Return the definitions for given settings.

    Args:
        settings: decide the first partition, what runs by default, and whether there is a judge.
        resource_overrides: by key (``letta``, ``storage``, ``judge``, ``budget``), instead of those of the settings.

    Example:
        >>> from trajectory_pipeline.settings import Settings
        >>> defs = build_defs(Settings())
        >>> sorted(job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__"))
        ['completeness_job', 'dagster_retention_job', 'retention_job', 'trajectory_job']
    """
    jobs = build_jobs(settings)
    return dg.Definitions(
        assets=build_assets(settings),
        asset_checks=[build_completeness_check(settings)],
        jobs=[job for job, _ in jobs],
        schedules=[schedule for _, schedule in jobs],
        sensors=[
            build_capture_sensor(settings),
            build_refinement_sensor(settings),
            build_reconciliation_sensor(settings),
        ],
        resources={**build_resources(settings), **(resource_overrides or {})},
        # For backfills from the UI too: a run launcher spreads runs over machines, and each run stays in one process.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions for the environment's settings."""
    return build_defs(load_settings())
