"""Pages for people at ``/``: search, results, and one run with its evidence. They need no JavaScript."""

import functools
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import jinja2
from fastapi import APIRouter, Form, Query, Request
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from trajectory_pipeline.lossless_json import exact_numbers
from trajectory_pipeline.report.trajectory_view import TEMPLATES as REPORT_TEMPLATES
from trajectory_pipeline.report.trajectory_view import trajectory_view
from trajectory_pipeline.schema.enums import Outcome, TokenScope
from trajectory_pipeline.search.found_by_meaning import found_by_meaning_alone
from trajectory_pipeline.serve.access import Access
from trajectory_pipeline.serve.api_page import describe_api
from trajectory_pipeline.serve.authentication import access_of, authenticate, bearer_token, service_of
from trajectory_pipeline.serve.filters import FilterQuery
from trajectory_pipeline.serve.presentation import decode_cursor, encode_cursor, list_name, run_summary
from trajectory_pipeline.serve.problems import SHOW, TITLES, ProblemError
from trajectory_pipeline.serve.redacted import redacted
from trajectory_pipeline.serve.run_address import RUN_ID
from trajectory_pipeline.serve.search import SearchQuery, find, served_hit
from trajectory_pipeline.serve.service import Service
from trajectory_pipeline.serve.statistics import count_families, count_groups
from trajectory_pipeline.serve.wrong_values import sentences
from trajectory_pipeline.storage.postgres.search import SearchHit, contrast, search
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_reads import list_runs, read_document, read_run

COOKIE = "trajectory_token"
"""Holds a token; only pages read it, and none of them changes anything."""
RUNS_OF_A_PAGE = 25
_RUNS_OF_A_SIDE = 5
FAMILIES_OF_A_PAGE = 100
_FILTERS = (
    *("outcome", "heuristic_outcome", "source", "agent_id", "organization_id", "project_id"),
    *("model", "tool", "failure_mode", "tag", "task_family"),
)
_DAYS = ("completed_from", "completed_to")
_ASKED = ("q", *_FILTERS, *_DAYS, "view", "cursor")
_SECURITY = {
    "content-security-policy": "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none';"
    " base-uri 'none'"
}
_LONGEST_TITLE = 140


class _PageRoute(APIRoute):
    """A route that answers a person: what goes wrong is a page with words too, whatever it is."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether a request is for this route; a problem of it is then shown as a page."""
        found, child = super().matches(scope)
        if found is Match.FULL:
            child = {**child, SHOW: functools.partial(_refused, Request(scope))}
        return found, child


router = APIRouter(include_in_schema=False, route_class=_PageRoute)


@router.get("/")
def index(request: Request) -> Response:
    """Show the newest runs, or those that match."""
    if unknown := sorted(set(request.query_params) - set(_ASKED)):
        raise ProblemError(422, f"{', '.join(unknown)[:200]}: there is no such field. There are {', '.join(_ASKED)}.")
    asked = {name: request.query_params.get(name, "").strip() for name in _ASKED}
    shown: dict[str, Any] = {
        "asked": asked,
        "filtered": any(asked[name] for name in (*_FILTERS, *_DAYS)),
        "choices": [str(outcome) for outcome in Outcome],
        "title": _title_of_search(asked),
        **dict.fromkeys(("problem", "note", "sides", "runs", "heading", "older")),
    }
    try:
        shown |= _found(service_of(request), _reader(request), asked)
    except ProblemError as error:
        if error.status != 422:
            raise
        # Beside the form, which keeps what was given.
        shown["problem"] = error.detail.removeprefix("query.").removeprefix("query: ")
    return _page(request, "search.html.j2", shown, 422 if shown["problem"] else 200)


@router.get(f"/runs/{RUN_ID}")
def run(
    request: Request, run_id: str, page: Annotated[int, Query(ge=1, le=10**9, description="From 1.")] = 1
) -> Response:
    """Show one run, so many of its messages a page: on the first also verdict and evidence."""
    service = service_of(request)
    access = _reader(request)
    row, text = _run(service, access, run_id)
    document = None if text is None else exact_numbers(text)
    named = {name: redacted(row[name], service.redact) for name in ("agent_name", "models", "data_omitted_reason")}
    try:
        view = trajectory_view({**row, **named, "data": document}, row, service.redact, page)
    except IndexError as error:
        raise ProblemError(404, str(error)) from None
    title = f"{_title(view.task, run_id, 60)} · {view.row['agent_name'] or view.row['agent_id']}"
    return _page(request, "run.html.j2", {"view": view, "title": title, **_related(service, access, row)})


