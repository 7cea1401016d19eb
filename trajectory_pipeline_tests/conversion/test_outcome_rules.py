"""How a run ended: the design's table, row by row, over everything that Letta may have recorded.

The table is repeated here as data, in its order, with its precedence; the converter is compared with it over the
product of statuses, stop reasons, step errors, step stop reasons, forms of the recorded error, and what the run holds.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from trajectory_pipeline.conversion.outcome_rules import DOUBTS
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline_tests.conversion.raw_runs import HOUR, STOP_REASONS, call, converted, message, raw_run, step
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs

STATUSES = ("completed", "failed", "cancelled", "a status of tomorrow")
STEP_ERRORS = (
    None,
    "LLMError",
    "LLMServerError",
    "LLMRateLimitError",
    "LLMEmptyResponseError",
    "LLMInsufficientCreditsError",
    "ContextWindowExceededError",
    "InternalServerError",
    "Unknown",
)
STEP_REASONS = (None, "error", "no_tool_call", "llm_api_error", "insufficient_credits", "end_turn")
RECORDED = (
    None,
    "",
    "CONFLICT: Cannot send a new message: The agent is waiting for approval on a tool call.",
    "Invalid tool call IDs. Expected '['call_1']', but received '['call_2']'.",
    "CONTEXT_WINDOW_EXCEEDED: Bad request to OpenAI",
    "PAYMENT_REQUIRED: Insufficient credits",
    "Something broke",
    {
        "error_type": "llm_error",
        "message": "An error occurred with the LLM request.",
        "detail": None,
        "run_id": "run-1",
    },
    {
        "message_type": "error_message",
        "run_id": "run-1",
        "error_type": "internal_error",
        "message": "An unknown error occurred with the LLM streaming request.",
        "detail": "Invalid tool call IDs. Expected '['call_1']', but received '['call_2']'",
        "seq_id": None,
    },
    {"odd": 1},
    ["odd"],
)


@dataclass(frozen=True)
class Facts:
    status: str
    stop_reason: str | None
    step_error: str | None
    step_reason: str | None
    recorded: Any
    steps: bool
    replies: bool


ERRORS_AMONG_STOP_REASONS = {
    "error",
    "llm_api_error",
    "invalid_llm_response",
    "invalid_tool_call",
    "no_tool_call",
    "insufficient_credits",
    "context_window_overflow_in_system_prompt",
}
ENDED_WELL = {"end_turn", "tool_rule", None}

TABLE: list[tuple[Callable[[Facts], bool], tuple[str, str | None, str, float]]] = [
    (lambda f: "cancelled" in (f.status, f.stop_reason), ("cancelled", "user", "failure", 0.8)),
    (lambda f: f.stop_reason == "max_steps", ("truncated", "step_limit", "partial_success", 0.5)),
    (lambda f: f.stop_reason == "max_tokens_exceeded", ("truncated", "token_limit", "partial_success", 0.5)),
    (
        lambda f: f.status == "completed" and f.stop_reason == "requires_approval",
        ("awaiting_approval", None, "unknown", 0.5),
    ),
    (
        lambda f: f.status == "failed" or f.stop_reason in ERRORS_AMONG_STOP_REASONS,
        ("failed", "see CAUSES", "failure", 0.9),
    ),
    (
        lambda f: f.status == "completed" and f.stop_reason in ENDED_WELL and not f.replies,
        ("completed", None, "unknown", 0.5),
    ),
    (lambda f: f.status == "completed" and f.stop_reason == "end_turn", ("completed", None, "success", 0.8)),
    (lambda f: f.status == "completed" and f.stop_reason in ("tool_rule", None), ("completed", None, "success", 0.7)),
    (lambda f: True, ("unknown", None, "unknown", 0.5)),
]

AGENTS_OWN = {"no_tool_call", "invalid_llm_response", "invalid_tool_call"}
CAUSE_BY_CLASS = {
    "ContextWindowExceededError": "context_limit",
    "LLMInsufficientCreditsError": "billing",
    "LLMEmptyResponseError": "agent",
    "LLMError": "llm_provider",
    "LLMServerError": "llm_provider",
    "LLMRateLimitError": "llm_provider",
    "InternalServerError": "server",
    "Unknown": "server",
}
CAUSE_BY_REASON = {
    "context_window_overflow_in_system_prompt": "context_limit",
    "insufficient_credits": "billing",
    "llm_api_error": "llm_provider",
    **dict.fromkeys(AGENTS_OWN, "agent"),
}
CAUSE_BY_RECORDED = {  # by place in RECORDED: (with steps, before any step)
    0: (None, None),
    1: (None, None),
    2: ("server", "request"),
    3: ("server", "request"),
    4: ("context_limit", "context_limit"),
    5: ("billing", "billing"),
    6: ("server", "server"),
    7: ("llm_provider", "llm_provider"),
    8: ("server", "request"),
    9: ("server", "server"),
    10: ("server", "server"),
}


def cause(facts: Facts) -> str:
    """The first that is recorded decides; a step's own reason goes before a generic `LLMError`."""
    if facts.step_error == "LLMError" and facts.step_reason in AGENTS_OWN:
        return "agent"
    before_any_step = CAUSE_BY_RECORDED[RECORDED.index(facts.recorded)][not facts.steps]
    causes = [
        CAUSE_BY_CLASS.get(facts.step_error or ""),
        CAUSE_BY_REASON.get(facts.step_reason or ""),
        CAUSE_BY_REASON.get(facts.stop_reason or ""),
        before_any_step,
    ]
    return next(filter(None, causes), "unrecorded")


