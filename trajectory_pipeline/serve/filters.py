"""Filters of endpoints that find runs."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.serve.models import Text
from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.serve.wrong_values import WRONG_TIME
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_access import Tenants


def _written_out(value: Any) -> Any:
    """Refuse a bare number, which would be taken for seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and "-" in value[1:]):
        return value
    raise PydanticCustomError("datetime_parsing", WRONG_TIME)


def _with_zone(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


Moment = Annotated[datetime, BeforeValidator(_written_out), AfterValidator(_with_zone)]
"""A time; without an offset it is UTC."""
_Names = Annotated[list[Text], Field(max_length=50)]


class FilterQuery(BaseModel):
    """Filters: a run must match each that is given; one that is given several times matches any of its values."""

    model_config = ConfigDict(extra="forbid")

    agent_id: _Names = Field([], description="Agents.")
    organization_id: _Names = Field([], description="Organizations.")
    project_id: _Names = Field([], description="Projects.")
    completed_from: Moment | None = Field(
        None, description="Runs that ended at this time or later; without an offset it is UTC."
    )
    completed_to: Moment | None = Field(
        None, description="Runs that ended before this time; without an offset it is UTC."
    )
    outcome: list[Outcome] = Field([], max_length=10, description="Judged outcomes under the current policy.")
    heuristic_outcome: list[Outcome] = Field([], max_length=10, description="Outcomes by rule.")
    tool: _Names = Field([], description="Tools that ran in it.")
    model: _Names = Field([], description="Models of its steps.")
    failure_mode: _Names = Field([], description="Failure modes of the verdict.")
    tag: _Names = Field([], description="Tags of the agent, or of the verdict.")
    task_family: Text | None = Field(None, description="Id of a task family.")
    source: _Names = Field([], description="Sources: letta, or names in TRAJECTORY_SOURCES.")

    def filters(self, tenants: Tenants | None) -> SearchFilters:
        """Return the filters as storage takes them, with the tenants whose runs the client sees.

        Raises:
            ProblemError: 422, a time that Postgres cannot hold, or a range that is empty.
        """
        first, after_last = _storable(self.completed_from), _storable(self.completed_to)
        if first and after_last and first >= after_last:
            raise ProblemError(
                422, "query.completed_from: it must be before completed_to, which is the end of the range, exclusive."
            )
        return SearchFilters(
            agent_ids=tuple(self.agent_id),
            organization_ids=tuple(self.organization_id),
            project_ids=tuple(self.project_id),
            completed_from=first,
            completed_to=after_last,
            outcomes=tuple(self.outcome),
            heuristic_outcomes=tuple(self.heuristic_outcome),
            tools=tuple(self.tool),
            models=tuple(self.model),
            failure_modes=tuple(self.failure_mode),
            tags=tuple(self.tag),
            task_family=self.task_family,
            sources=tuple(self.source),
            tenants=tenants,
        )


def _storable(moment: datetime | None) -> datetime | None:
    """Return a time that Postgres holds.

    Raises:
        ProblemError: 422, its offset puts it outside of the years 1 to 9999.
    """
    try:
        return moment and moment.astimezone(UTC)
    except OverflowError:
        raise ProblemError(422, "query: a time must be within the years 1 to 9999.") from None
