"""Filters of endpoints that find runs."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.serve.models import Text
from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.storage.postgres.search import SearchFilters

_Names = Annotated[list[Text], Field(max_length=50)]


class FilterQuery(BaseModel):
    """Filters: a run must match each that is given; one that is given several times matches any of its values."""

    model_config = ConfigDict(extra="forbid")

    agent_id: _Names = Field([], description="Agents.")
    organization_id: _Names = Field([], description="Organizations.")
    project_id: _Names = Field([], description="Projects.")
    completed_from: AwareDatetime | None = Field(None, description="Runs that ended at this time or later.")
    completed_to: AwareDatetime | None = Field(None, description="Runs that ended before this time.")
    outcome: list[Outcome] = Field([], max_length=10, description="Judged outcomes under the current policy.")
    heuristic_outcome: list[Outcome] = Field([], max_length=10, description="Outcomes by rule.")
    tool: _Names = Field([], description="Tools that ran in it.")
    model: _Names = Field([], description="Models of its steps.")
    failure_mode: _Names = Field([], description="Failure modes of the verdict.")
    tag: _Names = Field([], description="Tags of the agent, or of the verdict.")
    task_family: Text | None = Field(None, description="Id of a task family.")
    source: _Names = Field([], description="Sources: letta, or names in TRAJECTORY_SOURCES.")

    def filters(self) -> SearchFilters:
        """Return the filters as storage takes them.

        Raises:
            ProblemError: 422, a time that Postgres cannot hold.
        """
        return SearchFilters(
            agent_ids=tuple(self.agent_id),
            organization_ids=tuple(self.organization_id),
            project_ids=tuple(self.project_id),
            completed_from=_storable(self.completed_from),
            completed_to=_storable(self.completed_to),
            outcomes=tuple(self.outcome),
            heuristic_outcomes=tuple(self.heuristic_outcome),
            tools=tuple(self.tool),
            models=tuple(self.model),
            failure_modes=tuple(self.failure_mode),
            tags=tuple(self.tag),
            task_family=self.task_family,
            sources=tuple(self.source),
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
