"""From a trajectory's documents to the columns of its verdict: render, ask, grade."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from trajectory_pipeline.budget.token_estimate import TokenEstimate
from trajectory_pipeline.judge.client.call_record import AskResult
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
from trajectory_pipeline.judge.window_summary import summarize_windows

Row = dict[str, Any]
_Answer = TypeVar("_Answer", bound=BaseModel)
_RETRY_SHARES = (0.5, 0.25)
"""Shares of the prompt size to try in turn, where the provider says that a prompt is too long."""


class Ask(Protocol):
    """Asks the judge one question, and records the calls."""

    async def __call__(self, messages: Sequence[dict[str, str]], answer_type: type[_Answer]) -> AskResult[_Answer]:
        """Put the messages of a chat; an answer is valid by its type."""


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is shown of one trajectory, built before any call.

    Attributes:
        rendered: the transcript, in one prompt or in windows.
        max_prompt_tokens: that one prompt may have, by estimate.
        estimate: of tokens.
        with_prompt_tokens: builds the request again for a smaller prompt.
    """

    rendered: RenderedTranscript
    max_prompt_tokens: int
    estimate: TokenEstimate
    with_prompt_tokens: Callable[[int], "JudgeRequest"] = field(repr=False, compare=False)

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
    def transcript_bytes(self) -> int:
        """UTF-8 bytes that a transcript may have in one prompt."""
        return _transcript_bytes(self.max_prompt_tokens, self.estimate)

    @property
    def shown_sha256(self) -> str:
        """SHA-256 (hex) of all that is shown, markers aside: what is rendered anew can be compared with it."""
        return hashlib.sha256("\0".join(window.text for window in self.rendered.windows).encode()).hexdigest()

    def _questions(self) -> list[tuple[list[dict[str, str]], type[BaseModel]]]:
        if len(self.rendered.windows) == 1:
            return [(messages(self.rendered.text), JudgeResponse)]
        return [(window_messages(window.text), PartFindings) for window in self.rendered.windows]


def build_judge_request(
    documents: Sequence[Mapping[str, Any]], policy: RefinementPolicy, estimate: TokenEstimate | None = None
) -> JudgeRequest:
    """Return what a judge is shown, and what it may take.

    Args:
        documents: of the runs of the task, the earliest first, the judged one last.
        policy: under which it is judged.
        estimate: of the session; without one, the conservative one.
    """
    estimate = estimate or TokenEstimate()
    redaction = Redactor(policy.redact, policy.redaction_key)

    def build(tokens: int) -> JudgeRequest:
        transcript_bytes = _transcript_bytes(tokens, estimate)
        return JudgeRequest(render_transcript(documents, transcript_bytes, redaction), tokens, estimate, build)

    return build(policy.max_prompt_tokens)


def _transcript_bytes(tokens: int, estimate: TokenEstimate) -> int:
    return max(estimate.bytes_for(tokens) - overhead_bytes(), 0)


async def judge(request: JudgeRequest, heuristic_outcome: str, ask: Ask) -> Row:
    """Return the columns of a verdict, or of why there is none.

    Where the provider says that a prompt is too long for its model, smaller ones are tried.

    Args:
        request: of ``build_judge_request``.
        heuristic_outcome: of the trajectory, for the disagreement.
        ask: makes the calls, and records them.
    """
    if not request.rendered.fits:
        return too_long(request)
    columns = await _Questions(request, ask).verdict(heuristic_outcome)
    shown = request.shown_sha256
    for share in _RETRY_SHARES:
        if columns.get("error_class") != "context_too_long":
            break
        smaller = request.with_prompt_tokens(int(request.max_prompt_tokens * share))
        if not smaller.rendered.fits:
            break
        if smaller.shown_sha256 != shown:
            shown = smaller.shown_sha256
            columns = await _Questions(smaller, ask).verdict(heuristic_outcome)
    return columns


def too_long(request: JudgeRequest) -> Row:
    """Return the columns of a verdict on a transcript that does not fit."""
    prompts = f"{MAX_WINDOWS} prompts of {request.max_prompt_tokens} tokens (TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS)"
    return failed("too_long", f"even with every piece of it shortened, the transcript does not fit into {prompts}")


def failed(error_class: str | None, error_message: str | None) -> Row:
    """Return the columns of a verdict that could not be reached."""
    return {"verdict_status": "failed", "error_class": error_class, "error_message": error_message}


@dataclass(frozen=True)
class _Questions:
    """The questions of one request."""

    request: JudgeRequest
    ask: Ask

    async def verdict(self, heuristic_outcome: str) -> Row:
        rendered = self.request.rendered
        shown = {
            "coverage": rendered.coverage,
            "windows": len(rendered.windows),
            "shown_sha256": self.request.shown_sha256,
        }
        result = await self._ask_whole() if len(rendered.windows) == 1 else await self._ask_in_windows()
        if isinstance(result, dict):
            return {**shown, **result}
        if result.answer is None:
            return {**shown, **_unanswered(result)}
        assessment = grade_response(result.answer, rendered, heuristic_outcome)
        return {
            **shown,
            **assessment.columns,
            "verdict_status": assessment.verdict_status,
            "judged_at": datetime.now(UTC),
        }

    async def _ask_whole(self) -> AskResult[JudgeResponse]:
        return await self._ask(messages(self.request.rendered.text), JudgeResponse)

    async def _ask_in_windows(self) -> AskResult[JudgeResponse] | Row:
        """Ask for the findings of the parts, one after another, so that a failure ends it; then for a verdict."""
        found: list[PartFindings] = []
        windows = self.request.rendered.windows
        for window in windows:
            result = await self._ask(window_messages(window.text), PartFindings)
            if result.answer is None:
                columns = _unanswered(result)
                place = f"part {window.number} of {len(windows)} of a long transcript: "
                return {**columns, "error_message": place + (columns["error_message"] or "no answer")}
            found.append(result.answer)
        last = summarize_windows(self.request.rendered, found, self.request.transcript_bytes)
        return await self._ask(summary_messages(last.text), JudgeResponse)

    async def _ask(self, chat: list[dict[str, str]], answer_type: type[_Answer]) -> AskResult[_Answer]:
        estimated = self.request.estimate.tokens(prompt_text(chat, answer_type))
        result = await self.ask(chat, answer_type)
        for attempt in result.calls[:1]:
            if attempt.usage is not None:
                self.request.estimate.raise_to(estimated, attempt.usage.input_tokens)
        return result


def _unanswered(result: AskResult[Any]) -> Row:
    last = result.calls[-1]
    return {
        **failed(last.error_class, last.error_message),
        "verdict_status": "quarantined" if result.unusable else "failed",
        "raw_response": result.raw_response,
    }
