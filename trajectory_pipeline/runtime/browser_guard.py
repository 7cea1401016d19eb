"""Keeps web pages from using an HTTP server on this machine through a browser that can reach it.

A page of another site can send requests to ``localhost``, and can give its own name the address 127.0.0.1. Programs
that send no browser headers are not affected.
"""

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::\d+)?", re.IGNORECASE)


class BrowserGuard:
    """ASGI middleware: refuses unknown hosts, requests from other sites, and GraphQL by GET, which may change things.

    Known hosts are ``localhost``, loopback addresses and the address that the connection came in at.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 403 and the reason."""
        reason = page_refusal(scope) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await PlainTextResponse(f"Refused: {reason}.\n", 403)(scope, receive, send)


def page_refusal(scope: Scope) -> str | None:
    """Return why a request is refused, as a clause; None where it is not."""
    headers = Headers(scope=scope)
    hosts = [host.lower() for host in headers.getlist("host")]
    if len(hosts) != 1 or not _is_known(hosts[0], scope):
        return "open this server as http://localhost or by the address that it listens on"
    if any(origin.lower().partition("://")[2] != hosts[0] for origin in headers.getlist("origin")):
        return "the request comes from another site"
    is_get = scope["type"] == "http" and scope["method"] == "GET"
    is_link = is_get and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_link:
        return "the request comes from another site"
    # Its page, GraphiQL, is HTML and executes nothing.
    if is_get and scope["path"].rstrip("/").endswith("/graphql") and "text/html" not in headers.get("accept", ""):
        return "send GraphQL by POST"
    return None


def _is_known(host: str, scope: Scope) -> bool:
    found = _HOST.fullmatch(host)
    name = (found[1] or found[2]).rstrip(".") if found else ""
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or name == (scope.get("server") or [None])[0]
