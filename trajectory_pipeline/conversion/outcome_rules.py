"""How a run ended, and the heuristic outcome that this suggests: facts and rules in order of precedence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from trajectory_pipeline.lossless_json import write_json
from trajectory_pipeline.schema.enums import ExecutionCause, ExecutionStatus, Outcome

_AGENT_REASONS = ("no_tool_call", "invalid_llm_response", "invalid_tool_call")

# Texts of requests that the server refuses before any step (Letta 0.16.8: letta/agents/helpers.py, letta/errors.py).
REQUEST_REFUSALS = (
    "CONFLICT",
    "Invalid tool call IDs",
    "Cannot process approval response",
    "Message content is empty",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
)

# Keys of a stream's error event, which is stored whole (Letta 0.16.8: LettaErrorMessage).
_ERROR_EVENT_KEYS = frozenset({"message_type", "run_id", "error_type", "message", "detail", "seq_id"})

# First word of an error's text, as Letta's errors begin (letta/errors.py: ErrorCode).
CAUSE_BY_CODE = {
    "CONTEXT_WINDOW_EXCEEDED": ExecutionCause.CONTEXT_LIMIT,
    "PAYMENT_REQUIRED": ExecutionCause.BILLING,
    "RATE_LIMIT_EXCEEDED": ExecutionCause.LLM_PROVIDER,
    "UNAUTHENTICATED": ExecutionCause.LLM_PROVIDER,
}
_CAUSE_BY_CLASS = {
    "ContextWindowExceededError": ExecutionCause.CONTEXT_LIMIT,
    "LLMInsufficientCreditsError": ExecutionCause.BILLING,
    "LLMEmptyResponseError": ExecutionCause.AGENT,
}
_CAUSE_BY_STOP_REASON = {
    "context_window_overflow_in_system_prompt": ExecutionCause.CONTEXT_LIMIT,
    "insufficient_credits": ExecutionCause.BILLING,
    "llm_api_error": ExecutionCause.LLM_PROVIDER,
    **dict.fromkeys(_AGENT_REASONS, ExecutionCause.AGENT),
}
_ERROR_STOP_REASONS = frozenset({"error", *_CAUSE_BY_STOP_REASON})


class RunError(NamedTuple):
    """What went wrong, wherever Letta recorded it; ``detail`` is what else was recorded, as text."""

    type: str | None
    message: str | None
    detail: str | None
    step_id: str | None


class LastStep(NamedTuple):
    """The last own step of a run, by time; ``failed`` where an error or a failed status is recorded."""

    step_id: str
    error_type: str | None
    error_message: str | None
    stop_reason: str | None
    failed: bool

    @classmethod
    def of(cls, step_id: str, status: str | None, stop_reason: str | None, error: Mapping[str, Any] | None) -> Self:
        """Return the step with this error, as a trajectory's turn holds it."""
        recorded = error or {}
        failed = bool(error) or status == "FAILED"
        return cls(step_id, recorded.get("type"), recorded.get("message"), stop_reason, failed)


@dataclass(frozen=True)
class OutcomeRule:
    """The rule that fits a run, its confidence (0 to 1), and the facts that led there."""

    status: ExecutionStatus
    cause: ExecutionCause | None
    outcome: Outcome
    confidence: float
    reasoning: Sequence[str]


class Doubt(NamedTuple):
    """A signal that lowers the confidence of a heuristic success, by a factor that was measured on labels."""

    name: str
    holds: Callable[[Mapping[str, Any]], bool]
    factor: float
    reason: str


DOUBTS = (
    Doubt(
        "negative feedback", lambda signals: signals["negative_feedback"] > 0, 0.59, "A person gave negative feedback"
    ),
    Doubt(
        "unrecovered error",
        lambda signals: signals["error_recovered"] is False,
        0.85,
        "A tool failed, and did not succeed for that purpose later",
    ),
)
"""Measured by ``python -m benchmarks.heuristic``; ``docs/concepts.md`` has the counts behind each factor."""

_CANCELLED = OutcomeRule(ExecutionStatus.CANCELLED, ExecutionCause.USER, Outcome.FAILURE, 0.8, ("Run was cancelled",))
_AWAITING_APPROVAL = OutcomeRule(
    ExecutionStatus.AWAITING_APPROVAL, None, Outcome.UNKNOWN, 0.5, ("Run ended waiting for an approval",)
)


def _truncated(cause: ExecutionCause, limit: str) -> OutcomeRule:
    reasoning = (f"Run was cut off at its {limit} limit",)
    return OutcomeRule(ExecutionStatus.TRUNCATED, cause, Outcome.PARTIAL_SUCCESS, 0.5, reasoning)


def run_error(recorded: Any, last: LastStep | None) -> RunError | None:
    """Return the error of a run: of its metadata, else of its last own step; None where none is recorded.

    ``runs.metadata_.error`` is a string (blocking, async) or an object (streamed). Anything else, or an object of
    another form, becomes the detail, as JSON text. An empty value records nothing.
    """
    step_id = last.step_id if last is not None and last.failed else None
    if isinstance(recorded, str) and recorded:
        return RunError(last.error_type if last is not None else None, recorded, None, step_id)
    if isinstance(recorded, dict) and recorded:
        return _event_error(recorded, step_id)
    if recorded:
        return RunError(None, None, write_json(recorded), step_id)
    if last is not None and (last.error_type or last.error_message):
        return RunError(last.error_type, last.error_message, None, step_id)
    return None


