"""Signals: what is counted, what is a repetition, what is an error; facts by rule, never an outcome."""

from typing import Any

import pytest

from trajectory_pipeline.schema.trajectories import SIGNALS
from trajectory_pipeline_tests.conversion.raw_runs import (
    asked,
    call,
    converted,
    message,
    raw_run,
    returned,
    step,
)


def signals(*messages: Any, **values: Any) -> dict[str, Any]:
    found: dict[str, Any] = converted(*messages, **values)["signals"]
    return found


def of_calls(*calls: Any) -> dict[str, Any]:
    return signals(message(1, tool_calls=[call(*item) if isinstance(item, tuple) else call(item) for item in calls]))


def of_returns(*statuses: str) -> dict[str, Any]:
    return of_answered(*(("mail", "{}", status) for status in statuses))


def of_answered(*calls: tuple[str, Any, str], **values: Any) -> dict[str, Any]:
    """Signals of a run with these calls (tool, arguments, status of the return), one after the other."""
    messages = []
    for n, (name, arguments, status) in enumerate(calls):
        messages.append(message(2 * n, tool_calls=[call(name, arguments, f"call-{n}")]))
        messages.append(message(2 * n + 1, "tool", name=name, tool_returns=[returned(status, f"call-{n}")]))
    return signals(*messages, **values)


def test_signals_have_every_declared_name() -> None:
    assert signals().keys() == {column.name for column in SIGNALS.fields}


def test_signals_count_calls_in_foreign_steps_as_well() -> None:
    found = signals(
        message(1, "approval", step_id="step-9", tool_calls=[call("mail"), call("mail")]),
        message(2, tool_calls=[call("roll_dice")]),
        foreign_steps=[step("step-9", run_id="run-0")],
    )
    assert (found["tool_calls"], found["distinct_tools"]) == (3, 2)


def test_signals_with_a_nameless_call_count_it_for_no_tool() -> None:
    found = signals(message(1, tool_calls=[{"id": "call-1"}, call("roll_dice", call_id="call-2")]))
    assert (found["tool_calls"], found["distinct_tools"]) == (2, 1)


# --- repeated calls


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
        ('{"a": 1}', ' {"a":1}\n'),
        ('{"a": 1}', '{"a": 1.0}'),
        ('{"a": 1}', '{"a": 1e0}'),
        ('{"a": 100}', '{"a": 1E+2}'),
        ('{"a": 0}', '{"a": -0.0}'),
        ('{"a": "é"}', '{"a": "\\u00e9"}'),
        ('{"a": 123456789012345678901234567890.0}', '{"a": 123456789012345678901234567890}'),
        ("not json", "not json"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1.0}),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_repeated_calls_compare_arguments_by_value(one: Any, other: Any) -> None:
    assert of_calls(("roll_dice", one), ("roll_dice", other))["repeated_calls"] == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
        ('{"a": null}', "{}"),
        ('{"a": 9007199254740993}', '{"a": 9007199254740992}'),
        ('{"a": 1e400}', '{"a": 1e401}'),
        ('{"a": 1234567890123.5}', '{"a": 1234567890123.25}'),
        ("not json", "not json "),
        ({"a": 1}, {"a": 2}),
    ],
)
def test_repeated_calls_ignore_different_arguments(one: Any, other: Any) -> None:
    assert of_calls(("roll_dice", one), ("roll_dice", other))["repeated_calls"] == 0


def test_repeated_calls_ignore_equal_arguments_of_other_tools() -> None:
    assert of_calls(("mail", "{}"), ("roll_dice", "{}"))["repeated_calls"] == 0


def test_repeated_calls_are_counted_across_messages() -> None:
    found = signals(*(message(n, tool_calls=[call("mail", call_id=f"call-{n}")]) for n in range(3)))
    assert found["repeated_calls"] == 2


# --- cycles


@pytest.mark.parametrize(
    ("calls", "longest"),
    [
        ("", 0),
        ("A", 0),
        ("AA", 0),
        ("AAA", 3),
        ("AAAAA", 5),
        ("ABAB", 0),
        ("ABABAB", 6),
        ("ABABABA", 7),
        ("XABABABY", 6),
        ("ABCABCABC", 9),
        ("ABCDABCDABCD", 12),
        ("ABCDABCDABC", 0),
        ("ABCDEABCDEABCDE", 0),
        ("AAABBBB", 4),
        ("ABCABCABCXYXYXYXYXY", 10),
        ("ABACABAC", 0),
    ],
)
def test_longest_cycle_needs_a_pattern_three_times_in_a_row(calls: str, longest: int) -> None:
    assert of_calls(*calls)["longest_cycle"] == longest


# --- errors of tools


def test_tool_error_before_a_success_is_recovered() -> None:
    found = of_returns("error", "success")
    assert (found["tool_errors"], found["last_tool_call_failed"], found["error_recovered"]) == (1, False, True)


