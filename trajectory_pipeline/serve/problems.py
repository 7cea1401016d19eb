"""Errors as ``application/problem+json`` (RFC 9457): what was wrong, where, and what to do."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from trajectory_pipeline.errors import PipelineError, SinkError
from trajectory_pipeline.serve.wrong_values import sentences
from trajectory_pipeline.storage.postgres.service_access import QueryTimeoutError

LOG = logging.getLogger("trajectory_pipeline.serve")
MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "The request cannot be read",
    401: "A token is needed",
    403: "The token does not allow this",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    408: "The request did not arrive in time",
    409: "This cannot be done now",
    413: "The request is too large",
    415: "The media type is not JSON",
    422: "A value is wrong",
    431: "The headers are too large",
    500: "A defect of the service",
    502: "Dagster refused",
    503: "Not available now",
    504: "The query took too long",
}


class ProblemDetail(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field("about:blank", description="Always `about:blank`: the status says the kind.")
    title: str = Field(description="The kind of error.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    detail: str = Field(description="What was wrong, and what to do.")
    request_id: str = Field(description="Id of the request, as in the header `X-Request-ID` and in the service's log.")


class ProblemError(Exception):
    """An answer other than the one that was asked for."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


SHOW = "show_problem"
"""In the scope of a request for a page: what makes a page of a problem, from its status and detail."""


def problem_response(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as a response: as JSON, or as a page where a page was asked for."""
    if SHOW in scope:
        page: Response = scope[SHOW](status, detail)
        return page
    return Response(
        problem_body(status, detail, str(scope.get("request_id", ""))), status, dict(headers or {}), MEDIA_TYPE
    )


def problem_body(status: int, detail: str, request_id: str) -> bytes:
    """Return a problem as JSON text."""
    title = TITLES.get(status, "The request failed")
    return orjson.dumps(
        {"type": "about:blank", "title": title, "status": status, "detail": detail, "request_id": request_id}
    )


def answer_to(error: PipelineError, request_id: str | None = None) -> tuple[int, str]:
    """Return the status and the words for an error.

    What a sink says, with its host and database, is written to the log: no client needs it.
    """
    if isinstance(error, QueryTimeoutError) or not isinstance(error, SinkError):
        return (504 if isinstance(error, QueryTimeoutError) else 409), str(error)
    LOG.error(json.dumps({"request_id": request_id, "error": type(error).__name__, "reason": str(error)}))
    return 503, "The database or the storage cannot be reached, or refuses: the service's log says why."


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return for OpenAPI the problems that an endpoint answers with, beside those of every endpoint."""
    example = {"type": "about:blank", "request_id": "5f0c6c1d2b7e4a66"}
    return {
        status: {
            "description": TITLES[status],
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/ProblemDetail"},
                    "example": example | {"title": TITLES[status], "status": status, "detail": _EXAMPLES[status]},
                }
            },
        }
        for status in sorted({*statuses, *_EVERYWHERE})
    }


_EVERYWHERE = (400, 401, 403, 408, 413, 422, 431, 500, 503, 504)
_EXAMPLES = {
    400: "The body is not JSON.",
    401: "Send a token: Authorization: Bearer …. `trajectory-pipeline tokens create` makes one.",
    403: "The token lacks the scope `judge`.",
    404: "There is no such run among those that the token may see.",
    408: "The body did not arrive within 10 seconds.",
    409: "The run is still in Letta: delete it there first.",
    413: "The body is larger than 1048576 bytes.",
    422: "query.limit: it must be at most 200.",
    431: "The headers have more than 65,536 bytes: shorten them.",
    500: "See the service's log for this request id.",
    502: "Dagster refused to launch the run: no such job.",
    503: "The database or the storage cannot be reached, or refuses: the service's log says why.",
    504: "The query took longer than 10 seconds: ask for fewer rows, a shorter time or one agent.",
}


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the app with a problem."""

    def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)  # noqa: S101 - registered for it
        return problem_response(request.scope, error.status, error.detail, error.headers)

    def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return problem_response(request.scope, error.status_code, str(error.detail), error.headers)

    def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        errors = error.errors()
        status = 400 if any(one["type"] == "json_invalid" for one in errors) else 422
        return problem_response(request.scope, status, sentences(errors))

    def on_pipeline_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, PipelineError)  # noqa: S101
        status, detail = answer_to(error, request.scope.get("request_id"))
        return problem_response(request.scope, status, detail)

    def on_defect(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the frame logs it
        return problem_response(request.scope, 500, "This is a defect of the service: its log says where.")

    # Without it, Starlette answers with a plain text, and raises the error again either way.
    app.add_exception_handler(Exception, on_defect)
    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(PipelineError, on_pipeline_error)
