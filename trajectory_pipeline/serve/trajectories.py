"""Endpoints: runs by filters, page by page, and one trajectory with its document and verdict."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from trajectory_pipeline.schema.enums import ExecutionStatus
from trajectory_pipeline.serve.access import Access
from trajectory_pipeline.serve.authentication import Reader, service_of
from trajectory_pipeline.serve.filters import FilterQuery
from trajectory_pipeline.serve.models import LONGEST_CURSOR, LessonPage, RunId, RunPage, Trajectory
from trajectory_pipeline.serve.presentation import (
    decode_cursor,
    document_json,
    encode_cursor,
    json_response,
    lesson_of,
    list_name,
    run_summary,
    trajectory_json,
)
from trajectory_pipeline.serve.problems import ProblemError, problems
from trajectory_pipeline.serve.recent_documents import KeptDocument
from trajectory_pipeline.serve.run_address import RUN_ID
from trajectory_pipeline.serve.service import DATA_NOTICE, Service
from trajectory_pipeline.storage.postgres.service_reads import RUN_WITH_DOCUMENT, list_lessons, list_runs

router = APIRouter(prefix="/v1", tags=["trajectories"])


class PageQuery(FilterQuery):
    """Filters, and a page."""

    limit: int = Field(50, ge=1, le=200, description="Runs of a page.")
    cursor: str | None = Field(None, max_length=LONGEST_CURSOR, description="`next_cursor` of the page before.")


class ListQuery(PageQuery):
    """Filters, one of which search does not have, and a page."""

    execution_status: list[ExecutionStatus] = Field([], max_length=10, description="How the run ended.")


@router.get("/trajectories", response_model=RunPage, responses=problems(), summary="List runs")
def list_trajectories(request: Request, access: Reader, query: Annotated[ListQuery, Query()]) -> Response:
    """Return runs that match, the newest end first, with what came of each; documents are not in the list."""
    service = service_of(request)
    filters = query.filters(access.tenants)
    listed = list_name("runs", filters, query.execution_status)
    after = decode_cursor(query.cursor, listed)
    with service.database.reading(access.tenants) as connection:
        rows = list_runs(connection, filters, query.execution_status, after, query.limit + 1)
    more = len(rows) > query.limit
    items = [run_summary(row, service) for row in rows[: query.limit]]
    cursor = encode_cursor(rows[query.limit - 1], listed) if more else None
    return json_response({"notice": DATA_NOTICE, "items": items, "next_cursor": cursor})


@router.get("/lessons", response_model=LessonPage, responses=problems(), summary="List lessons")
def lessons(request: Request, access: Reader, query: Annotated[PageQuery, Query()]) -> Response:
    """Return what the judge would have another agent do or avoid, the newest run first."""
    service = service_of(request)
    filters = query.filters(access.tenants)
    listed = list_name("lessons", filters)
    after = decode_cursor(query.cursor, listed)
    with service.database.reading(access.tenants) as connection:
        rows = list_lessons(connection, filters, after, query.limit + 1)
    items = [lesson_of(row, service) for row in rows[: query.limit]]
    cursor = encode_cursor(rows[query.limit - 1], listed) if len(rows) > query.limit else None
    return json_response({"notice": DATA_NOTICE, "items": items, "next_cursor": cursor})


@router.get(
    f"/trajectories/{RUN_ID}",
    response_class=Response,
    responses={
        **problems(404),
        200: {
            "description": "The trajectory.",
            "headers": {"ETag": {"description": "Send it as `If-None-Match`.", "schema": {"type": "string"}}},
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Trajectory"}}},
        },
        304: {"description": "It is still what `If-None-Match` names."},
    },
    summary="Get one trajectory",
)
def get_trajectory(request: Request, access: Reader, run_id: RunId) -> Response:
    """Return one trajectory: how it ended, its verdict with evidence, and its document, redacted."""
    return trajectory_response(service_of(request), access, run_id, request.headers.get("if-none-match"))


def trajectory_response(service: Service, access: Access, run_id: str, known: str | None) -> Response:
    """Return one trajectory, or that it is still what the client knows by its tag.

    Raises:
        ProblemError: 404, there is none that may be seen.
    """
    # Whether the run may be seen is asked each time; redacting its document is what takes long.
    kept = service.documents.get(run_id)
    since = None if kept is None else kept.updated_at.isoformat()
    rows = service.database.read(access.tenants, RUN_WITH_DOCUMENT, run_id, since)
    if not rows:
        raise ProblemError(404, "There is no such run among those that the token may see.")
    row = rows[0]
    if kept is None or kept.updated_at != row["updated_at"]:
        kept = KeptDocument(row["updated_at"], document_json(row["data"], service))
        service.documents.put(run_id, kept)
    body = trajectory_json(row, kept.document, service)
    tag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
    if known is not None and (tag in known or known.strip() == "*"):
        return Response(status_code=304, headers={"etag": tag})
    return Response(body, headers={"etag": tag}, media_type="application/json")


SCHEMAS = (Trajectory,)
"""Shapes of responses that FastAPI does not see, for OpenAPI."""
