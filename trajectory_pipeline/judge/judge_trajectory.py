"""From a trajectory's documents to the columns of its verdict: render, ask, grade."""

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from trajectory_pipeline.budget.token_estimate import TokenEstimate
from trajectory_pipeline.judge.client.call_record import AskResult, JudgeReply
from trajectory_pipeline.judge.grading import grade_response
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import JudgePrompt, prompt_text
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.judge.response_schema import PartFindings
from trajectory_pipeline.judge.transcript.context import NO_CONTEXT, RenderedContext, StoredDocument, TaskContext
from trajectory_pipeline.judge.transcript.rendering import Rendered, Rendering
from trajectory_pipeline.judge.transcript.windows import MAX_WINDOWS, RenderedTranscript
from trajectory_pipeline.judge.window_summary import summarize_windows

Row = dict[str, Any]
_RETRY_SHARES = (0.5, 0.25)
"""Shares of the prompt size to try in turn, where the provider rejects a prompt as too long."""


RENDERING_SECONDS = 60.0
"""Time that rendering and redacting one transcript may take while others are being judged."""


class Ask(Protocol):
    """Asks the judge one question, and records the calls."""

    async def __call__(
        self, messages: Sequence[dict[str, str]], answer_type: type[JudgeReply]
    ) -> AskResult[JudgeReply]:
        """Ask with the messages of a chat; an answer is valid by its type."""


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is shown of one trajectory, built before any call.

    Attributes:
        max_prompt_tokens: of one prompt, by estimate.
        with_prompt_tokens: builds the request again for a smaller prompt.
    """

    rendered: RenderedTranscript
    context: RenderedContext
    prompt: JudgePrompt
    max_prompt_tokens: int
    estimate: TokenEstimate
    with_prompt_tokens: Callable[[int], "JudgeRequest"] = field(repr=False, compare=False)

    @property
    def calls(self) -> int:
        """Calls that the verdict takes where none has to be repeated."""
        windows = len(self.rendered.windows)
        return windows if windows <= 1 else windows + 1

    @property
    def shown_columns(self) -> Row:
        """The columns of a verdict that say what the judge was shown."""
        return {
            "coverage": self.rendered.coverage,
            "context_coverage": self.context.coverage or None,
            "windows": len(self.rendered.windows),
            "shown_sha256": self.shown_sha256,
        }

    @property
    def chat(self) -> list[dict[str, str]]:
        """The one prompt that shows all of the transcript, where it fits."""
        return self.prompt.messages(self.rendered.text, context=self.context.text)

    @property
    def prompt_tokens(self) -> int:
        """Conservative estimate of the input tokens of all these calls."""
        context = self.context.text
        if self.calls == 1:
            return self.estimate.tokens(prompt_text(self.chat, self.prompt.answer_type))
        prompts = (
            prompt_text(self.prompt.window_messages(window.text, context=context), PartFindings)
            for window in self.rendered.windows
        )
        # The summary may take a whole prompt.
        return sum(map(self.estimate.tokens, prompts)) + (self.max_prompt_tokens if self.calls > 1 else 0)

    @property
    def shown_sha256(self) -> str:
        """SHA-256 (hex) of all that is shown, without the random markers: a later rendering can be compared with it."""
        shown = [*self.context.bodies, *(window.text for window in self.rendered.windows)]
        return hashlib.sha256("\0".join(shown).encode()).hexdigest()

    @property
    def max_transcript_bytes(self) -> int:
        """Most UTF-8 bytes of a transcript in one prompt."""
        most = self.estimate.bytes_for(self.max_prompt_tokens) - self.prompt.overhead_bytes
        return max(most - len(self.context.text.encode()), 0)


@dataclass(frozen=True)
class RequestBuilder:
    """Builds the requests for a verdict on one trajectory, for prompts of any size.

    Attributes:
        documents: of the runs of the task, the earliest first, the judged one last.
        estimate: of tokens; that of a session, or a conservative one.
        seconds: that rendering may take.
    """

    documents: Sequence[StoredDocument]
    policy: RefinementPolicy
    estimate: TokenEstimate = field(default_factory=TokenEstimate)
    seconds: float = math.inf
    context: TaskContext = NO_CONTEXT

    def rendering(self, tokens: int) -> Rendering:
        """Return what is to be rendered for prompts of so many tokens."""
        policy = self.policy
        return Rendering(
            self.documents,
            self.context,
            Redactor(policy.redact, policy.redaction_key),
            policy.instructions_tokens,
            policy.earlier_turns_tokens,
            self.estimate.bytes_for(tokens) - policy.prompt.overhead_bytes,
            self.seconds,
        )

    def request(self, tokens: int, rendered: Rendered) -> JudgeRequest:
        """Return the request that shows what was rendered."""
        return JudgeRequest(*rendered, self.policy.prompt, tokens, self.estimate, self.build)

    def build(self, tokens: int) -> JudgeRequest:
        """Return the request for prompts of so many tokens.

        Raises:
            RedactionTimeoutError: rendering took longer than ``seconds``.
        """
        return self.request(tokens, self.rendering(tokens).render())


def build_judge_request(
    documents: Sequence[StoredDocument], policy: RefinementPolicy, *, context: TaskContext = NO_CONTEXT
) -> JudgeRequest:
    """Return what a judge is shown of the runs of a task, the earliest first, the judged one last, and of its context.

    By the conservative estimate of tokens, and without a limit of time.
    """
    return RequestBuilder(documents, policy, context=context).build(policy.max_prompt_tokens)


async def judge(request: JudgeRequest, heuristic_outcome: str, ask: Ask) -> Row:
    """Return the columns of a verdict, or of why there is none.

    Where the provider rejects a prompt as too long for its model, smaller ones are tried.
    """
    if not request.rendered.fits:
        prompts = f"{MAX_WINDOWS} prompts of {request.max_prompt_tokens} tokens (TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS)"
        return failed("too_long", f"even with every piece of it shortened, the transcript does not fit into {prompts}")
    columns = await _reach_verdict(request, heuristic_outcome, ask)
    shown = request.shown_sha256
    for share in _RETRY_SHARES:
        if columns.get("error_class") != "context_too_long":
            break
        smaller = await asyncio.to_thread(request.with_prompt_tokens, int(request.max_prompt_tokens * share))
        if not smaller.rendered.fits:
            break
        if smaller.shown_sha256 != shown:
            shown = smaller.shown_sha256
            columns = await _reach_verdict(smaller, heuristic_outcome, ask)
    return columns


def failed(error_class: str | None, error_message: str | None) -> Row:
    """Return the columns of a verdict that could not be reached."""
    return {"verdict_status": "failed", "error_class": error_class, "error_message": error_message}


async def _reach_verdict(request: JudgeRequest, heuristic_outcome: str, ask: Ask) -> Row:
    rendered = request.rendered
    shares: list[float] = []
    context = request.context.text
    shown = request.shown_columns
    if len(rendered.windows) == 1:
        chat = request.chat
    else:
        # One after another, so that a failure ends it.
        found: list[PartFindings] = []
        for window in rendered.windows:
            part = await _ask(request, ask, request.prompt.window_messages(window.text, context=context), PartFindings)
            if part.answer is None:
                columns = _unanswered(part)
                place = f"part {window.number} of {len(rendered.windows)} of a long transcript: "
                return {**shown, **columns, "error_message": place + (columns["error_message"] or "no answer")}
            found.append(part.answer)
            shares.append(part.calls[-1].share_read)
        excerpts = summarize_windows(rendered, found, request.max_transcript_bytes).text
        chat = request.prompt.summary_messages(excerpts, context=context)
    result = await _ask(request, ask, chat, request.prompt.answer_type)
    if result.answer is None:
        return {**shown, **_unanswered(result)}
    share = min(sum(shares) / len(shares) if shares else 1.0, result.calls[-1].share_read)
    rendered = replace(rendered, share_read=share)
    shown["coverage"] = rendered.coverage
    graded = await asyncio.to_thread(grade_response, result.answer, rendered, heuristic_outcome)
    return {**shown, **graded.columns, "verdict_status": graded.verdict_status, "judged_at": datetime.now(UTC)}


async def _ask(
    request: JudgeRequest, ask: Ask, chat: list[dict[str, str]], answer_type: type[JudgeReply]
) -> AskResult[JudgeReply]:
    estimated = request.estimate.tokens(prompt_text(chat, answer_type))
    result = await ask(chat, answer_type)
    usage = result.calls[0].usage
    if usage is not None:
        request.estimate.raise_to(estimated, usage.input_tokens)
    return result


def _unanswered(result: AskResult[Any]) -> Row:
    last = result.calls[-1]
    return {
        **failed(last.error_class, last.error_message),
        "verdict_status": "quarantined" if result.unusable else "failed",
        "raw_response": result.raw_response,
    }
