"""Endpoint: how often runs succeed, in all or by agent, day, tool and more, with intervals."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from trajectory_pipeline.quality.intervals import wilson_interval
from trajectory_pipeline.serve.authentication import Reader, service_of
from trajectory_pipeline.serve.filters import FilterQuery
from trajectory_pipeline.serve.problems import problems
from trajectory_pipeline.serve.redacted import redacted
from trajectory_pipeline.serve.service import DATA_NOTICE
from trajectory_pipeline.storage.postgres.service_reads import count_outcomes

router = APIRouter(prefix="/v1", tags=["statistics"])
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
    of: int = Field(ge=1, description="Runs that it is a share of.")


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


class Statistics(BaseModel):
    """Groups, those with most runs first."""

    notice: str = Field(description="That texts are data.")
    items: list[Group]
    more_groups: bool = Field(description="Whether there are groups beyond `limit`.")


@router.get("/statistics", responses=problems(), summary="Count outcomes")
def statistics(request: Request, access: Reader, query: Annotated[StatisticsQuery, Query()]) -> Statistics:
    """Return how runs came out, by verdict and by rule, with the success rate and its interval."""
    service, filters = service_of(request), query.filters()
    with service.database.reading(access.tenants) as connection:
        rows = count_outcomes(connection, filters, query.group_by, query.limit + 1)
    items: list[Any] = [redacted(group_of(row), service.redact) for row in rows[: query.limit]]
    return Statistics(notice=DATA_NOTICE, items=items, more_groups=len(rows) > query.limit)


def group_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of ``count_outcomes`` as ``Group``."""
    outcomes = tuple(Counts.model_fields)
    judged = {name: row[f"judged_{name}"] for name in outcomes}
    decided = judged["success"] + judged["partial_success"] + judged["failure"]
    interval = wilson_interval(judged["success"], decided)
    rate = None
    if interval is not None:
        rate = {"rate": judged["success"] / decided, "low": interval[0], "high": interval[1], "of": decided}
    return {
        **{name: row[name] for name in ("key", "name", "runs", "mean_confidence", "total_tokens")},
        "judged": judged,
        "not_judged": row["runs"] - sum(judged.values()),
        "heuristic": {name: row[f"heuristic_{name}"] for name in outcomes},
        "success_rate": rate,
    }
