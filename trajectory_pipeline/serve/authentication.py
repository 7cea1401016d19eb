"""Which access a request has: that of its token; without any token, that of whoever is on this machine."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Scope

from trajectory_pipeline.runtime.browser_guard import page_refusal
from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.serve.access import LOCAL, Access
from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.serve.service import Service

_BEARER = HTTPBearer(auto_error=False, scheme_name="token", description="A token of `trajectory-pipeline tokens`.")
_CHALLENGE = {"www-authenticate": 'Bearer realm="trajectory-pipeline"'}


def service_of(request: Request) -> Service:
    """Return the service that a request was sent to."""
    service: Service = request.app.state.service
    return service


def authenticate(service: Service, token: str | None, scope: Scope) -> Access:
    """Return the access of a request with a token, or without one.

    Raises:
        ProblemError: 401, in the same words whether a token is unknown, expired or revoked; 403, a page of another
            site sent the request through a browser, which has no token.
    """
    if token is not None:
        found = service.tokens.find(token)
        if found is None:
            raise ProblemError(401, "The token is unknown, expired or revoked.", _CHALLENGE)
        return Access(found.token_id, found.scopes, found.tenants)
    if service.loopback and not service.tokens.needed():
        if reason := page_refusal(scope):
            raise ProblemError(403, f"Refused: {reason}.")
        return LOCAL
    raise ProblemError(401, "Send a token: Authorization: Bearer ….", _CHALLENGE)


def access_of(service: Service, scope: Scope, token: str | None, needed: TokenScope) -> Access:
    """Return the access of a request, which must have this scope; it is kept in ``scope["access"]``.

    Raises:
        ProblemError: 401 or 403, see ``authenticate``; 403, it lacks the scope.
    """
    found = authenticate(service, token, scope)
    scope["access"] = found
    if needed not in found.scopes:
        raise ProblemError(403, f"This needs a token with the scope `{needed}` (`trajectory-pipeline tokens`).")
    return found


def bearer_token(headers: Headers) -> str | None:
    """Return the token in the header ``Authorization``; None without one."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if kind.lower() == "bearer" else None


async def find_access(service: Service, scope: Scope, token: str | None, needed: TokenScope) -> Access:
    """Return what ``access_of`` does; another thread looks it up where the database has to be asked."""
    if service.tokens.remembers(token):
        # Another thread would take longer than the answer.
        return access_of(service, scope, token, needed)
    return await run_in_threadpool(access_of, service, scope, token, needed)


def require(scope: TokenScope) -> Callable[..., Awaitable[Access]]:
    """Return a dependency: the access of a request, which must have this scope."""

    # ``_BEARER`` is there for OpenAPI: the header is read in one way everywhere.
    async def access(request: Request, _: Annotated[object, Depends(_BEARER)] = None) -> Access:
        return await find_access(service_of(request), request.scope, bearer_token(request.headers), scope)

    return access


Reader = Annotated[Access, Depends(require(TokenScope.READ))]
Judge = Annotated[Access, Depends(require(TokenScope.JUDGE))]
Eraser = Annotated[Access, Depends(require(TokenScope.ERASE))]
