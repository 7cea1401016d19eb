"""How a run ended, and what that suggests of its outcome: facts and rules, no judgement.

Belongs here: the table of endings and its precedence. Does not belong here: what a judge says (``refinement``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.lossless_json import write_json

ERROR_STOP_REASONS = frozenset(
    {
        "error",
        "llm_api_error",
        "invalid_llm_response",
        "invalid_tool_call",
        "no_tool_call",
        "insufficient_credits",
        "context_window_overflow_in_system_prompt",
    }
)

_AGENT_REASONS = ("no_tool_call", "invalid_llm_response", "invalid_tool_call")

# What the server refuses before any step (Letta 0.16.8: letta/agents/helpers.py, letta/errors.py).
REQUEST_REFUSALS = (
    "CONFLICT",
    "Invalid tool call IDs",
    "Cannot process approval response",
    "Message content is empty",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
)

# Of the error event of a stream, which is stored whole (Letta 0.16.8: LettaErrorMessage).
_KEYS_OF_AN_ERROR = frozenset({"message_type", "run_id", "error_type", "message", "detail", "seq_id"})

# First word of an error's text, as Letta's errors begin (letta/errors.py: ErrorCode).
CAUSE_BY_CODE = {
    "CONTEXT_WINDOW_EXCEEDED": "context_limit",
    "PAYMENT_REQUIRED": "billing",
    "RATE_LIMIT_EXCEEDED": "llm_provider",
    "UNAUTHENTICATED": "llm_provider",
}


@dataclass(frozen=True)
class RunError:
    """What went wrong, wherever Letta put it.

    Attributes:
        type: class or kind.
        message: in words.
        detail: what else was recorded.
        step_id: the step that failed.
    """

    type: str | None
    message: str | None
    detail: str | None
    step_id: str | None


@dataclass(frozen=True)
class LastStep:
    """The last own step of a run, by time.

    Attributes:
        step_id: its id.
        error_type: class of its error.
        error_message: of its error.
        stop_reason: why it stopped.
        failed: whether an error or a failed status is recorded.
    """

    step_id: str
    error_type: str | None
    error_message: str | None
    stop_reason: str | None
    failed: bool


@dataclass(frozen=True)
class OutcomeRule:
    """How a run ended and the heuristic outcome.

    Attributes:
        status: of the execution.
        cause: of the execution; None where there is none to name.
        outcome: success, partial_success, failure or unknown.
        confidence: of the rule.
        reasoning: the facts that led there.
    """

    status: str
    cause: str | None
    outcome: str
    confidence: float
    reasoning: tuple[str, ...]


def run_error(recorded: Any, last: LastStep | None) -> RunError | None:
    """Return the error of a run: of its metadata, else of its last own step; None where none is recorded.

    Args:
        recorded: ``runs.metadata_.error``: a string (blocking, async) or an object (streamed). What is neither, or an
            object of another form, becomes the detail, as JSON text. An empty value records nothing.
        last: the last own step.
    """
    step_id = last.step_id if last is not None and last.failed else None
    if isinstance(recorded, str) and recorded:
        kind = last.error_type if last is not None else None
        return RunError(kind, recorded, None, step_id)
    if isinstance(recorded, dict) and recorded:
        return _taken_apart(recorded, step_id)
    if recorded:
        return RunError(None, None, write_json(recorded), step_id)
    if last is not None and (last.error_type or last.error_message):
        return RunError(last.error_type, last.error_message, None, step_id)
    return None


def _taken_apart(recorded: dict[str, Any], step_id: str | None) -> RunError:
    kind, message, detail = (recorded.get(name) for name in ("error_type", "message", "detail"))
    if not (recorded.keys() <= _KEYS_OF_AN_ERROR and isinstance(kind, str | None) and isinstance(message, str | None)):
        detail = recorded
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
    says_or_calls: bool,
) -> OutcomeRule:
    """Return how a run ended: the first row of the table that fits wins.

    Args:
        status: ``runs.status``.
        stop_reason: ``runs.stop_reason``.
        last: the last own step.
        error: of the run.
        has_steps: whether it has own steps.
        says_or_calls: whether it holds assistant text or a tool call.
    """
    if status == "cancelled" or stop_reason == "cancelled":
        return OutcomeRule("cancelled", "user", "failure", 0.8, ("Run was cancelled",))
    if stop_reason == "max_steps":
        return OutcomeRule("truncated", "step_limit", "partial_success", 0.5, ("Run was cut off at its step limit",))
    if stop_reason == "max_tokens_exceeded":
        return OutcomeRule("truncated", "token_limit", "partial_success", 0.5, ("Run was cut off at its token limit",))
    if status == "completed" and stop_reason == "requires_approval":
        return OutcomeRule("awaiting_approval", None, "unknown", 0.5, ("Run ended waiting for an approval",))
    if status == "failed" or stop_reason in ERROR_STOP_REASONS:
        return _failed(status, stop_reason, last, error, has_steps)
    if status == "completed" and stop_reason in (None, "end_turn", "tool_rule"):
        return _completed(stop_reason, says_or_calls)
    return OutcomeRule(
        "unknown", None, "unknown", 0.5, (f"Run ended as {status} with stop reason {stop_reason}, which no rule knows",)
    )


def _completed(stop_reason: str | None, says_or_calls: bool) -> OutcomeRule:
    without_errors = "Run completed without errors"
    if not says_or_calls:
        return OutcomeRule(
            "completed", None, "unknown", 0.5, (without_errors, "Agent neither said anything nor called a tool")
        )
    if stop_reason == "end_turn":
        return OutcomeRule("completed", None, "success", 0.8, (without_errors, "Agent ended its turn"))
    ended = "A tool rule ended the run" if stop_reason == "tool_rule" else "No stop reason was recorded"
    return OutcomeRule("completed", None, "success", 0.7, (without_errors, ended))


def _failed(
    status: str, stop_reason: str | None, last: LastStep | None, error: RunError | None, has_steps: bool
) -> OutcomeRule:
    cause = _cause(last, stop_reason, error, has_steps)
    reasoning = ["Run failed" if status == "failed" else f"Run was recorded as {status}, but with an error"]
    if stop_reason:
        reasoning.append(f"Stop reason is {stop_reason}")
    if last is not None and last.failed and last.error_type:
        reasoning.append(f"Its last step failed with {last.error_type}")
    if not has_steps:
        reasoning.append("It failed before its first step")
    if error is None:
        reasoning.append("No error text was recorded")
    return OutcomeRule("failed", cause, "failure", 0.9, tuple(reasoning))


def _cause(last: LastStep | None, stop_reason: str | None, error: RunError | None, has_steps: bool) -> str:
    """Look at the last own step's error, then its stop reason, then the run's, then the recorded error."""
    step_reason = last.stop_reason if last is not None else None
    step_error = last.error_type if last is not None else None
    if step_error == "LLMError" and step_reason in _AGENT_REASONS:
        return "agent"
    for found in (_cause_of_class(step_error), _cause_of_reason(step_reason), _cause_of_reason(stop_reason)):
        if found is not None:
            return found
    return _cause_of_recorded(error, has_steps)


def _cause_of_class(error_type: str | None) -> str | None:
    if not error_type:
        return None
    if error_type == "ContextWindowExceededError":
        return "context_limit"
    if error_type == "LLMInsufficientCreditsError":
        return "billing"
    if error_type == "LLMEmptyResponseError":
        return "agent"
    return "llm_provider" if error_type.startswith("LLM") else "server"


def _cause_of_reason(stop_reason: str | None) -> str | None:
    if stop_reason == "context_window_overflow_in_system_prompt":
        return "context_limit"
    if stop_reason == "insufficient_credits":
        return "billing"
    if stop_reason == "llm_api_error":
        return "llm_provider"
    return "agent" if stop_reason in _AGENT_REASONS else None


def _cause_of_recorded(error: RunError | None, has_steps: bool) -> str:
    if error is None:
        return "unrecorded"
    texts = [text for text in (error.detail, error.message) if text]
    if not has_steps and any(text.startswith(REQUEST_REFUSALS) for text in texts):
        return "request"
    for text in texts:
        code = text.split(":", 1)[0]
        if code in CAUSE_BY_CODE:
            return CAUSE_BY_CODE[code]
    if error.type and error.type.startswith("llm_"):
        return "llm_provider"
    return "server"


def last_step(steps: Sequence[LastStep]) -> LastStep | None:
    """Return the last of a run's own steps, which are in order."""
    return steps[-1] if steps else None
