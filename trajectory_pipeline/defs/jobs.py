"""The one job: all three assets of a partition.

Belongs here: the job. Does not belong here: when it runs (``schedules``, ``sensors``).
"""

import warnings
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.assets.assets import CAPTURE, REFINEMENT

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

JOB_NAME = "trajectory_job"


def build_job() -> "UnresolvedAssetJobDefinition":
    """Return the job; its partitions are those of its assets, and a request may select fewer of them."""
    # Known, and meant (``assets.refinement_batch``); Dagster says so each time it resolves the job, later than here.
    warnings.filterwarnings("ignore", f"Asset job {JOB_NAME} materializes assets with varying BackfillPolicies")
    return dg.define_asset_job(
        JOB_NAME,
        selection=[*CAPTURE, *REFINEMENT],
        description="Raw rows, trajectories and verdicts of one partition, or of a range.",
    )
