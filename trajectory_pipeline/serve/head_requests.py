"""HEAD for all that can be got: the headers of the answer to GET, without its body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SEEN_LATER = ("route", "route_name", "access")
"""What the answer leaves in the scope, for logs."""


class HeadRequests:
    """ASGI middleware: answers HEAD as GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # A copy: the server itself looks at the method that was asked for.
        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, without_body)
        finally:
            scope.update({name: asked[name] for name in _SEEN_LATER if name in asked})
