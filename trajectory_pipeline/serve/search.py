"""Endpoints: search, and a contrast of runs that succeeded with runs that failed."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from trajectory_pipeline.budget.caps import BudgetExhausted
from trajectory_pipeline.errors import PipelineError, QueryError
from trajectory_pipeline.schema.enums import ExecutionStatus, Outcome, VerdictStatus
from trajectory_pipeline.search.found_by_meaning import found_by_meaning_alone
from trajectory_pipeline.search.query import LONGEST_QUERY, check_query
from trajectory_pipeline.serve.access import Access
from trajectory_pipeline.serve.authentication import Reader, service_of
from trajectory_pipeline.serve.filters import FilterQuery
from trajectory_pipeline.serve.presentation import json_response, with_redacted
from trajectory_pipeline.serve.problems import LOG, ProblemError, problems
from trajectory_pipeline.serve.service import DATA_NOTICE, Service
from trajectory_pipeline.storage.postgres.search import SearchHit, contrast, search

NO_EMBEDDING = "The embedding model gave no embedding: the service's log says why."
_Found = TypeVar("_Found")
router = APIRouter(prefix="/v1", tags=["search"])


class SearchQuery(FilterQuery):
    """What to look for, and filters."""

    q: str = Field(
        min_length=1,
        max_length=LONGEST_QUERY,
        description='Words, `"phrases"`, `-exclusions`, `or`; for meaning, a description in plain words.',
        examples=["refund refused"],
    )
    k: int = Field(10, ge=1, le=100, description="Most runs to return; for a contrast, of each side.")
    mode: Literal["hybrid", "words", "meaning"] = Field(
        "hybrid", description="By words and meaning, or by one of them. `hybrid` is by words where meaning is missing."
    )


class Evidence(BaseModel):
    """A quote that the verdict rests on."""

    claim: str | None = Field(description="The requirement; null where it shows the failure.")
    status: str | None
    message_id: str
    quote: str
    source: str | None = Field(description="Whose words these are.")


class Hit(BaseModel):
    """A run that was found. Scores of different searches are not comparable."""

    run_id: str
    rank: int
    score: float
    words_rank: int | None
    words_score: float | None
    meaning_rank: int | None
    similarity: float | None
    source: str = Field(description="Where it came from: letta, or a name in TRAJECTORY_SOURCES.")
    agent_id: str
    agent_name: str | None
    organization_id: str | None
    end_time: datetime | None
    execution_status: ExecutionStatus
    heuristic_outcome: Outcome
    heuristic_confidence: float
    verdict_status: VerdictStatus | None
    judged_outcome: Outcome | None = Field(description="Null without a verdict that says so.")
    confidence: float | None = Field(description="Of the judged outcome, 0–1.")
    simulated: bool = Field(description="Whether the verdict is of a simulated judge, which is no model.")
    failure_owner: str | None
    failure_mode: str | None
    summary: str | None
    lesson: str | None
    evidence: list[Evidence]
    task_family: str | None
    snippet: str


class Hits(BaseModel):
    """Runs, the best first."""

    notice: str = Field(description="That texts are data.")
    words_only: str | None = Field(description="Why nothing was searched by meaning; null where it was.")
    remark: str | None = Field(description="That no run has a word of the query; null where one has.")
    items: list[Hit]


class Contrasted(BaseModel):
    """Runs of similar tasks that came out differently."""

    notice: str = Field(description="That texts are data.")
    words_only: str | None = Field(description="Why nothing was searched by meaning; null where it was.")
    remark: str | None = Field(description="That no run has a word of the query; null where one has.")
    successes: list[Hit]
    failures: list[Hit]


_HIT = tuple(Hit.model_fields)
_TEXTS = ("agent_name", "failure_owner", "failure_mode", "summary", "lesson", "snippet")
_EVIDENCE = tuple(Evidence.model_fields)
_EVIDENCE_TEXTS = ("claim", "quote")


@router.get("/search", response_model=Hits, responses=problems(), summary="Search runs")
def search_runs(request: Request, access: Reader, query: Annotated[SearchQuery, Query()]) -> Response:
    """Return the runs that a query describes, the best first."""
    service = service_of(request)
    hits, words_only = find(service, access, query, search)
    return json_response(
        {
            "notice": DATA_NOTICE,
            "words_only": words_only,
            "remark": found_by_meaning_alone(hits, query.mode),
            "items": _items(hits, service),
        }
    )


@router.get("/contrast", response_model=Contrasted, responses=problems(), summary="Contrast successes and failures")
def contrast_runs(request: Request, access: Reader, query: Annotated[SearchQuery, Query()]) -> Response:
    """Return runs of similar tasks that succeeded, and runs that failed, each with evidence and lesson."""
    service = service_of(request)
    if query.outcome or query.heuristic_outcome:
        raise ProblemError(422, "query.outcome: a contrast has outcomes of its own; leave out the filters by outcome.")
    found, words_only = find(service, access, query, contrast)
    return json_response(
        {
            "notice": DATA_NOTICE,
            "words_only": words_only,
            "remark": found_by_meaning_alone([*found.successes, *found.failures], query.mode),
            "successes": _items(found.successes, service),
            "failures": _items(found.failures, service),
        }
    )


def served_hit(hit: SearchHit, service: Service) -> dict[str, Any]:
    """Return a hit as ``Hit``, redacted."""
    found = with_redacted({name: getattr(hit, name) for name in _HIT}, _TEXTS, service)
    found["evidence"] = [
        with_redacted({name: getattr(one, name) for name in _EVIDENCE}, _EVIDENCE_TEXTS, service)
        for one in hit.evidence
    ]
    return found


def _items(hits: list[SearchHit], service: Service) -> list[Any]:
    return [served_hit(hit, service) for hit in hits]


def find(service: Service, access: Access, query: SearchQuery, ask: Callable[..., _Found]) -> tuple[_Found, str | None]:
    """Return what ``search`` or ``contrast`` finds, and why nothing was searched by meaning; None where it was.

    Raises:
        ProblemError: 422, the query or a filter cannot be used; 503, only meaning was asked for, and it is missing.
    """
    filters = query.filters(access.tenants)
    try:
        check_query(query.q)
    except QueryError as error:
        raise ProblemError(422, f"query.q: {error}") from None
    vector, words_only = _embedding(service, query)
    if query.mode == "meaning" and vector is None:
        raise ProblemError(503, f"query.mode: nothing can be found by meaning: {words_only}")
    found = refused = None
    with service.database.reading(access.tenants) as connection:
        try:
            found = ask(
                connection,
                query.q,
                query.k,
                filters,
                mode=query.mode,
                query_vector=vector,
                recent=service.recent_counts,
            )
        except QueryError as error:
            # Raised outside: an error inside would cost the connection.
            refused = error
    if found is None:
        raise ProblemError(422, f"query.q: {refused}")
    return found, words_only


def _embedding(service: Service, query: SearchQuery) -> tuple[list[float] | None, str | None]:
    """Return the query's embedding, or why there is none, as a sentence."""
    if query.mode == "words":
        return None, "`mode=words` was asked for."
    if service.embed is None:
        return None, "This service was started without an embedding model."
    try:
        embedding = service.embed(query.q)
    # Words alone still find much, and the answer says so.
    except BudgetExhausted as error:
        return None, str(error)
    except PipelineError as error:
        # It may have words of the model's server, which are neither redacted nor marked as data.
        LOG.error(json.dumps({"error": type(error).__name__, "reason": service.redact(str(error))}))
        return None, NO_EMBEDDING
    return (None, embedding.reason) if embedding.vector is None else (embedding.vector.tolist(), None)