@router.get("/families")
def families(request: Request) -> Response:
    """Show how often each kind of task succeeds."""
    service = service_of(request)
    groups, more = count_families(service, _reader(request), SearchFilters(), FAMILIES_OF_A_PAGE)
    named = [{**group, "title": _title((group["example"] or {}).get("summary"), group["key"])} for group in groups]
    return _page(request, "families.html.j2", {"families": named, "more": more})


@router.get("/docs")
def api_description(request: Request) -> Response:
    """Describe the API; needs no token, as its OpenAPI document needs none."""
    return _page(request, "api.html.j2", {"api": describe_api(request.app.openapi())})


@router.get("/login")
def login_form(request: Request, then: str = "/") -> Response:
    """Ask for a token."""
    return _page(request, "login.html.j2", {"problem": None, "then": _own_path(then)})


@router.post("/login")
def login(
    request: Request,
    token: Annotated[str, Form(max_length=200)] = "",
    then: Annotated[str, Form(max_length=5000)] = "/",
) -> Response:
    """Keep a valid token in a cookie that no script reads and no other site sends."""
    try:
        _check_token(request, token.strip())
    except ProblemError as error:
        problem = "Give a token." if not token.strip() else error.detail
        return _page(request, "login.html.j2", {"problem": problem, "then": _own_path(then)}, error.status)
    response = RedirectResponse(_own_path(then), 303)
    if token.strip():
        response.set_cookie(
            COOKIE, token.strip(), httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
    return response


@router.post("/logout")
def logout() -> Response:
    """Forget the token."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


@router.get("/style.css")
def style(request: Request) -> Response:
    """Return the style of the report, and what pages add."""
    text, tag = _style()
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return Response(text, media_type="text/css", headers={"etag": tag})


async def answer_unknown_path(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - as ASGI has it
    """Answer a request for a path that is none: a browser with a page, a program with a problem.

    Raises:
        ProblemError: 404.
    """
    request = Request(scope)
    if "text/html" in request.headers.get("accept", ""):
        scope[SHOW] = functools.partial(_refused, request)
    raise ProblemError(404, "There is nothing at this address. Runs are at /, and what programs may ask is at /docs.")


def _reader(request: Request) -> Access:
    token = bearer_token(request.headers) or request.cookies.get(COOKIE)
    return access_of(service_of(request), request.scope, token, TokenScope.READ)


def _check_token(request: Request, token: str) -> None:
    """Do nothing if the token can read.

    Raises:
        ProblemError: it cannot, or another site sent the form.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ProblemError(403, "The form was sent by another site.")
    if TokenScope.READ not in authenticate(service_of(request), token or None, request.scope).scopes:
        raise ProblemError(403, "This token cannot read runs: it lacks the scope `read`.")


def _run(service: Service, access: Access, run_id: str) -> tuple[dict[str, Any], str | None]:
    """Return a row of ``read_run`` and its document as JSON text.

    Raises:
        ProblemError: 404, there is none that may be seen.
    """
    row = text = None
    # Postgres takes no NUL.
    if "\0" not in run_id:
        with service.database.reading(access.tenants) as connection:
            row = read_run(connection, run_id)
            text = None if row is None else read_document(connection, run_id)
    if row is None:
        raise ProblemError(404, "There is no such run among those that you may see.")
    return row, text


def _related(service: Service, access: Access, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return how often tasks of a run's family succeed, and the runs that it is most like."""
    family = None
    if row["task_family"] is not None:
        (family,), _ = count_groups(service, access, SearchFilters(task_family=row["task_family"]), "none", 1)
    with service.database.reading(access.tenants) as connection:
        found = [read_run(connection, one["run_id"]) for one in row["similar_runs"]]
    return {"family": family, "similar": [_listed(one, service) for one in found if one is not None]}


def _found(service: Service, access: Access, asked: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page of results shows.

    Raises:
        ProblemError: 422, something in the form is wrong.
    """
    filters: dict[str, Any] = {
        name: asked[name] if name == "task_family" else [asked[name]] for name in _FILTERS if asked[name]
    }
    filters |= {name: _midnight(asked[name]) for name in _DAYS if asked[name]}
    comparing = asked["view"] == "contrast"
    try:
        if asked["q"]:
            k = _RUNS_OF_A_SIDE if comparing else RUNS_OF_A_PAGE
            query = SearchQuery.model_validate({**filters, "q": asked["q"], "k": k})
        else:
            listed = FilterQuery.model_validate(filters)
    except ValidationError as error:
        raise ProblemError(422, f"query: {sentences(error.errors())}") from None
    if comparing:
        if not asked["q"]:
            raise ProblemError(422, "query: Say what to look for: runs of one kind of task are compared.")
        if asked["outcome"] or asked["heuristic_outcome"]:
            raise ProblemError(422, "query: Leave out the filters by outcome: both sides have one.")
        compared, words_only = find(service, access, query, contrast)
        sides = [
            ("Successes", [_hit(hit, service) for hit in compared.successes]),
            ("Failures", [_hit(hit, service) for hit in compared.failures]),
        ]
        remark = found_by_meaning_alone([*compared.successes, *compared.failures], query.mode)
        return {"sides": sides, "note": _note(words_only, remark)}
    if asked["q"]:
        hits, words_only = find(service, access, query, search)
        most = " or more" if len(hits) == RUNS_OF_A_PAGE else ""
        remark = found_by_meaning_alone(hits, query.mode)
        heading = f"{len(hits)}{most} runs, the best first" if len(hits) > 1 else "1 run" if hits else "No run is found"
        return {"runs": [_hit(hit, service) for hit in hits], "heading": heading, "note": _note(words_only, remark)}
    conditions = listed.filters(access.tenants)
    name = list_name("runs", conditions)
    after = decode_cursor(asked["cursor"] or None, name)
    with service.database.reading(access.tenants) as connection:
        rows = list_runs(connection, conditions, (), after, RUNS_OF_A_PAGE + 1)
    older = None
    if len(rows) > RUNS_OF_A_PAGE:
        kept = {name: value for name, value in asked.items() if value} | {
            "cursor": encode_cursor(rows[RUNS_OF_A_PAGE - 1], name)
        }
        older = f"/?{urlencode(kept)}"
    return {
        "runs": [_listed(row, service) for row in rows[:RUNS_OF_A_PAGE]],
        "heading": "Older runs" if after else "Newest runs",
        "older": older,
    }


def _hit(hit: SearchHit, service: Service) -> dict[str, Any]:
    found = served_hit(hit, service)
    return {**found, "title": _title(found["summary"] or found["snippet"], hit.run_id)}


def _listed(row: Mapping[str, Any], service: Service) -> dict[str, Any]:
    """Return a row of ``list_runs`` with the names of a hit."""
    whole = run_summary(row, service)
    judged = whole["judged"] or {}
    return {
        **{
            name: whole[name] for name in ("run_id", "source", "agent_id", "agent_name", "end_time", "execution_status")
        },
        **{name: judged.get(name) for name in ("confidence", "simulated", "failure_owner", "failure_mode", "lesson")},
        "judged_outcome": judged.get("outcome"),
        "verdict_status": judged.get("status"),
        "heuristic_outcome": whole["heuristic"]["outcome"],
        "evidence": [],
        "snippet": "",
        "title": _title(judged.get("summary"), whole["run_id"]),
    }


def _title(text: str | None, run_id: str, longest: int = _LONGEST_TITLE) -> str:
    line = " ".join("".join(each if each.isprintable() else " " for each in text or "").split())
    if len(line) > longest:
        kept = line[:longest]
        return f"{kept.rpartition(' ')[0] or kept} …"
    return line or run_id


def _title_of_search(asked: Mapping[str, str]) -> str:
    """Return the title of a browser's tab: several are open beside each other."""
    kind = "Successes beside failures" if asked["view"] == "contrast" else "Search"
    if asked["q"]:
        return f"{_title(asked['q'], '', 60)} · {kind}"
    return "Older runs" if asked["cursor"] else "Newest runs"


def _note(words_only: str | None, remark: str | None) -> str | None:
    notes = [] if words_only is None else [f"Searched by words alone: {words_only.rstrip('.')}."]
    return " ".join([*notes, *([remark] if remark else [])]) or None


def _midnight(day: str) -> datetime:
    try:
        return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ProblemError(422, "query: Give a day as YYYY-MM-DD.") from None


def _refused(request: Request, status: int, detail: str) -> Response:
    """Lead to the form for a token, or say what is wrong."""
    if status == 401:
        then = request.url.path + ("?" + request.url.query if request.url.query else "")
        return RedirectResponse(f"/login?then={quote(then, safe='')}", 303)
    title = TITLES.get(status, "The request failed")
    shown = {"title": title, "detail": detail, "request_id": request.scope.get("request_id")}
    return _page(request, "message.html.j2", shown, status)


def _own_path(path: str) -> str:
    r"""Return a path of this site; a browser reads ``//`` and ``/\`` as another one."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if plain else "/"


def _page(request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
    html = _environment().get_template(template).render(signed_in=COOKIE in request.cookies, **values)
    return HTMLResponse(html, status, headers=_SECURITY)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(__package__), jinja2.FileSystemLoader(REPORT_TEMPLATES)])
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)


@functools.cache
def _style() -> tuple[str, str]:
    environment = _environment()
    # Without rendering: it is a file like another.
    sources = [environment.loader.get_source(environment, name)[0] for name in ("style.css", "pages.css")]  # type: ignore[union-attr]
    text = "\n".join(sources)
    return text, f'"{hashlib.sha256(text.encode()).hexdigest()[:16]}"'