def test_tool_error_at_the_end_is_not_recovered() -> None:
    found = of_returns("error", "success", "error")
    assert (found["tool_errors"], found["last_tool_call_failed"], found["error_recovered"]) == (2, True, False)


def test_error_recovered_needs_a_success_after_each_error() -> None:
    assert of_returns("error", "error", "success")["error_recovered"] is True
    assert (
        of_answered(("mail", "{}", "error"), ("mail", "{}", "success"), ("book", "{}", "error"))["error_recovered"]
        is False
    )


def test_error_recovered_ignores_a_success_of_another_tool() -> None:
    assert of_answered(("mail", "{}", "error"), ("ticket", "{}", "success"))["error_recovered"] is False


@pytest.mark.parametrize(
    ("failed", "succeeded", "recovered"),
    [
        ('{"order": 7, "amount": 12}', '{"amount": 12, "order": 7}', True),
        ('{"order": 7, "amount": 12}', '{"order": 7, "amount": 10}', True),
        ('{"order": 7, "amount": 12}', '{"order": 8, "amount": 12}', False),
        ('{"no": 7, "driver": "Ada"}', '{"no": 8, "driver": "Ada"}', False),
        ('{"thinking": "Hm.", "no": 7}', '{"thinking": "Hm.", "no": 8}', False),
        ('{"day": "2026-11-24"}', '{"day": "2026-11-25"}', False),
        ('{"q": "select sum(a) from t where d"}', '{"q": "select sum(a_eur) from t where d"}', True),
        ('{"q": "select sum(a) from t where d"}', '{"q": "delete everything that is old"}', False),
        ('{"q": "select a"}', '{"q": "select b"}', False),
        ("{}", '{"page": 2}', True),
        ("not json", "not json", True),
        ("not json", "no json either", None),
        ('{"order": 7}', "not json", None),
    ],
)
def test_error_recovered_compares_what_the_call_was_for(failed: str, succeeded: str, recovered: bool | None) -> None:
    assert of_answered(("pay", failed, "error"), ("pay", succeeded, "success"))["error_recovered"] is recovered


def test_error_recovered_is_null_while_the_tool_waits_again() -> None:
    found = signals(
        message(1, tool_calls=[call("book", '{"room": 1}')]),
        message(2, "tool", name="book", tool_returns=[returned("error")]),
        message(3, "approval", tool_calls=[call("book", '{"room": 2}', "call-2")]),
        stop_reason="requires_approval",
    )
    assert found["error_recovered"] is None


def test_error_recovered_without_arguments_is_null() -> None:
    approved = [
        message(1, "approval", step_id="step-0", approvals=[approval()]),
        message(2, "tool", step_id="step-0", name="book", tool_returns=[returned("error")]),
    ]
    again = message(3, tool_calls=[call("book", "{}", "call-2")])
    success = message(4, "tool", name="book", tool_returns=[returned(call_id="call-2")])
    values: dict[str, Any] = {"foreign_steps": [step("step-0", run_id="run-0")], "asked_calls": [asked("book")]}
    assert signals(*approved, again, success, **values)["error_recovered"] is None
    assert signals(*approved, **values)["error_recovered"] is False


def test_error_recovered_ignores_a_denied_retry() -> None:
    found = signals(
        message(1, tool_calls=[call("mail")]),
        message(2, "tool", name="mail", tool_returns=[returned("error")]),
        message(3, "approval", tool_calls=[call("mail", "{}", "call-2")]),
        message(4, "approval", approvals=[approval("call-2", approve=False)]),
        message(5, "tool", tool_returns=[returned("error", "call-2")]),
    )
    assert (found["tool_errors"], found["error_recovered"]) == (1, False)


def approval(call_id: str = "call-1", *, approve: bool = True) -> dict[str, Any]:
    return {"type": "approval", "tool_call_id": call_id, "approve": approve, "reason": None}


def test_error_recovered_is_null_without_an_error() -> None:
    found = of_returns("success")
    assert (found["tool_errors"], found["last_tool_call_failed"], found["error_recovered"]) == (0, False, None)


def test_last_tool_call_failed_is_null_without_a_return() -> None:
    assert of_returns()["last_tool_call_failed"] is None


def test_last_tool_call_failed_is_null_where_its_status_is_not_recorded() -> None:
    found = signals(message(1, "tool", tool_returns=[{**returned("error"), "status": None}]))
    assert (found["tool_errors"], found["last_tool_call_failed"]) == (0, None)


def test_tool_errors_ignore_the_text_of_the_output() -> None:
    found = signals(message(1, "tool", tool_returns=[returned("success", text='{"status": "Failed", "error": "!"}')]))
    assert found["tool_errors"] == 0


def denied_call(approval: dict[str, Any] | None = None, **columns: Any) -> list[Any]:
    return [
        message(1, "approval", approvals=[approval] if approval else [], **columns),
        message(2, "tool", tool_returns=[returned("error", text="Error: request to call tool denied.")]),
    ]


