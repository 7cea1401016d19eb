"""Asset ``trajectories``: raw rows converted to one row per run, in Parquet and Postgres."""

from collections.abc import Sequence
from datetime import datetime

import dagster as dg

from trajectory_pipeline.defs import asset_checks
from trajectory_pipeline.defs.asset_keys import asset_key
from trajectory_pipeline.defs.assets.partition_runner import MaterializeResults, Metadata, materialize_partitions
from trajectory_pipeline.defs.assets.stage import stage_asset
from trajectory_pipeline.defs.launch_config import ConversionConfig, require_valid_config
from trajectory_pipeline.defs.metadata import preview_metadata, trajectories_metadata
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.partition_keys import LETTA, parse_partition_key
from trajectory_pipeline.schema.bookkeeping import QUARANTINE
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, SIGNALS_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.versions import CONVERSION_VERSION
from trajectory_pipeline.settings import Settings


def build_trajectories(
    settings: Settings, partitions: dg.PartitionsDefinition[str], source: str = LETTA
) -> dg.AssetsDefinition:
    """Return the asset, with the checks of its counts, quarantine, columns and ids."""

    @stage_asset(
        settings,
        TRAJECTORIES,
        partitions,
        source=source,
        stage="convert",
        fresh=True,
        partitions_per_run=settings.dagster.backfill_batch,
        versions={"conversion": CONVERSION_VERSION, "schema": SCHEMA_VERSION, "signals": SIGNALS_VERSION},
        postgres_table=TRAJECTORIES.name,
        deps=[asset_key(TERMINAL_RUNS.name, source)],
        kinds={"parquet", "postgres"},
        check_specs=asset_checks.checks_of(TRAJECTORIES.name, source),
    )
    def trajectories(
        context: dg.AssetExecutionContext, config: ConversionConfig, storage: StorageResource
    ) -> MaterializeResults:
        from trajectory_pipeline.pipeline.convert import materialize_trajectories
        from trajectory_pipeline.pipeline.convert_range import RangeConversion
        from trajectory_pipeline.pipeline.reconcile_counts import Reconciliation, reconcile_partition
        from trajectory_pipeline.pipeline.repeated_runs import find_repeated_runs
        from trajectory_pipeline.storage.declared_schema import schema_differences

        require_valid_config(context.run.run_config)
        reconciliations: list[Reconciliation] = []
        quarantined: list[str] = []

        with storage.sinks().pooled() as sinks:
            together = RangeConversion(list(map(parse_partition_key, sorted(context.partition_keys))), sinks.parquet)

            def materialize(hour: datetime) -> Metadata:
                result = materialize_trajectories(
                    hour,
                    sinks,
                    dagster_run_id=context.run.run_id,
                    force=config.force,
                    together=together,
                )
                reconciliations.append(reconcile_partition(hour, sinks))
                quarantined.extend(run.run_id for run in result.quarantined)
                return {**trajectories_metadata(result), **preview_metadata(sinks.parquet, TRAJECTORIES, hour)}

            def check_results(hours: Sequence[datetime]) -> list[dg.AssetCheckResult]:
                differences = schema_differences(sinks, TRAJECTORIES, hours, [TRAJECTORIES, QUARANTINE])
                return [
                    asset_checks.row_counts(reconciliations),
                    asset_checks.quarantine(quarantined),
                    asset_checks.schema(differences),
                    asset_checks.unique(find_repeated_runs(TRAJECTORIES, hours, sinks)),
                ]

            yield from materialize_partitions(context, materialize, check_results)

    return trajectories
