"""From a trajectory's documents to what there is to say of it: show, ask, assess.

Belongs here: which questions a judge is asked about one trajectory, and how their answers become one verdict's columns.
Does not belong here: the call (``ask``), where documents come from and verdicts go (``stages``), and money.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from trajectory_pipeline.refinement.answer import JudgeAnswer
from trajectory_pipeline.refinement.ask import Asked
from trajectory_pipeline.refinement.assess import assess
from trajectory_pipeline.refinement.policy import RefinementPolicy
from trajectory_pipeline.refinement.prompt import frame_tokens, messages
from trajectory_pipeline.refinement.render import Rendered, estimated_tokens, render

Row = dict[str, Any]
_Answer = TypeVar("_Answer", bound=BaseModel)


class Ask(Protocol):
    """Asks the judge one question, and keeps account of the calls."""

    async def __call__(self, messages: Sequence[dict[str, str]], answer_type: type[_Answer]) -> Asked[_Answer]:
        """Put the messages of a chat; an answer is valid by its type."""


@dataclass(frozen=True)
class Case:
    """What a judge is shown of one trajectory, made before anything is asked or paid.

    Attributes:
        rendered: the transcript.
        max_prompt_tokens: that one prompt may have.
    """

    rendered: Rendered
    max_prompt_tokens: int

    @property
    def calls(self) -> int:
        """Calls that the verdict takes where none has to be repeated."""
        return 1 if self.rendered.fits else 0

    @property
    def prompt_tokens(self) -> int:
        """Conservative estimate of the input tokens of all these calls."""
        return self.calls * (frame_tokens() + estimated_tokens(self.rendered.text))


def case_of(documents: Sequence[Mapping[str, Any]], policy: RefinementPolicy) -> Case:
    """Return what a judge is to be shown.

    Args:
        documents: of the runs of the task, the earliest first, the judged one last.
        policy: under which it is judged.
    """
    return Case(render(documents, policy.max_prompt_tokens - frame_tokens()), policy.max_prompt_tokens)


async def deliberate(case: Case, heuristic_outcome: str, ask: Ask) -> Row:
    """Return the columns of a verdict: what the judge said and what follows from it, or why there is nothing.

    Args:
        case: of ``case_of``.
        heuristic_outcome: of the trajectory, for the disagreement.
        ask: makes the calls, and keeps account of them.
    """
    rendered = case.rendered
    if not rendered.fits:
        limit = f"{case.max_prompt_tokens} tokens (TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS)"
        return failed("too_long", f"the transcript does not fit into a prompt of {limit}")
    asked = await ask(messages(rendered.text), JudgeAnswer)
    if asked.answer is not None:
        assessment = assess(asked.answer, rendered, heuristic_outcome)
        return {
            **assessment.columns,
            "verdict_status": assessment.verdict_status,
            "coverage": rendered.coverage,
            "judged_at": datetime.now(UTC),
        }
    last = asked.attempts[-1]
    return {
        **failed(last.error_class, last.error_message),
        "verdict_status": "quarantined" if asked.unusable else "failed",
        "coverage": rendered.coverage,
        "raw_answer": asked.raw_answer,
    }


def failed(error_class: str | None, error_message: str | None) -> Row:
    """Return the columns of a verdict that could not be reached."""
    return {"verdict_status": "failed", "error_class": error_class, "error_message": error_message}
