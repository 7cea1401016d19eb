"""MCP at ``/mcp``: streamable HTTP without sessions, under the same tokens as REST."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.serve.authentication import bearer_token, find_access
from trajectory_pipeline.serve.mcp_tools import create_mcp_server
from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.serve.service import Service

PATH = "/mcp"


class McpEndpoint:
    """An ASGI app: one request, one answer; nothing is kept between two, so that each is held to its own token."""

    def __init__(self, service: Service) -> None:
        self._service = service
        server = create_mcp_server(service)
        # Hosts and origins are checked where a request without a token is let in.
        server.streamable_http_app(
            json_response=True,
            stateless_http=True,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        self._sessions = server.session_manager

    @property
    def route(self) -> Route:
        """The route: only POST, for there is no stream to listen to and no session to end."""
        return Route(PATH, self, methods=["POST"])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests until the block ends; once."""
        async with self._sessions.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            ProblemError: 401 or 403, its token does not do; 415, its body is not declared as JSON.
        """
        scope["route_name"] = PATH
        headers = Headers(scope=scope)
        await find_access(self._service, scope, bearer_token(headers), TokenScope.READ)
        # The SDK would answer with a text of no type.
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ProblemError(415, "content-type: send the message as application/json.")
        await self._sessions.handle_request(scope, receive, send)
