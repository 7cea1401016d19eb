"""The assets, one file each: Letta's tables, and the three stages that materialize a partition."""

import dagster as dg

from trajectory_pipeline.defs.assets.refined_outcomes import build_refined_outcomes
from trajectory_pipeline.defs.assets.source_tables import SOURCE_TABLES
from trajectory_pipeline.defs.assets.terminal_runs import build_terminal_runs
from trajectory_pipeline.defs.assets.trajectories import build_trajectories
from trajectory_pipeline.defs.partitions import hourly_partitions
from trajectory_pipeline.settings import Settings


def build_assets(settings: Settings) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Return all assets. The three stages share one partitions definition."""
    partitions = hourly_partitions(settings.capture.start)
    return [
        *SOURCE_TABLES,
        build_terminal_runs(settings, partitions),
        build_trajectories(settings, partitions),
        build_refined_outcomes(settings, partitions),
    ]