def expected(facts: Facts) -> tuple[str, str | None, str, float]:
    ending = next(ending for fits, ending in TABLE if fits(facts))
    return (ending[0], cause(facts), *ending[2:]) if ending[1] == "see CAUSES" else ending


def ended(facts: Facts) -> tuple[str, str | None, str, float]:
    failed = step(error_type=facts.step_error, stop_reason=facts.step_reason, prompt_tokens=0, model=None)
    row = converted(
        *([message(1, "assistant", "Done.")] if facts.replies else []),
        steps=[failed] if facts.steps else [],
        status=facts.status,
        stop_reason=facts.stop_reason,
        metadata_={} if facts.recorded is None else {"error": facts.recorded},
    )
    assert row["heuristic_reasoning"]
    assert all(isinstance(sentence, str) and sentence for sentence in row["heuristic_reasoning"])
    return (row["execution_status"], row["execution_cause"], row["heuristic_outcome"], row["heuristic_confidence"])


@pytest.mark.slow
@pytest.mark.parametrize("status", STATUSES)
def test_outcome_of_every_combination_follows_the_table(status: str) -> None:
    with_steps = itertools.product(STOP_REASONS, STEP_ERRORS, STEP_REASONS, RECORDED, [True], [True])
    without_words = itertools.product(STOP_REASONS, STEP_ERRORS[:2], STEP_REASONS[:2], RECORDED[:3], [True], [False])
    without_steps = itertools.product(STOP_REASONS, [None], [None], RECORDED, [False], [True, False])
    for combination in itertools.chain(with_steps, without_words, without_steps):
        facts = Facts(status, *combination)
        assert ended(facts) == expected(facts), facts


def test_outcome_with_a_tool_call_alone_is_success() -> None:
    row = converted(message(1, tool_calls=[call("roll_dice")]))
    assert (row["heuristic_outcome"], row["heuristic_confidence"]) == ("success", 0.8)


def test_outcome_with_a_thought_alone_is_unknown() -> None:
    thought = {"type": "reasoning", "is_native": True, "reasoning": "Hm.", "signature": None}
    assert converted(message(1, content=[thought]))["heuristic_outcome"] == "unknown"


def test_outcome_with_a_persons_message_alone_is_unknown() -> None:
    assert converted(message(1, "user", "Hello?"))["heuristic_outcome"] == "unknown"


def test_cause_comes_from_the_last_own_step() -> None:
    steps = [step("step-1", error_type="ContextWindowExceededError"), step("step-2", error_type="LLMServerError")]
    assert converted(steps=steps, status="failed", stop_reason=None)["execution_cause"] == "llm_provider"


