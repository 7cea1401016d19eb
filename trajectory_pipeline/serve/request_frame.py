"""What frames every request: its id, limits on its body, one log line, metrics, and an answer to any defect."""

import asyncio
import json
import logging
import re
import secrets
import time
import traceback
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trajectory_pipeline.serve.metrics import Metrics
from trajectory_pipeline.serve.problems import LOG, problem_response

MAX_BODY_BYTES = 1_048_576
BODY_TIMEOUT_SECONDS = 10.0
_GIVEN_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "private, no-cache",
}
"""Answers differ by token, and hold what agents and their users wrote."""


class _RefusedBodyError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class RequestFrame:
    """ASGI middleware, the outermost. Logs hold ids, routes and times; never a body, a query or an error's values."""

    def __init__(self, app: ASGIApp, metrics: Metrics, body_timeout: float = BODY_TIMEOUT_SECONDS) -> None:
        self._app = app
        self._metrics = metrics
        self._body_timeout = body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever the app does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _GIVEN_ID.fullmatch(given) else secrets.token_hex(8)
        scope["request_id"] = request_id
        status = 0

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        self._metrics.running.inc()
        defect: dict[str, Any] = {}
        try:
            body = await self._body(scope, receive)
            await self._app(scope, _replayed(body, receive), framed)
        except _RefusedBodyError as error:
            refusal = problem_response(scope, error.status, str(error), {"connection": "close"})
            await refusal(scope, receive, framed)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[-4:]
            defect = {
                "error": type(error).__name__,
                "at": [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames],
            }
            if not status:
                detail = "This is a defect of the service: see its log for this request id."
                await problem_response(scope, 500, detail)(scope, receive, framed)
        finally:
            self._metrics.running.dec()
            self._record(scope, request_id, status, time.perf_counter() - started, defect)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body, which is small and comes soon."""
        headers = Headers(scope=scope)
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            return b""
        too_large = _RefusedBodyError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", "0")) > MAX_BODY_BYTES:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _RefusedBodyError(400, "The connection was closed before the body ended.")
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            raise _RefusedBodyError(
                408, f"The body did not arrive within {self._body_timeout:g} seconds: send it at once."
            ) from None
        return bytes(body)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float, defect: dict[str, Any]) -> None:
        # The template, not the path: paths are without bound, and hold ids.
        # Not ``path``, which names converters too.
        route = getattr(scope.get("route"), "path_format", None) or scope.get("route_name", "unknown")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(method, route).observe(seconds)
        line = {
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "token": getattr(scope.get("access"), "token_id", None),
            **defect,
        }
        LOG.log(logging.ERROR if defect else logging.INFO, json.dumps(line))


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives the body that was read, then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
