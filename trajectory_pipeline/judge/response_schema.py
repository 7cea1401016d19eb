"""What the judge is asked to say: the response schema, as pydantic models.

Fields stand in the order evidence → reasoning → label, so that a model that writes from left to right has looked
before it decides. Every field is required and none has a default, as OpenAI's strict schemas ask; what may be
absent is a union with null. The judge never states what can be computed: outcome, confidence, learning value, the
complexity as a word, the result of a decision.

The judge is sent the structure of these models and the titles of the answers; what a field means, and its limits, is in
``prompts/rubric.txt``. It is a part of every verdict: to change any of it, raise ``RESPONSE_SCHEMA_VERSION``.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

RESPONSE_SCHEMA_VERSION = "4"
"""Goes up with any change of the models below: verdicts of an older schema stay beside newer ones."""

RequirementStatus = Literal["met", "unmet", "not_applicable", "insufficient_evidence"]

RequirementKind = Literal["answer", "action", "state"]

FailureOwner = Literal["agent", "tool", "llm_provider", "infrastructure", "user", "specification", "none"]

FailureMode = Literal[
    "none",
    # Seeded from MAST (Cemri et al. 2025, arXiv:2503.13657).
    "disobeyed_task",
    "step_repetition",
    "lost_history",
    "unaware_of_completion",
    "no_clarification_asked",
    "task_derailment",
    "withheld_information",
    "reasoning_action_mismatch",
    "premature_termination",
    "no_verification",
    "wrong_verification",
    # Seeded from TRAIL (Deshpande et al. 2025, arXiv:2505.08638).
    "hallucination",
    "poor_retrieval",
    "misread_tool_output",
    "wrong_tool",
    "bad_tool_arguments",
    "malformed_output",
    "tool_error",
    "rate_limit",
    "authentication",
    "service_error",
    "resource_exhausted",
    "context_overflow",
    "timeout",
    "other",
]

Complexity = Literal["trivial", "simple", "moderate", "complex", "expert"]

TaskCategory = Literal[
    "question_answering",
    "information_retrieval",
    "calculation",
    "data_analysis",
    "writing",
    "coding",
    "planning",
    "communication",
    "memory_management",
    "conversation",
    "system_operation",
    "other",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _distinct(tags: list[str]) -> list[str]:
    if len({tag.strip().lower() for tag in tags}) < len(tags):
        raise ValueError("must differ from each other")
    return tags


Words = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]


class Citation(_Strict):
    """A verbatim piece of one message that was shown, or of one ``!!`` line, by its short id."""

    message_id: str
    quote: str = Field(min_length=1)


class Requirement(_Strict):
    """One checkable statement of what the task asked for."""

    statement: Words
    kind: RequirementKind
    evidence: list[Citation]
    reasoning: str
    status: RequirementStatus


class Failure(_Strict):
    """Who and what made the run fall short, where it did."""

    evidence: list[Citation]
    reasoning: str
    owner: FailureOwner
    mode: FailureMode
    other_mode: str | None
    first_wrong_step: str | None

    @model_validator(mode="after")
    def _words_beside_other(self) -> Self:
        if (self.mode == "other") != bool(self.other_mode and self.other_mode.strip()):
            raise ValueError("other_mode must have words where mode is 'other', and be null elsewhere")
        return self


NO_FAILURE = Failure(evidence=[], reasoning="", owner="none", mode="none", other_mode=None, first_wrong_step=None)
"""What an answer without a failure says."""

Rating = Annotated[int, Field(ge=1, le=5)]


class LearningRatings(_Strict):
    """Four anchored ratings, 1 (nothing to learn here) to 5 (a model case)."""

    reasoning: str
    interaction_depth: Rating
    task_complexity: Rating
    tool_use: Rating
    reference_value: Rating


class Decision(_Strict):
    """A choice that shaped the run."""

    step_id: str
    choice: str
    reason_given: str


class JudgeResponse(_Strict):
    """The whole answer to one trajectory."""

    model_config = ConfigDict(title="JudgeAnswer")

    requirements: list[Requirement] = Field(min_length=1, max_length=7)
    failure: Failure | None
    learning: LearningRatings
    key_decisions: list[Decision] = Field(max_length=10)
    summary: Words
    lesson: str | None
    tags: Annotated[list[Words], AfterValidator(_distinct)] = Field(min_length=3, max_length=7)
    task_category: TaskCategory


class PartFinding(_Strict):
    """What one part of a long transcript shows of the task."""

    evidence: list[Citation] = Field(min_length=1, max_length=3)
    finding: Words


class PartFindings(_Strict):
    """The answer to one part of a transcript that is too long for one prompt."""

    model_config = ConfigDict(title="PartFindings")

    findings: list[PartFinding] = Field(max_length=12)
    account: Words
