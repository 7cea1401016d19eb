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
from trajectory_pipeline.judge.client.session import AskResult
from trajectory_pipeline.judge.grading import grade_response
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import (
    messages,
    overhead_bytes,
    prompt_text,
    summary_messages,
    window_messages,
)
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.judge.response_schema import JudgeResponse, PartFindings
from trajectory_pipeline.judge.transcript.windows import MAX_WINDOWS, RenderedTranscript, render_transcript
from trajectory_pipeline.judge.window_summary import summarize_window

Row = dict[str, Any]
_Answer = TypeVar("_Answer", bound=BaseModel)
_SMALLER = (0.5, 0.25)
"""Shares of the policy's prompt that are tried in turn where the provider says that a prompt is too long."""


class Ask(Protocol):
    """Asks the judge one question, and keeps account of the calls."""

    async def __call__(self, messages: Sequence[dict[str, str]], answer_type: type[_Answer]) -> AskResult[_Answer]:
        """Put the messages of a chat; an answer is valid by its type."""


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is shown of one trajectory, made before anything is asked or paid.

    Attributes:
        rendered: the transcript, in one prompt or in windows.
        max_prompt_tokens: that one prompt may have, by estimate.
        estimate: of tokens.
        smaller: makes the case anew for a smaller prompt.
    """

    rendered: RenderedTranscript
    max_prompt_tokens: int
    estimate: Estimate
    smaller: Callable[[int], "JudgeRequest"] = field(repr=False, compare=False)

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
    def response_token_limit(self) -> int:
        """UTF-8 bytes that a transcript may have in one prompt."""
        return _room(self.max_prompt_tokens, self.estimate)

    @property
    def shown_sha256(self) -> str:
        """SHA-256 (hex) of all that is shown, markers aside: what is rendered anew can be compared with it."""
        return hashlib.sha256("\0".join(window.text for window in self.rendered.windows).encode()).hexdigest()

    def _questions(self) -> list[tuple[list[dict[str, str]], type[BaseModel]]]:
        if len(self.rendered.windows) == 1:
            return [(messages(self.rendered.text), JudgeResponse)]
        return [(window_messages(window.text), PartFindings) for window in self.rendered.windows]


def build_judge_request(
    documents: Sequence[Mapping[str, Any]], policy: RefinementPolicy, estimate: Estimate | None = None
) -> JudgeRequest:
    """Return what a judge is to be shown.

    Args:
        documents: of the runs of the task, the earliest first, the judged one last.
        policy: under which it is judged.
        estimate: of the session; without one, the conservative one.
    """
    estimate = estimate or Estimate()
    redaction = Redactor(policy.redact, policy.redaction_key)

    def case(tokens: int) -> JudgeRequest:
        room = _room(tokens, estimate)
        return JudgeRequest(render_transcript(documents, room, redaction), tokens, estimate, case)

    return case(policy.max_prompt_tokens)


def _room(tokens: int, estimate: Estimate) -> int:
    return max(estimate.bytes_for(tokens) - overhead_bytes(), 0)


async def judge(case: JudgeRequest, heuristic_outcome: str, ask: Ask) -> Row:
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


def too_long(case: JudgeRequest) -> Row:
    """Return the columns of a verdict on a transcript that cannot be shown."""
    prompts = f"{MAX_WINDOWS} prompts of {case.max_prompt_tokens} tokens (TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS)"
    return failed("too_long", f"even with every piece of it shortened, the transcript does not fit into {prompts}")


def failed(error_class: str | None, error_message: str | None) -> Row:
    """Return the columns of a verdict that could not be reached."""
    return {"verdict_status": "failed", "error_class": error_class, "error_message": error_message}


@dataclass(frozen=True)
class _Deliberation:
    """The questions of one case."""

    case: JudgeRequest
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
        assessment = grade_response(asked.answer, rendered, heuristic_outcome)
        return {
            **shown,
            **assessment.columns,
            "verdict_status": assessment.verdict_status,
            "judged_at": datetime.now(UTC),
        }

    async def _whole(self) -> AskResult[JudgeResponse]:
        return await self._put(messages(self.case.rendered.text), JudgeResponse)

    async def _in_parts(self) -> AskResult[JudgeResponse] | Row:
        """Ask for the findings of the parts, one after another, so that a failure ends it; then for a verdict."""
        found: list[PartFindings] = []
        windows = self.case.rendered.windows
        for window in windows:
            asked = await self._put(window_messages(window.text), PartFindings)
            if asked.answer is None:
                said = _unanswered(asked)
                place = f"part {window.number} of {len(windows)} of a long transcript: "
                return {**said, "error_message": place + (said["error_message"] or "no answer")}
            found.append(asked.answer)
        last = summarize_window(self.case.rendered, found, self.case.response_token_limit)
        return await self._put(summary_messages(last.text), JudgeResponse)

    async def _put(self, chat: list[dict[str, str]], answer_type: type[_Answer]) -> AskResult[_Answer]:
        estimated = self.case.estimate.tokens(prompt_text(chat, answer_type))
        asked = await self.ask(chat, answer_type)
        for attempt in asked.attempts[:1]:
            if attempt.usage is not None:
                self.case.estimate.learn(estimated, attempt.usage.input_tokens)
        return asked


def _unanswered(asked: AskResult[Any]) -> Row:
    last = asked.attempts[-1]
    return {
        **failed(last.error_class, last.error_message),
        "verdict_status": "quarantined" if asked.unusable else "failed",
        "raw_response": asked.raw_response,
    }
