"""Endpoint: erase the content of a run that is deleted at the source."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.serve.authentication import Eraser, service_of
from trajectory_pipeline.serve.models import RunId
from trajectory_pipeline.serve.problems import ProblemError, problems
from trajectory_pipeline.serve.run_address import RUN_ID
from trajectory_pipeline.storage.postgres.service_reads import erasure_state

router = APIRouter(prefix="/v1", tags=["erasure"])


class Erased(BaseModel):
    """A run whose content is gone from every sink; ids, counts and times stay."""

    run_id: str
    partition_key: str
    erased_verdicts: int = Field(description="Verdicts whose texts went with it, now.")
    exports: list[str] = Field(
        description="Where exported datasets are that hold it as it was: delete them, or export them again."
    )


@router.delete(f"/trajectories/{RUN_ID}", responses=problems(404, 409), summary="Erase a run")
def erase_trajectory(request: Request, access: Eraser, run_id: RunId) -> Erased:
    """Erase a run's text from Parquet and Postgres, with that of verdicts that showed it; other runs stay as they are.

    The run must be deleted at the source, and captured since: what is still there would be captured again. Erasing
    twice changes nothing. It waits for a materialization of the same hour.
    """
    # Loaded only where somebody erases: it brings pandas and scikit-learn with it.
    from trajectory_pipeline.maintenance.erase_deleted import erase_partition
    from trajectory_pipeline.storage.postgres.export_registry import exports_holding

    service = service_of(request)
    with service.database.reading(access.tenants) as connection:
        state = erasure_state(connection, run_id)
    if state is None:
        raise ProblemError(404, "There is no such run among those that the token may see.")
    if state["deleted_at"] is None:
        raise ProblemError(
            409,
            "The run is not deleted at the source, and would be captured again: delete it in Letta, wait for the next"
            " capture (or ask for a materialization of it), then erase it.",
        )
    erased_verdicts = 0
    if not state["erased"]:
        partition = parse_partition_key(state["partition_key"])
        erased_verdicts = erase_partition(partition, service.storage, only=[run_id]).erased_verdicts
    held = exports_holding(service.storage.postgres, [run_id])
    return Erased(
        run_id=run_id,
        partition_key=state["partition_key"],
        erased_verdicts=erased_verdicts,
        exports=[row["location"] for row in held if not row["is_current"]],
    )
