"""Asset ``terminal_runs``: raw rows of a partition, captured from a source into Parquet."""

from collections.abc import Sequence
from datetime import datetime

import dagster as dg

from trajectory_pipeline.defs import asset_checks
from trajectory_pipeline.defs.asset_keys import source_key
from trajectory_pipeline.defs.assets.partition_runner import MaterializeResults, Metadata, materialize_partitions
from trajectory_pipeline.defs.assets.source_tables import SOURCE_TABLES
from trajectory_pipeline.defs.assets.stage import stage_asset
from trajectory_pipeline.defs.launch_config import CaptureConfig, require_valid_config
from trajectory_pipeline.defs.metadata import preview_metadata, terminal_runs_metadata
from trajectory_pipeline.defs.resources import SourcesResource, StorageResource
from trajectory_pipeline.partition_keys import LETTA, parse_partition_key, partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.schema.versions import CAPTURE_VERSION
from trajectory_pipeline.settings import Settings


def build_terminal_runs(
    settings: Settings, partitions: dg.PartitionsDefinition[str], source: str = LETTA
) -> dg.AssetsDefinition:
    """Return the asset of a source, with the checks of its files."""

    @stage_asset(
        settings,
        TERMINAL_RUNS,
        partitions,
        source=source,
        stage="capture",
        fresh=source == LETTA,
        pool=source,
        partitions_per_run=settings.dagster.backfill_batch,
        versions={"capture": CAPTURE_VERSION, "schema": SCHEMA_VERSION},
        deps=SOURCE_TABLES if source == LETTA else [source_key(source)],
        kinds={"parquet"},
        check_specs=asset_checks.checks_of(TERMINAL_RUNS.name, source),
    )
    def terminal_runs(
        context: dg.AssetExecutionContext, config: CaptureConfig, sources: SourcesResource, storage: StorageResource
    ) -> MaterializeResults:
        from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
        from trajectory_pipeline.pipeline.deletion_guard import ACCEPT_DELETIONS_TAG
        from trajectory_pipeline.pipeline.repeated_runs import find_repeated_runs
        from trajectory_pipeline.source_protocol import RangeSource
        from trajectory_pipeline.storage.declared_schema import schema_differences

        require_valid_config(context.run.run_config)
        accept_deletions = config.accept_deletions or context.run.tags.get(ACCEPT_DELETIONS_TAG) == "true"

        hours = [parse_partition_key(key) for key in sorted(context.partition_keys)]
        opened = sources.source(source)
        together = opened.pooled_for(hours) if isinstance(opened, RangeSource) else opened.pooled()
        with together as pooled, storage.sinks().pooled() as sinks:

            def materialize(hour: datetime) -> Metadata:
                result = materialize_terminal_runs(
                    hour,
                    pooled,
                    sinks,
                    deleted=settings.capture.deleted_content,
                    start=settings.capture.start,
                    accept_deletions=accept_deletions,
                    force=config.force,
                    dagster_run_id=context.run.run_id,
                )
                if result.corrupt_file is not None:
                    context.log.warning(result.corrupt_file.sentence(partition_key(hour)))
                return {**terminal_runs_metadata(result), **preview_metadata(sinks.parquet, TERMINAL_RUNS, hour)}

            def check_results(hours: Sequence[datetime]) -> list[dg.AssetCheckResult]:
                return [
                    asset_checks.schema(schema_differences(sinks, TERMINAL_RUNS, hours)),
                    asset_checks.unique(find_repeated_runs(TERMINAL_RUNS, hours, sinks)),
                ]

            yield from materialize_partitions(context, materialize, check_results)

    return terminal_runs
