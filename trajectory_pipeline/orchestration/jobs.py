"""The one job: all three assets of a partition.

Belongs here: the job. Does not belong here: when it runs (``schedules``, ``sensors``).
"""

import dagster as dg

from trajectory_pipeline.orchestration.assets import CAPTURE, REFINEMENT

JOB_NAME = "trajectory_job"


def build_job(partitions_def: dg.PartitionsDefinition[str]) -> "dg.UnresolvedAssetJobDefinition":  # type: ignore[name-defined]
    """Return the job; a request may select fewer assets of it."""
    return dg.define_asset_job(
        JOB_NAME,
        selection=[*CAPTURE, *REFINEMENT],
        partitions_def=partitions_def,
        description="Raw rows, trajectories and verdicts of one partition, or of a range.",
    )
