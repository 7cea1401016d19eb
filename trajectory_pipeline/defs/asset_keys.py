"""Names and keys of the pipeline's assets, for whatever selects them."""

import dagster as dg

from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES

ASSETS = (TERMINAL_RUNS.name, TRAJECTORIES.name, REFINED_OUTCOMES.name, TRAJECTORY_EMBEDDINGS.name)
"""What can be materialized, upstream first."""
CAPTURE = [dg.AssetKey(TERMINAL_RUNS.name), dg.AssetKey(TRAJECTORIES.name)]
REFINEMENT = [dg.AssetKey(REFINED_OUTCOMES.name)]
EMBEDDING = [dg.AssetKey(TRAJECTORY_EMBEDDINGS.name)]
