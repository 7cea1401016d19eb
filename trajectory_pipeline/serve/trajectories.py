"""Endpoints: runs by filters, page by page, and one trajectory with its document and verdict."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response

from trajectory_pipeline.schema.enums import ExecutionStatus, Outcome
from trajectory_pipeline.serve.authentication import Reader, service_of
from trajectory_pipeline.serve.models import RunPage, Text, Trajectory
from trajectory_pipeline.serve.presentation import decode_cursor, encode_cursor, run_summary, trajectory_json
from trajectory_pipeline.serve.problems import ProblemError, problems
from trajectory_pipeline.serve.service import DATA_NOTICE
from trajectory_pipeline.storage.postgres.search import SearchFilters
from trajectory_pipeline.storage.postgres.service_reads import list_runs, read_run

router = APIRouter(prefix="/v1", tags=["trajectories"])
RunId = Annotated[Text, Path(description="Id of the run at the source, such as `run-…`.")]
_Names = Annotated[list[Text], Field(max_length=50)]


class FilterQuery(BaseModel):
    """Filters: a run must match each that is given; one that is given several times matches any of its values."""

    model_config = ConfigDict(extra="forbid")

    agent_id: _Names = Field([], description="Agents.")
    organization_id: _Names = Field([], description="Organizations.")
    project_id: _Names = Field([], description="Projects.")
    completed_from: AwareDatetime | None = Field(None, description="Runs that ended at this time or later.")
    completed_to: AwareDatetime | None = Field(None, description="Runs that ended before this time.")
    outcome: list[Outcome] = Field([], max_length=10, description="Judged outcomes under the current policy.")
    heuristic_outcome: list[Outcome] = Field([], max_length=10, description="Outcomes by rule.")
    tool: _Names = Field([], description="Tools that ran in it.")
    model: _Names = Field([], description="Models of its steps.")
    failure_mode: _Names = Field([], description="Failure modes of the verdict.")
    tag: _Names = Field([], description="Tags of the agent, or of the verdict.")
    task_family: Text | None = Field(None, description="Id of a task family.")

    def filters(self) -> SearchFilters:
        """Return the filters as storage takes them.

        Raises:
            ProblemError: 422, a time that Postgres cannot hold.
        """
        return SearchFilters(
            agent_ids=tuple(self.agent_id),
            organization_ids=tuple(self.organization_id),
            project_ids=tuple(self.project_id),
            completed_from=_storable(self.completed_from),
            completed_to=_storable(self.completed_to),
            outcomes=tuple(self.outcome),
            heuristic_outcomes=tuple(self.heuristic_outcome),
            tools=tuple(self.tool),
            models=tuple(self.model),
            failure_modes=tuple(self.failure_mode),
            tags=tuple(self.tag),
            task_family=self.task_family,
        )


class ListQuery(FilterQuery):
    """Filters, and a page."""

    execution_status: list[ExecutionStatus] = Field([], max_length=10, description="How the run ended.")
    limit: int = Field(50, ge=1, le=200, description="Runs of a page.")
    cursor: str | None = Field(None, max_length=1000, description="`next_cursor` of the page before.")


@router.get("/trajectories", responses=problems(), summary="List runs")
def list_trajectories(request: Request, access: Reader, query: Annotated[ListQuery, Query()]) -> RunPage:
    """Return runs that match, the newest end first, with what came of each; documents are not in the list."""
    service = service_of(request)
    filters, after = query.filters(), None if query.cursor is None else decode_cursor(query.cursor)
    with service.database.reading(access.tenants) as connection:
        rows = list_runs(connection, filters, query.execution_status, after, query.limit + 1)
    more = len(rows) > query.limit
    items: list[Any] = [run_summary(row, service) for row in rows[: query.limit]]
    cursor = encode_cursor(rows[query.limit - 1]) if more else None
    return RunPage(notice=DATA_NOTICE, items=items, next_cursor=cursor)


@router.get(
    "/trajectories/{run_id}",
    response_class=Response,
    responses={
        **problems(404),
        200: {
            "description": "The trajectory.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Trajectory"}}},
        },
    },
    summary="Get one trajectory",
)
def get_trajectory(request: Request, access: Reader, run_id: RunId) -> Response:
    """Return one trajectory: how it ended, its verdict with evidence, and its document, redacted."""
    service = service_of(request)
    with service.database.reading(access.tenants) as connection:
        row = read_run(connection, run_id)
    if row is None:
        raise ProblemError(404, "There is no such run among those that the token may see.")
    return Response(trajectory_json(row, service), media_type="application/json")


SCHEMAS = (Trajectory,)
"""Shapes of responses that FastAPI does not see, for OpenAPI."""


def _storable(moment: datetime | None) -> datetime | None:
    """Return a time that Postgres holds.

    Raises:
        ProblemError: 422, its offset puts it outside of the years 1 to 9999.
    """
    try:
        return moment and moment.astimezone(UTC)
    except OverflowError:
        raise ProblemError(422, "query: a time must be within the years 1 to 9999.") from None
