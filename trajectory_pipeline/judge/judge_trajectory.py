"""From a trajectory's documents to what there is to say of it: show, ask, assess.

Belongs here: which questions a judge is asked about one trajectory, and how their answers become one verdict's columns.
Does not belong here: the call (``ask``), where documents come from and verdicts go (``stages``), and money.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from trajectory_pipeline.budget.token_estimate import Estimate
from trajectory_pipeline.judge.client.session import Asked
from trajectory_pipeline.judge.grading import assess
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import (
    excerpt_messages,
    frame_bytes,
    messages,
    part_messages,
    prompt_text,
)
from trajectory_pipeline.judge.redaction.redactor import Redaction
from trajectory_pipeline.judge.response_schema import JudgeAnswer, PartFindings
from trajectory_pipeline.judge.transcript.windows import MOST_WINDOWS, Rendered, render
from trajectory_pipeline.judge.window_summary import excerpts

Row = dict[str, Any]
_Answer = TypeVar("_Answer", bound=BaseModel)
_SMALLER = (0.5, 0.25)
"""Shares of the policy's prompt that are tried in turn where the provider says that a prompt is too long."""


class Ask(Protocol):
    """Asks the judge one question, and keeps account of the calls."""

    async def __call__(self, messages: Sequence[dict[str, str]], answer_type: type[_Answer]) -> Asked[_Answer]:
        """Put the messages of a chat; an answer is valid by its type."""


@dataclass(frozen=True)
class Case:
    """What a judge is shown of one trajectory, made before anything is asked or paid.

    Attributes:
        rendered: the transcript, in one prompt or in windows.
        max_prompt_tokens: that one prompt may have, by estimate.
        estimate: of tokens.
        smaller: makes the case anew for a smaller prompt.
    """

    rendered: Rendered
    max_prompt_tokens: int
    estimate: Estimate
    smaller: Callable[[int], "Case"] = field(repr=False, compare=False)

    @property
    def calls(self) -> int:
        """Calls that the verdict takes where none has to be repeated."""
        windows = len(self.rendered.windows)
        return windows if windows <= 1 else windows + 1

    @property
    def prompt_tokens(self) -> int:
        """Conservative estimate of the input tokens of all these calls."""
        prompts = sum(self.estimate.tokens(prompt_text(chat, answer)) for chat, answer in self._questions())
        return prompts + (self.max_prompt_tokens if self.calls > 1 else 0)

    @property
    def room(self) -> int:
        """UTF-8 bytes that a transcript may have in one prompt."""
        return _room(self.max_prompt_tokens, self.estimate)

    @property
    def shown_sha256(self) -> str:
        """SHA-256 (hex) of all that is shown, markers aside: what is rendered anew can be compared with it."""
        return hashlib.sha256("\0".join(window.text for window in self.rendered.windows).encode()).hexdigest()

    def _questions(self) -> list[tuple[list[dict[str, str]], type[BaseModel]]]:
        if len(self.rendered.windows) == 1:
            return [(messages(self.rendered.text), JudgeAnswer)]
        return [(part_messages(window.text), PartFindings) for window in self.rendered.windows]


def case_of(documents: Sequence[Mapping[str, Any]], policy: RefinementPolicy, estimate: Estimate | None = None) -> Case:
    """Return what a judge is to be shown.

    Args:
        documents: of the runs of the task, the earliest first, the judged one last.
        policy: under which it is judged.
        estimate: of the session; without one, the conservative one.
    """
    estimate = estimate or Estimate()
    redaction = Redaction(policy.redact, policy.redaction_key)

    def case(tokens: int) -> Case:
        room = _room(tokens, estimate)
        return Case(render(documents, room, redaction), tokens, estimate, case)

    return case(policy.max_prompt_tokens)


def _room(tokens: int, estimate: Estimate) -> int:
    return max(estimate.bytes_for(tokens) - frame_bytes(), 0)


async def deliberate(case: Case, heuristic_outcome: str, ask: Ask) -> Row:
    """Return the columns of a verdict: what the judge said and what follows from it, or why there is nothing.

    Where the provider says that a prompt is too long for its model, smaller ones are tried.

    Args:
        case: of ``case_of``.
        heuristic_outcome: of the trajectory, for the disagreement.
        ask: makes the calls, and keeps account of them.
    """
    if not case.rendered.fits:
        return too_long(case)
    said = await _Deliberation(case, ask).verdict(heuristic_outcome)
    shown = case.shown_sha256
    for share in _SMALLER:
        if said.get("error_class") != "context_too_long":
            break
        smaller = case.smaller(int(case.max_prompt_tokens * share))
        if not smaller.rendered.fits:
            break
        if smaller.shown_sha256 != shown:
            shown = smaller.shown_sha256
            said = await _Deliberation(smaller, ask).verdict(heuristic_outcome)
    return said


def too_long(case: Case) -> Row:
    """Return the columns of a verdict on a transcript that cannot be shown."""
    prompts = f"{MOST_WINDOWS} prompts of {case.max_prompt_tokens} tokens (TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS)"
    return failed("too_long", f"even with every piece of it shortened, the transcript does not fit into {prompts}")


def failed(error_class: str | None, error_message: str | None) -> Row:
    """Return the columns of a verdict that could not be reached."""
    return {"verdict_status": "failed", "error_class": error_class, "error_message": error_message}


@dataclass(frozen=True)
class _Deliberation:
    """The questions of one case."""

    case: Case
    ask: Ask

    async def verdict(self, heuristic_outcome: str) -> Row:
        rendered = self.case.rendered
        shown = {
            "coverage": rendered.coverage,
            "windows": len(rendered.windows),
            "shown_sha256": self.case.shown_sha256,
        }
        asked = await self._whole() if len(rendered.windows) == 1 else await self._in_parts()
        if isinstance(asked, dict):
            return {**shown, **asked}
        if asked.answer is None:
            return {**shown, **_unanswered(asked)}
        assessment = assess(asked.answer, rendered, heuristic_outcome)
        return {
            **shown,
            **assessment.columns,
            "verdict_status": assessment.verdict_status,
            "judged_at": datetime.now(UTC),
        }

    async def _whole(self) -> Asked[JudgeAnswer]:
        return await self._put(messages(self.case.rendered.text), JudgeAnswer)

    async def _in_parts(self) -> Asked[JudgeAnswer] | Row:
        """Ask for the findings of the parts, one after another, so that a failure ends it; then for a verdict."""
        found: list[PartFindings] = []
        windows = self.case.rendered.windows
        for window in windows:
            asked = await self._put(part_messages(window.text), PartFindings)
            if asked.answer is None:
                said = _unanswered(asked)
                place = f"part {window.number} of {len(windows)} of a long transcript: "
                return {**said, "error_message": place + (said["error_message"] or "no answer")}
            found.append(asked.answer)
        last = excerpts(self.case.rendered, found, self.case.room)
        return await self._put(excerpt_messages(last.text), JudgeAnswer)

    async def _put(self, chat: list[dict[str, str]], answer_type: type[_Answer]) -> Asked[_Answer]:
        estimated = self.case.estimate.tokens(prompt_text(chat, answer_type))
        asked = await self.ask(chat, answer_type)
        for attempt in asked.attempts[:1]:
            if attempt.usage is not None:
                self.case.estimate.learn(estimated, attempt.usage.input_tokens)
        return asked


def _unanswered(asked: Asked[Any]) -> Row:
    last = asked.attempts[-1]
    return {
        **failed(last.error_class, last.error_message),
        "verdict_status": "quarantined" if asked.unusable else "failed",
        "raw_answer": asked.raw_answer,
    }
