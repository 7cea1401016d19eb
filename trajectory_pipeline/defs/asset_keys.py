"""Names and keys of the pipeline's assets, for whatever selects them."""

import dagster as dg

from trajectory_pipeline.partition_keys import LETTA, asset_path
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.settings import Settings

ASSETS = (TERMINAL_RUNS.name, TRAJECTORIES.name, REFINED_OUTCOMES.name, TRAJECTORY_EMBEDDINGS.name)
"""What can be materialized, upstream first."""


def asset_key(name: str, source: str = LETTA) -> dg.AssetKey:
    """Return the key of a source's asset: its name alone for the Letta database, else below the source's name."""
    return dg.AssetKey(asset_path(name, source))


def source_key(source: str) -> dg.AssetKey:
    """Return the key of what a source other than the Letta database holds: an external asset."""
    return dg.AssetKey([source, "runs"])


def capture_keys(source: str) -> list[dg.AssetKey]:
    """Return the keys of what is captured and converted of a source."""
    return [asset_key(TERMINAL_RUNS.name, source), asset_key(TRAJECTORIES.name, source)]


def refinement_keys(source: str) -> list[dg.AssetKey]:
    """Return the key of what is judged of a source."""
    return [asset_key(REFINED_OUTCOMES.name, source)]


def embedding_keys(source: str) -> list[dg.AssetKey]:
    """Return the key of what is embedded of a source."""
    return [asset_key(TRAJECTORY_EMBEDDINGS.name, source)]


def judged_keys(settings: Settings) -> list[dg.AssetKey]:
    """Return the keys of what reports are made of: trajectories and verdicts of all sources."""
    return [
        asset_key(table.name, source) for source in settings.source.names for table in (TRAJECTORIES, REFINED_OUTCOMES)
    ]


CAPTURE, REFINEMENT, EMBEDDING = capture_keys(LETTA), refinement_keys(LETTA), embedding_keys(LETTA)
"""Of the Letta database."""