def _event_error(event: dict[str, Any], step_id: str | None) -> RunError:
    kind, message, detail = (event.get(name) for name in ("error_type", "message", "detail"))
    if not (event.keys() <= _ERROR_EVENT_KEYS and isinstance(kind, str | None) and isinstance(message, str | None)):
        detail = event
    return RunError(
        type=kind if isinstance(kind, str) else None,
        message=message if isinstance(message, str) else None,
        detail=detail if isinstance(detail, str | None) else write_json(detail),
        step_id=step_id,
    )


def classify_outcome(
    status: str,
    stop_reason: str | None,
    last: LastStep | None,
    error: RunError | None,
    *,
    has_steps: bool,
    replies_or_calls: bool,
) -> OutcomeRule:
    """Return the first rule that fits a run of this status and stop reason, by ``runs``.

    ``has_steps`` is of its own steps; ``replies_or_calls`` whether it holds assistant text or a tool call.
    """
    if "cancelled" in (status, stop_reason):
        return _CANCELLED
    if stop_reason == "max_steps":
        return _truncated(ExecutionCause.STEP_LIMIT, "step")
    if stop_reason == "max_tokens_exceeded":
        return _truncated(ExecutionCause.TOKEN_LIMIT, "token")
    if status == "completed" and stop_reason == "requires_approval":
        return _AWAITING_APPROVAL
    if status == "failed" or stop_reason in _ERROR_STOP_REASONS:
        cause = _cause(last, stop_reason, error, has_steps=has_steps)
        reasoning = _failure_reasoning(status, stop_reason, last, error, has_steps=has_steps)
        return OutcomeRule(ExecutionStatus.FAILED, cause, Outcome.FAILURE, 0.9, reasoning)
    if status == "completed" and stop_reason in (None, "end_turn", "tool_rule"):
        return _completed(stop_reason, replies_or_calls=replies_or_calls)
    unknown = f"Run ended as {status} with stop reason {stop_reason}, which no rule knows"
    return OutcomeRule(ExecutionStatus.UNKNOWN, None, Outcome.UNKNOWN, 0.5, (unknown,))


def doubted(outcome: OutcomeRule, signals: Mapping[str, Any]) -> OutcomeRule:
    """Return a success with its confidence lowered by what its signals say; any other outcome as it is.

    Of several doubts the strongest counts: how they go together was not measured.
    """
    doubts = [doubt for doubt in DOUBTS if doubt.holds(signals)] if outcome.outcome is Outcome.SUCCESS else []
    if not doubts:
        return outcome
    confidence = round(outcome.confidence * min(doubt.factor for doubt in doubts), 2)
    return replace(outcome, confidence=confidence, reasoning=[*outcome.reasoning, *(doubt.reason for doubt in doubts)])


def _completed(stop_reason: str | None, *, replies_or_calls: bool) -> OutcomeRule:
    if not replies_or_calls:
        outcome, confidence, reason = Outcome.UNKNOWN, 0.5, "Agent neither said anything nor called a tool"
    elif stop_reason == "end_turn":
        outcome, confidence, reason = Outcome.SUCCESS, 0.8, "Agent ended its turn"
    else:
        reason = "A tool rule ended the run" if stop_reason == "tool_rule" else "No stop reason was recorded"
        outcome, confidence = Outcome.SUCCESS, 0.7
    reasoning = ("Run completed without errors", reason)
    return OutcomeRule(ExecutionStatus.COMPLETED, None, outcome, confidence, reasoning)


def _failure_reasoning(
    status: str, stop_reason: str | None, last: LastStep | None, error: RunError | None, *, has_steps: bool
) -> list[str]:
    reasoning = ["Run failed" if status == "failed" else f"Run was recorded as {status}, but with an error"]
    if stop_reason:
        reasoning.append(f"Stop reason is {stop_reason}")
    if last is not None and last.failed and last.error_type:
        reasoning.append(f"Its last step failed with {last.error_type}")
    if not has_steps:
        reasoning.append("It failed before its first step")
    if error is None:
        reasoning.append("No error text was recorded")
    return reasoning


def _cause(
    last: LastStep | None, stop_reason: str | None, error: RunError | None, *, has_steps: bool
) -> ExecutionCause:
    """Look at the last own step's error, then its stop reason, then the run's, then the recorded error."""
    step_error, step_reason = (last.error_type, last.stop_reason) if last is not None else (None, None)
    if step_error == "LLMError" and step_reason in _AGENT_REASONS:
        return ExecutionCause.AGENT
    if step_error:
        generic = ExecutionCause.LLM_PROVIDER if step_error.startswith("LLM") else ExecutionCause.SERVER
        return _CAUSE_BY_CLASS.get(step_error, generic)
    for reason in (step_reason, stop_reason):
        if reason in _CAUSE_BY_STOP_REASON:
            return _CAUSE_BY_STOP_REASON[reason]
    if error is None:
        return ExecutionCause.UNRECORDED
    texts = [text for text in (error.detail, error.message) if text]
    if not has_steps and any(text.startswith(REQUEST_REFUSALS) for text in texts):
        return ExecutionCause.REQUEST
    for text in texts:
        code = text.split(":", 1)[0]
        if code in CAUSE_BY_CODE:
            return CAUSE_BY_CODE[code]
    return ExecutionCause.LLM_PROVIDER if (error.type or "").startswith("llm_") else ExecutionCause.SERVER
