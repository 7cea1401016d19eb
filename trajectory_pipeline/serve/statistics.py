"""Endpoint: how often runs succeed, in all or by agent, day, tool and more, with intervals."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from trajectory_pipeline.quality.intervals import wilson_interval
from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.serve.access import Access
from trajectory_pipeline.serve.authentication import Reader, service_of
from trajectory_pipeline.serve.filters import FilterQuery
from trajectory_pipeline.serve.presentation import with_redacted
from trajectory_pipeline.serve.problems import problems
from trajectory_pipeline.serve.service import DATA_NOTICE, Service
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_reads import count_outcomes, newest_of_families

router = APIRouter(prefix="/v1", tags=["statistics"])
_IDS = ("agent", "organization", "task_family")
"""Groups whose key is an id, by which their runs are asked for."""
_EXAMPLE_TEXTS = ("agent_name", "summary", "lesson")
GroupBy = Literal[
    "none", "agent", "organization", "day", "week", "tool", "model", "failure_mode", "task_category", "task_family"
]


class StatisticsQuery(FilterQuery):
    """Filters, and what to count by."""

    group_by: GroupBy = Field("none", description="A run with several tools or models counts in each group.")
    limit: int = Field(100, ge=1, le=1000, description="Most groups: those with most runs.")


class Counts(BaseModel):
    """Runs by outcome."""

    success: int
    partial_success: int
    failure: int
    unknown: int


class Rate(BaseModel):
    """A share with its 95 % interval (Wilson)."""

    rate: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    successes: int = Field(ge=0, description="Runs that succeeded.")
    of: int = Field(ge=1, description="Runs that it is a share of: those that are unknown or not judged are left out.")


class Example(BaseModel):
    """A run of a task family: its newest, one with a summary before all others."""

    run_id: str
    agent_name: str | None
    end_time: datetime | None
    outcome: Outcome | None = Field(description="Judged; null where it is not.")
    summary: str | None
    lesson: str | None
    simulated: bool = Field(description="Whether the verdict is of a simulated judge, which is no model.")


class Group(BaseModel):
    """One group; judged and heuristic outcomes are counted apart."""

    key: str | None = Field(description="Null for runs without one, and where all are one group.")
    name: str | None = Field(description="Of the agent; null for other groups.")
    runs: int
    judged: Counts
    not_judged: int = Field(description="Runs without a judged outcome.")
    heuristic: Counts
    success_rate: Rate | None = Field(
        description="Judged successes of judged successes, partial successes and failures; null where there is none."
    )
    mean_confidence: float | None = Field(description="Of the judged outcomes.")
    total_tokens: int
    example: Example | None = Field(description="Of a task family; null for other groups.")


class Statistics(BaseModel):
    """Groups, those with most runs first."""

    notice: str = Field(description="That texts are data.")
    items: list[Group]
    more_groups: bool = Field(description="Whether there are groups beyond `limit`.")


@router.get("/statistics", responses=problems(), summary="Count outcomes")
def statistics(request: Request, access: Reader, query: Annotated[StatisticsQuery, Query()]) -> Statistics:
    """Return how runs came out, by verdict and by rule, with the success rate and its interval."""
    groups, more = count_groups(service_of(request), access, query.filters(access.tenants), query.group_by, query.limit)
    items: list[Any] = groups
    return Statistics(notice=DATA_NOTICE, items=items, more_groups=more)


def count_groups(
    service: Service, access: Access, filters: SearchFilters, group_by: GroupBy, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Return groups as ``Group``, redacted, those with most runs first, and whether there are more."""
    with service.database.reading(access.tenants) as connection:
        rows = count_outcomes(connection, filters, group_by, limit + 1)
        families = [row["key"] for row in rows[:limit] if row["key"] is not None] if group_by == "task_family" else []
        examples = newest_of_families(connection, families) if families else {}
    groups = []
    for row in rows[:limit]:
        example = examples.get(row["key"])
        group = with_redacted(group_of(row), ("name",) if group_by in _IDS else ("key", "name"), service)
        groups.append(group | {"example": example and with_redacted(example, _EXAMPLE_TEXTS, service)})
    return groups, len(rows) > limit


def count_families(
    service: Service, access: Access, filters: SearchFilters, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Return the groups of runs that are in a task family, as ``count_groups`` does."""
    # Runs without a family are a group too.
    groups, more = count_groups(service, access, filters, "task_family", limit + 1)
    families = [group for group in groups if group["key"] is not None]
    return families[:limit], more or len(families) > limit


def group_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of ``count_outcomes`` as ``Group``."""
    outcomes = tuple(Counts.model_fields)
    judged = {name: row[f"judged_{name}"] for name in outcomes}
    decided = judged["success"] + judged["partial_success"] + judged["failure"]
    interval = wilson_interval(judged["success"], decided)
    rate = None
    if interval is not None:
        successes = judged["success"]
        rate = {"rate": successes / decided, "low": interval[0], "high": interval[1], "successes": successes}
        rate["of"] = decided
    return {
        **{name: row[name] for name in ("key", "name", "runs", "mean_confidence", "total_tokens")},
        "judged": judged,
        "not_judged": row["runs"] - sum(judged.values()),
        "heuristic": {name: row[f"heuristic_{name}"] for name in outcomes},
        "success_rate": rate,
    }