def test_cause_ignores_another_runs_step() -> None:
    foreign = step("step-9", run_id="run-0", error_type="LLMInsufficientCreditsError")
    row = converted(
        message(1, "approval", step_id="step-9"), steps=[], foreign_steps=[foreign], status="failed", stop_reason=None
    )
    assert row["execution_cause"] == "unrecorded"
    assert row["error"] is None


def test_outcome_reasoning_names_the_facts() -> None:
    row = converted(steps=[step(error_type="LLMServerError")], status="completed", stop_reason="llm_api_error")
    reasoning = " / ".join(row["heuristic_reasoning"])
    for fact in ("completed", "llm_api_error", "LLMServerError"):
        assert fact in reasoning
    assert "before its first step" in " ".join(
        converted(steps=[], status="failed", stop_reason=None)["heuristic_reasoning"]
    )


# --- the error itself


def error_of(recorded: Any, **step_values: Any) -> Any:
    return converted(steps=[step(**step_values)], status="failed", metadata_={"error": recorded})["error"]


def test_run_error_string_takes_its_type_from_the_last_step() -> None:
    assert error_of("It broke", error_type="LLMServerError") == {
        "type": "LLMServerError",
        "message": "It broke",
        "detail": None,
        "step_id": "step-1",
    }


def test_run_error_object_is_split_into_its_fields() -> None:
    event = {"message_type": "error_message", "run_id": "run-1", "seq_id": 7}
    recorded = {**event, "error_type": "llm_error", "message": "An error", "detail": "More"}
    assert error_of(recorded) == {"type": "llm_error", "message": "An error", "detail": "More", "step_id": None}


def test_error_objects_of_the_sample_have_the_known_form() -> None:
    details = [
        convert_run(raw, HOUR)["error"]["detail"] for raw in sample_runs() if '"error": {' in raw["run"]["metadata_"]
    ]
    assert details
    assert not any(detail.startswith("{") for detail in details if detail)


def test_run_error_of_another_form_is_whole_in_detail() -> None:
    assert error_of({"code": 5, "message": "An error"}) == {
        "type": None,
        "message": "An error",
        "detail": '{"code":5,"message":"An error"}',
        "step_id": None,
    }
    assert error_of(["a", 1])["detail"] == '["a",1]'
    assert error_of({"error_type": None, "message": None, "detail": {"a": 1}})["detail"] == '{"a":1}'


@pytest.mark.parametrize("nothing", [None, "", {}])
def test_run_error_without_metadata_is_the_last_steps(nothing: Any) -> None:
    error = error_of(nothing, error_type="LLMServerError", error_data='{"message": "500", "traceback": "…"}')
    assert error == {"type": "LLMServerError", "message": "500", "detail": None, "step_id": "step-1"}


def test_run_error_is_null_where_none_is_recorded() -> None:
    assert error_of(None) is None
    assert error_of(None, error_data="null") is None


def test_error_of_the_run_names_the_step_marked_failed() -> None:
    assert error_of("It broke", status="FAILED")["step_id"] == "step-1"
    assert error_of("It broke", status="SUCCESS")["step_id"] is None


def test_sample_has_every_outcome_rule_but_the_last() -> None:
    rows = [convert_run(raw, HOUR) for raw in sample_runs()]
    doubts = {doubt.reason for doubt in DOUBTS}
    undoubted = [row for row in rows if not doubts & set(row["heuristic_reasoning"])]
    seen = {(row["execution_status"], row["heuristic_outcome"], row["heuristic_confidence"]) for row in undoubted}
    assert seen == {(status, outcome, sure) for _, (status, _, outcome, sure) in TABLE[:-1]}
    causes = {row["execution_cause"] for row in rows if row["execution_status"] == "failed"}
    assert causes == {"context_limit", "billing", "agent", "llm_provider", "request", "server", "unrecorded"}


def test_outcome_of_an_unknown_stop_reason_names_it() -> None:
    row = convert_run(raw_run(message(1, reply="Hi"), stop_reason="a reason of tomorrow"), HOUR)
    assert row["execution_status"] == "unknown"
    assert "a reason of tomorrow" in row["heuristic_reasoning"][0]
