"""Keys of the pipeline's assets, for whatever selects them."""

import dagster as dg

from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES

CAPTURE = [dg.AssetKey(TERMINAL_RUNS.name), dg.AssetKey(TRAJECTORIES.name)]
REFINEMENT = [dg.AssetKey(REFINED_OUTCOMES.name)]
