"""Endpoints: ask for verdicts on runs, or for their materialization, in Dagster's own queue; and what became of it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.serve.access import Access
from trajectory_pipeline.serve.authentication import Judge, service_of
from trajectory_pipeline.serve.dagster_queue import REASON_TAG, TOKEN_TAG, DagsterQueue
from trajectory_pipeline.serve.models import AnyRunId, Text
from trajectory_pipeline.serve.problems import ProblemError, problems
from trajectory_pipeline.serve.service import Service
from trajectory_pipeline.storage.postgres.service_reads import partitions_of

router = APIRouter(prefix="/v1", tags=["requests"])
MOST_PARTITIONS = 24
"""Of one request: each is a Dagster run."""
_RunIds = Annotated[list[AnyRunId], Field(min_length=1, max_length=100, description="Runs, all of which must exist.")]


class Stage(StrEnum):
    """What can be materialized."""

    TERMINAL_RUNS = TERMINAL_RUNS.name
    TRAJECTORIES = TRAJECTORIES.name


class VerdictRequest(BaseModel):
    """Runs to judge. A verdict that holds already is not asked for again."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"run_ids": ["run-1"]}})

    run_ids: _RunIds


class MaterializationRequest(BaseModel):
    """Runs whose hours are to be read from the source and converted again."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"run_ids": ["run-1"]}})

    run_ids: _RunIds
    assets: list[Stage] = Field([*Stage], min_length=1, max_length=2, description="Which stages.")


class QueuedRun(BaseModel):
    """One Dagster run in the queue."""

    dagster_run_id: str
    status: str
    partition_key: str
    run_ids: list[str] = Field(description="Which of the runs are in its partition.")


class Queued(BaseModel):
    """What was put into Dagster's queue."""

    items: list[QueuedRun]


class WorkState(BaseModel):
    """How far a Dagster run is."""

    dagster_run_id: str
    status: str = Field(description="Dagster's: `QUEUED`, `STARTED`, `SUCCESS`, `FAILURE`, …")
    partition_key: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


@router.post(
    "/verdicts", status_code=202, responses=problems(404, 502), summary="Ask for verdicts", operation_id="ask_verdicts"
)
def ask_verdicts(request: Request, access: Judge, body: VerdictRequest) -> Queued:
    """Put a Dagster run for each hour of these runs into the queue, which judges these runs alone, under all caps."""
    return _queue(service_of(request), access, body.run_ids, [REFINED_OUTCOMES.name])


@router.post("/materializations", status_code=202, responses=problems(404, 502), summary="Ask for a materialization")
def ask_materializations(request: Request, access: Judge, body: MaterializationRequest) -> Queued:
    """Put a Dagster run for each hour of these runs into the queue, which reads and converts it again if it changed."""
    return _queue(service_of(request), access, body.run_ids, [str(stage) for stage in Stage if stage in body.assets])


@router.get("/requests/{dagster_run_id}", responses=problems(404, 502), summary="How far a request is")
def request_state(
    request: Request,
    access: Judge,
    dagster_run_id: Annotated[Text, Path(description="Id of the Dagster run, as a request returned it.")],
) -> WorkState:
    """Return the state of a Dagster run that this token asked for."""
    found = _dagster(service_of(request)).run(dagster_run_id)
    if found is None or found["tags"].get(TOKEN_TAG) != _asker(access):
        raise ProblemError(404, "There is no such request by this token.")
    return WorkState(
        dagster_run_id=found["runId"],
        status=found["status"],
        partition_key=found["tags"].get("dagster/partition"),
        created_at=found["created_at"],
        started_at=found["started_at"],
        ended_at=found["ended_at"],
    )


def _queue(service: Service, access: Access, run_ids: list[str], assets: list[str]) -> Queued:
    with service.database.reading(access.tenants) as connection:
        partitions = partitions_of(connection, run_ids)
    missing = sorted(set(run_ids) - partitions.keys())
    if missing:
        raise ProblemError(
            404, f"{len(missing)} of the runs are not among those that the token may see: {', '.join(missing[:5])}."
        )
    by_partition: dict[str, list[str]] = {}
    for run_id, key in sorted(partitions.items()):
        by_partition.setdefault(key, []).append(run_id)
    if len(by_partition) > MOST_PARTITIONS:
        raise ProblemError(
            422,
            f"body.run_ids: the runs ended in {len(by_partition)} hours, and {MOST_PARTITIONS} are the most of one"
            " request: send several.",
        )
    queue, tags = _dagster(service), {REASON_TAG: "service", TOKEN_TAG: _asker(access)}
    items: list[QueuedRun] = []
    for key, ids in by_partition.items():
        config: dict[str, Any] = {REFINED_OUTCOMES.name: {"run_ids": ids}} if REFINED_OUTCOMES.name in assets else {}
        try:
            run = queue.launch(assets, key, config, tags)
        except ProblemError as error:
            if not items:
                raise
            queued = ", ".join(f"{item.dagster_run_id} ({item.partition_key})" for item in items)
            raise ProblemError(
                error.status,
                f"{error.detail.rstrip('.')}. {len(items)} of {len(by_partition)} hours were put into the queue before,"
                f" and go on: {queued}.",
            ) from None
        items.append(QueuedRun(dagster_run_id=run["runId"], status=run["status"], partition_key=key, run_ids=ids))
    return Queued(items=items)


def _dagster(service: Service) -> DagsterQueue:
    return DagsterQueue(service.settings.notices.dagster_ui_url)


def _asker(access: Access) -> str:
    return access.token_id or "none"
