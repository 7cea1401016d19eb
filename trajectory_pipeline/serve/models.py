"""The shapes of requests and responses, as OpenAPI describes them."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from trajectory_pipeline.schema.enums import ExecutionStatus, Outcome, VerdictStatus

PLAIN = r"^[^\x00-\x1f\x7f]+$"
"""Ids and names: no control characters, which Postgres or a log would not take."""
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=PLAIN)]
AnyRunId = Annotated[str, Field(min_length=1, max_length=2_000, pattern=r"^[^\x00]+$")]
"""Whatever a source may call a run: a path below a folder, for one. Postgres indexes no longer text."""
LONGEST_CURSOR = 12_000
"""Characters of a cursor, which has a run's id in it, in base64 of UTF-8."""
RunId = Annotated[AnyRunId, Path(description="Id of the run, such as `run-…`: all that follows in the address.")]


class Heuristic(BaseModel):
    """The outcome by rule, from how the run ended."""

    outcome: Outcome
    confidence: float = Field(ge=0, le=1)
    reasoning: list[str] | None = Field(None, description="Facts behind it; only of one trajectory.")


class Judged(BaseModel):
    """The verdict under the current policy. Without a judged outcome, its fields are null."""

    status: VerdictStatus
    outcome: Outcome | None
    confidence: float | None = Field(description="How much of the outcome rests on evidence, 0–1.")
    disagrees: bool | None = Field(description="Whether it differs from the heuristic outcome.")
    failure_owner: str | None
    failure_mode: str | None
    failed_step_id: str | None
    learning_value: float | None
    task_category: str | None
    tags: list[str] | None
    summary: str | None
    lesson: str | None
    judge_model: str | None
    simulated: bool
    judged_at: datetime | None
    policy_id: str
    requirements: list[dict[str, Any]] | None = Field(
        None, description="What was required, with status and the quotes that prove it; only of one trajectory."
    )
    failure: dict[str, Any] | None = Field(None, description="The account of the failure; only of one trajectory.")
    decisions: list[dict[str, Any]] | None = Field(None, description="Key decisions; only of one trajectory.")
    coverage: float | None = Field(None, description="Share of the content that the judge saw; only of one trajectory.")


class RunSummary(BaseModel):
    """A run: who ran, how it ended, and what came of it by rule and by the judge, apart."""

    model_config = ConfigDict(json_schema_extra={"description": "A run, without its document."})

    run_id: str
    source: str = Field(description="Where it came from: letta, or a name in TRAJECTORY_SOURCES.")
    trajectory_id: str
    agent_id: str
    agent_name: str | None
    organization_id: str | None
    project_id: str | None
    conversation_id: str | None
    start_time: datetime | None
    end_time: datetime | None
    execution_status: ExecutionStatus
    execution_cause: str | None
    step_count: int
    message_count: int
    tools_used: list[str]
    models: list[str]
    total_tokens: int | None
    heuristic: Heuristic
    judged: Judged | None = Field(description="Null where there is no verdict under the current policy.")


class RunPage(BaseModel):
    """Runs, the newest first."""

    notice: str = Field(description="That texts are data.")
    items: list[RunSummary]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last one.")


class SimilarRun(BaseModel):
    """An earlier run of the same task family."""

    run_id: str
    similarity: float = Field(description="Cosine similarity of the search texts, −1 to 1 (as rounded).")


class Trajectory(RunSummary):
    """One trajectory with its document and verdict."""

    notice: str = Field(description="That texts are data.")
    continues_run_id: str | None
    task_family: str | None = Field(description="Id of its task family; null where it is in none.")
    similar_runs: list[SimilarRun] = Field(description="The earlier runs that it is most like, three at most.")
    partition_key: str
    content_digest: str
    document: dict[str, Any] | None = Field(description="The trajectory document, redacted; images as stubs.")
    document_omitted_reason: str | None = Field(description="Why there is no document; null where there is one.")


class Lesson(BaseModel):
    """What one run teaches, in the judge's words."""

    run_id: str
    source: str = Field(description="Where the run came from: letta, or a name in TRAJECTORY_SOURCES.")
    agent_id: str
    agent_name: str | None
    end_time: datetime | None
    judged_outcome: Outcome | None
    confidence: float | None = Field(description="Of the judged outcome, 0–1.")
    failure_mode: str | None
    task_category: str | None
    summary: str | None
    lesson: str


class LessonPage(BaseModel):
    """Lessons, those of the newest runs first."""

    notice: str = Field(description="That texts are data.")
    items: list[Lesson]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last one.")


class Health(BaseModel):
    """Whether the service can answer."""

    status: str = Field(description="`ok`.")
    version: str
