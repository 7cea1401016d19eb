"""Endpoints: runs by filters, page by page, and one trajectory with its document and verdict."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from trajectory_pipeline.schema.enums import ExecutionStatus
from trajectory_pipeline.serve.authentication import Reader, service_of
from trajectory_pipeline.serve.filters import FilterQuery
from trajectory_pipeline.serve.models import LessonPage, RunId, RunPage, Trajectory
from trajectory_pipeline.serve.presentation import (
    decode_cursor,
    document_json,
    encode_cursor,
    lesson_of,
    run_summary,
    trajectory_json,
)
from trajectory_pipeline.serve.problems import ProblemError, problems
from trajectory_pipeline.serve.service import DATA_NOTICE
from trajectory_pipeline.storage.postgres.service_reads import list_lessons, list_runs, read_document, read_run

router = APIRouter(prefix="/v1", tags=["trajectories"])


class PageQuery(FilterQuery):
    """Filters, and a page."""

    limit: int = Field(50, ge=1, le=200, description="Runs of a page.")
    cursor: str | None = Field(None, max_length=1000, description="`next_cursor` of the page before.")


class ListQuery(PageQuery):
    """Filters, one of which search does not have, and a page."""

    execution_status: list[ExecutionStatus] = Field([], max_length=10, description="How the run ended.")


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


@router.get("/lessons", responses=problems(), summary="List lessons")
def lessons(request: Request, access: Reader, query: Annotated[PageQuery, Query()]) -> LessonPage:
    """Return what the judge would have another agent do or avoid, the newest run first."""
    service = service_of(request)
    filters, after = query.filters(), None if query.cursor is None else decode_cursor(query.cursor)
    with service.database.reading(access.tenants) as connection:
        rows = list_lessons(connection, filters, after, query.limit + 1)
    items: list[Any] = [lesson_of(row, service) for row in rows[: query.limit]]
    cursor = encode_cursor(rows[query.limit - 1]) if len(rows) > query.limit else None
    return LessonPage(notice=DATA_NOTICE, items=items, next_cursor=cursor)


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
    document = text = None
    with service.database.reading(access.tenants) as connection:
        row = read_run(connection, run_id)
        # Whether the run may be seen is asked each time; redacting its document is what takes long.
        if row is not None and (document := service.documents.get(run_id, row["updated_at"])) is None:
            text = read_document(connection, run_id)
    if row is None:
        raise ProblemError(404, "There is no such run among those that the token may see.")
    if document is None:
        document = document_json(text, service)
        service.documents.put(run_id, row["updated_at"], document)
    return Response(trajectory_json(row, document, service), media_type="application/json")


SCHEMAS = (Trajectory,)
"""Shapes of responses that FastAPI does not see, for OpenAPI."""