def test_signals_with_a_denied_call_count_no_tool_error() -> None:
    decision = {"type": "approval", "tool_call_id": "call-1", "approve": False, "reason": "Not at night."}
    found = signals(*denied_call(decision))
    assert (found["denied_approvals"], found["tool_errors"], found["last_tool_call_failed"]) == (1, 0, None)


def test_signals_with_a_legacy_denial_count_no_tool_error() -> None:
    found = signals(*denied_call(approve=False, denial_reason="No."))
    assert (found["denied_approvals"], found["tool_errors"]) == (1, 0)


def test_signals_with_an_approved_failing_call_count_an_error() -> None:
    found = signals(*denied_call({"type": "approval", "tool_call_id": "call-1", "approve": True, "reason": None}))
    assert (found["denied_approvals"], found["tool_errors"]) == (0, 1)


def test_signals_with_a_denied_call_count_the_others() -> None:
    found = signals(
        message(
            1,
            "approval",
            approvals=[
                {"type": "approval", "tool_call_id": "call-1", "approve": False, "reason": None},
                {"type": "approval", "tool_call_id": "call-2", "approve": True, "reason": None},
            ],
        ),
        message(2, "tool", tool_returns=[returned("error", "call-1"), returned("error", "call-2")]),
    )
    assert (found["denied_approvals"], found["tool_errors"], found["last_tool_call_failed"]) == (1, 1, True)


def test_signals_with_a_call_denied_twice_count_one_denial() -> None:
    decision = {"type": "approval", "tool_call_id": "call-1", "approve": False, "reason": None}
    found = signals(message(1, "approval", approvals=[decision]), message(2, "approval", approvals=[decision]))
    assert found["denied_approvals"] == 1


# --- people and answers


def test_signals_count_only_a_persons_messages() -> None:
    found = signals(
        message(1, "user", "Hello"),
        message(2, "user", '{"type": "heartbeat", "reason": "…"}'),
        message(3, "user", '{"type": "system_alert", "message": "…"}'),
        message(4, "user", "[Incoming message from agent with ID 'agent-2'] Hello"),
        message(5, "user", '{"type": "user_message", "message": "Hello"}'),
    )
    assert found["person_messages"] == 2


def test_feedback_counts_by_own_step() -> None:
    steps = [
        step("step-1", feedback="positive"),
        step("step-2", feedback="positive"),
        step("step-3", feedback="negative"),
        step("step-4"),
    ]
    foreign = step("step-9", run_id="run-0", feedback="negative")
    found = signals(message(1, "approval", step_id="step-9"), steps=steps, foreign_steps=[foreign])
    assert (found["positive_feedback"], found["negative_feedback"]) == (2, 1)


def test_context_fill_is_that_of_the_fullest_prompt() -> None:
    steps = [
        step("step-1", prompt_tokens=500, context_window_limit=1000),
        step("step-2", prompt_tokens=600, context_window_limit=2400),
        step("step-3", prompt_tokens=0, context_window_limit=1000),
        step("step-4", prompt_tokens=9000, context_window_limit=None),
    ]
    assert signals(steps=steps)["context_fill"] == 0.5
    assert signals(steps=steps[2:])["context_fill"] is None


def test_signals_count_messages_with_a_refusal_part() -> None:
    refusal = {"type": "refusal", "refusal": "I cannot help with that."}
    found = signals(
        message(1, content=[refusal, refusal]),
        message(2, content=[refusal], step_id="step-9"),
        message(3, reply="I cannot help with that."),
        foreign_steps=[step("step-9", run_id="run-0")],
    )
    assert found["refusals"] == 2


def test_final_answer_without_text_and_calls_is_empty() -> None:
    assert signals(message(1, reply="Well…"), message(2, reply=""))["empty_final_answer"] is True
    assert signals(message(1, reply=""), message(2, reply="Well…"))["empty_final_answer"] is False
    assert signals(message(1, tool_calls=[call("mail")]))["empty_final_answer"] is False
    assert signals(message(1, "user", "Hello?"))["empty_final_answer"] is None


def test_final_answer_ignores_later_returns_and_decisions() -> None:
    decision = {"type": "approval", "tool_call_id": "call-1", "approve": True, "reason": None}
    found = signals(
        message(1, reply="Well…"),
        message(2, "tool", tool_returns=[returned()]),
        message(3, "approval", approvals=[decision]),
    )
    assert found["empty_final_answer"] is False


def test_signals_do_not_change_the_outcome() -> None:
    with_errors = [message(1, reply="Done."), message(2, "tool", tool_returns=[returned("error")])]
    for name in ("heuristic_outcome", "execution_status", "execution_cause"):
        assert converted(*with_errors)[name] == converted(with_errors[0])[name]
    assert raw_run()["run"]["stop_reason"] == "end_turn"
