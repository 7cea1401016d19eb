"""One trajectory by its id, answered before FastAPI: reading path and token by itself takes a tenth of the time."""

import re
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.serve.authentication import bearer_token, find_access
from trajectory_pipeline.serve.problems import ProblemError, answer_to, problem_response
from trajectory_pipeline.serve.service import Service
from trajectory_pipeline.serve.trajectories import trajectory_response

if TYPE_CHECKING:
    from starlette.responses import Response

ROUTE = "/v1/trajectories/{run_id}"
_PATH = re.compile(r"/v1/trajectories/([A-Za-z0-9_.-]{1,200})")


class QuickGet:
    """ASGI middleware: answers as the endpoint for one trajectory does, for plain ids; all else goes on to the app."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_plain = scope["type"] == "http" and scope["method"] == "GET" and not scope["query_string"]
        found = _PATH.fullmatch(scope["path"]) if is_plain else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route_name"] = ROUTE
        response = await self._answer(scope, found[1])
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, run_id: str) -> "Response":
        headers = Headers(scope=scope)
        try:
            access = await find_access(self._service, scope, bearer_token(headers), TokenScope.READ)
            known = headers.get("if-none-match")
            return await run_in_threadpool(trajectory_response, self._service, access, run_id, known)
        except ProblemError as error:
            return problem_response(scope, error.status, error.detail, error.headers)
        except PipelineError as error:
            return problem_response(scope, *answer_to(error, scope.get("request_id")))
