"""What Dagster loads: ``workspace.yaml`` names this module. Settings are read when Dagster asks for the definitions."""

from collections.abc import Mapping

import dagster as dg

from trajectory_pipeline.databases import require_dagster_driver
from trajectory_pipeline.defs.assets.exports import build_exports, build_pair_exports
from trajectory_pipeline.defs.assets.judge_quality import build_judge_quality
from trajectory_pipeline.defs.assets.refined_outcomes import build_refined_outcomes
from trajectory_pipeline.defs.assets.source_tables import SOURCE_TABLES, source_asset
from trajectory_pipeline.defs.assets.terminal_runs import build_terminal_runs
from trajectory_pipeline.defs.assets.trajectories import build_trajectories
from trajectory_pipeline.defs.assets.trajectory_embeddings import build_trajectory_embeddings
from trajectory_pipeline.defs.assets.trajectory_report import build_trajectory_report
from trajectory_pipeline.defs.history_checks import build_history_checks, build_history_checks_job
from trajectory_pipeline.defs.jobs.completeness import build_completeness_check, build_completeness_job
from trajectory_pipeline.defs.jobs.dagster_retention import build_dagster_retention_job
from trajectory_pipeline.defs.jobs.pair_exports import build_pair_export_job
from trajectory_pipeline.defs.jobs.report import build_report_job
from trajectory_pipeline.defs.jobs.retention import build_retention_job
from trajectory_pipeline.defs.jobs.trajectory import build_trajectory_job
from trajectory_pipeline.defs.partitions import hourly_partitions
from trajectory_pipeline.defs.quality_checks import build_quality_checks
from trajectory_pipeline.defs.resources import build_resources
from trajectory_pipeline.defs.sensors.capture import build_capture_sensor
from trajectory_pipeline.defs.sensors.embedding import build_embedding_sensor
from trajectory_pipeline.defs.sensors.empty_hours import build_empty_hour_sensor
from trajectory_pipeline.defs.sensors.export import build_export_job, build_export_sensor
from trajectory_pipeline.defs.sensors.failure_notice import build_failure_notice_sensor
from trajectory_pipeline.defs.sensors.judge_batches import build_judge_batch_sensor
from trajectory_pipeline.defs.sensors.reconciliation import build_reconciliation_sensor
from trajectory_pipeline.defs.sensors.refinement import build_refinement_sensor
from trajectory_pipeline.settings import Settings, load_settings


def build_defs(settings: Settings, resource_overrides: Mapping[str, object] | None = None) -> dg.Definitions:
    """Return the definitions for given settings.

    ``resource_overrides`` replace the settings' resources by key: ``sources``, ``storage``, ``judge``, ``embedding``,
    ``budget``.

    Example:
        >>>     from trajectory_pipeline.settings import Settings
        >>> defs = build_defs(Settings())
        >>> sorted(job.name for job in defs.resolve_all_job_defs() if job.name.startswith("tra"))
        ['trajectory_job']
    """
    # One definition for all stages of a source: Dagster maps their partitions to each other one to one.
    partitions = {source: hourly_partitions(settings.capture.start, source) for source in settings.source.names}
    exports = [asset for source, hours in partitions.items() for asset in build_exports(settings, hours, source)]
    pair_exports = build_pair_exports(settings)
    jobs = [
        *(build_trajectory_job(settings, source) for source in partitions),
        build_completeness_job(settings),
        build_retention_job(settings),
        build_dagster_retention_job(settings),
        build_report_job(settings),
        build_history_checks_job(settings),
        *([build_pair_export_job(settings, pair_exports)] if pair_exports else []),
    ]
    return dg.Definitions(
        assets=[
            *SOURCE_TABLES,
            *map(source_asset, settings.source.others),
            *(
                build(settings, hours, source)
                for source, hours in partitions.items()
                for build in (
                    build_terminal_runs,
                    build_trajectories,
                    build_refined_outcomes,
                    build_trajectory_embeddings,
                )
            ),
            build_judge_quality(settings),
            build_trajectory_report(settings),
            *exports,
            *pair_exports,
        ],
        asset_checks=[
            *(build_completeness_check(settings, source) for source in partitions),
            build_history_checks(),
            build_quality_checks(settings),
        ],
        jobs=[
            *(job for job, _ in jobs),
            *(build_export_job(settings, source) for source in partitions if exports),
        ],
        schedules=[schedule for _, schedule in jobs],
        sensors=[
            *(build_capture_sensor(settings, source=source) for source in partitions),
            *(build_refinement_sensor(settings, source=source) for source in partitions),
            *(build_judge_batch_sensor(settings, source) for source in partitions),
            *(build_embedding_sensor(settings, source=source) for source in partitions),
            *(build_export_sensor(settings, source=source) for source in partitions if exports),
            build_reconciliation_sensor(settings),
            build_failure_notice_sensor(settings),
            *(build_empty_hour_sensor(settings, source=source) for source in partitions),
        ],
        resources={**build_resources(settings), **(resource_overrides or {})},
        # For backfills from the UI too: a run launcher spreads runs over machines, and each run stays in one process.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions for the environment's settings."""
    require_dagster_driver()
    return build_defs(load_settings())
