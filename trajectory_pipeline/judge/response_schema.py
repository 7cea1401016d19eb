"""What the judge is asked to say: the response schema, as pydantic models.

Fields stand in the order evidence → reasoning → label, so that a model that writes from left to right has looked
before it decides. Every field is required and none has a default, as OpenAI's strict schemas ask; what may be
absent is a union with null. The judge never states an outcome or a learning value: both are computed in code.

The judge is sent the JSON schema of these models: field names, titles, descriptions, and the docstrings of the classes.
It is a part of the prompt, and so of every verdict. Two classes therefore keep on the wire the names that they had
before they were renamed in code. To change any of it, raise ``RESPONSE_SCHEMA_VERSION``.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

RESPONSE_SCHEMA_VERSION = "3"
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
    """A verbatim piece of one message that was shown, or of one ``!!`` line."""

    message_id: str = Field(
        description="The id of the message, as it stands in the transcript; for a '!!' line the step or run id in it."
    )
    quote: str = Field(min_length=1, description="A verbatim excerpt of that message or line.")


class Requirement(_Strict):
    """One checkable statement of what the task asked for."""

    statement: Words = Field(description="What the task asked for, as one checkable statement.")
    kind: RequirementKind = Field(
        description="answer: the agent's own words are what was asked for. action: something was to be done."
        " state: something was to be so."
    )
    evidence: list[Citation] = Field(description="Excerpts that show whether it was met; empty if there are none.")
    reasoning: str = Field(description="How the evidence decides the status.")
    status: RequirementStatus


class Failure(_Strict):
    """Who and what made the run fall short, where it did."""

    evidence: list[Citation]
    reasoning: str
    owner: FailureOwner
    mode: FailureMode
    other_mode: str | None = Field(description="In a few words, only where mode is 'other'.")
    first_wrong_step: str | None = Field(description="Id of the first step where it went wrong, or null.")

    @model_validator(mode="after")
    def _words_beside_other(self) -> Self:
        if (self.mode == "other") != bool(self.other_mode and self.other_mode.strip()):
            raise ValueError("other_mode must have words where mode is 'other', and be null elsewhere")
        return self


Rating = Annotated[int, Field(ge=1, le=5)]


class LearningRatings(_Strict):
    """Four anchored ratings, 1 (nothing to learn here) to 5 (a model case)."""

    reasoning: str
    interaction_depth: Rating = Field(
        description="1: a single exchange. 3: several turns that build up. 5: long, branching work."
    )
    task_complexity: Rating = Field(
        description="1: one fact. 3: several dependent steps. 5: expert work under constraints."
    )
    tool_use: Rating = Field(
        description="1: none. 3: right tools, plainly used. 5: several, combined, errors recovered from."
    )
    reference_value: Rating = Field(
        description="1: says nothing to others. 3: a usable example. 5: a case to teach from."
    )


class Decision(_Strict):
    """A choice that shaped the run."""

    step_id: str
    choice: str
    reason_given: str
    result: str


class JudgeResponse(_Strict):
    """The whole answer to one trajectory."""

    model_config = ConfigDict(title="JudgeAnswer")

    requirements: list[Requirement] = Field(min_length=1, max_length=7)
    failure: Failure
    learning: LearningRatings
    key_decisions: list[Decision] = Field(max_length=10)
    summary: Words = Field(
        description="Two to three paragraphs: what was wanted, how it was approached, what happened."
    )
    lesson: str | None = Field(description="What another agent should do or avoid, in one or two sentences, or null.")
    tags: Annotated[list[Words], AfterValidator(_distinct)] = Field(min_length=3, max_length=7)
    task_category: TaskCategory
    complexity: Complexity


class PartFinding(_Strict):
    """What one part of a long transcript shows of the task."""

    __qualname__ = "Finding"  # pydantic's name for it under "$defs"
    model_config = ConfigDict(title="Finding")

    evidence: list[Citation] = Field(min_length=1, max_length=3, description="Excerpts of this part that show it.")
    finding: Words = Field(
        description="What they show: what was done, what failed, what was decided, and in which step."
    )


class PartFindings(_Strict):
    """The answer to one part of a transcript that is too long for one prompt."""

    findings: list[PartFinding] = Field(max_length=12)
    account: Words = Field(description="What happens in this part, in a few sentences.")
