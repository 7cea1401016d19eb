"""What each shape of row becomes: parts, kinds, calls, returns, approvals, answers, order, chains, usage.

One sentence a rule; runs are made by hand, so that only what a rule is about is in them.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.conversion.messages import part_of, tool_call_of, tool_return_of
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline_tests.conversion.raw_runs import (
    HOUR,
    METRICS_ROW,
    NOON,
    agent,
    call,
    converted,
    documented,
    message,
    messages_of,
    raw_run,
    returned,
    step,
    step_metrics,
)
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs

# --- content parts


def part_of_content(part: Any) -> Any:
    return messages_of(converted(message(1, content=[part])))[0]["content"][0]


@pytest.mark.parametrize(
    ("part", "typed"),
    [
        ({"type": "text", "text": "Hi", "signature": None}, {"text": "Hi"}),
        ({"type": "text", "text": "Hi"}, {"text": "Hi"}),
        (
            {"type": "reasoning", "is_native": True, "reasoning": "Hm.", "signature": "Er8"},
            {"reasoning": "Hm.", "is_native": True, "signature": "Er8"},
        ),
        (
            {
                "type": "summarized_reasoning",
                "id": "rs_1",
                "summary": [{"index": 0, "text": "One."}, {"index": 1, "text": "Two."}],
                "encrypted_content": "gAA",
            },
            {"reasoning": "One.\n\nTwo.", "signature": "gAA"},
        ),
        ({"type": "redacted_reasoning", "data": "Emw"}, {}),
        ({"type": "omitted_reasoning", "signature": None}, {}),
        ({"type": "image", "source": {"type": "letta", "media_type": "image/png"}}, {"media_type": "image/png"}),
        ({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}, {}),
        ({"type": "tool_call", "id": "call-1", "name": "mail", "input": {"to": "Ada"}}, {}),
        ({"type": "tool_return", "tool_call_id": "call-1", "content": "sent", "is_error": False}, {}),
        ({"type": "hologram", "beam": [1, {"text": "not a text part"}]}, {}),
        ({"type": None, "signature": None}, {}),
        ({"type": 5, "text": "Hi"}, {"type": None}),
        ({}, {"type": None}),
    ],
)
def test_content_part_is_typed_where_known_and_stored_whole(part: Any, typed: Any) -> None:
    nothing = dict.fromkeys(("text", "reasoning", "signature", "is_native", "media_type"))
    row = part_of_content(part)
    assert {name: row[name] for name in ("type", *nothing)} == {"type": part.get("type"), **nothing, **typed}
    assert messages_of(documented(message(1, content=[part])))[0]["content"] == [part]


def test_parts_of_a_known_form_are_not_stored_twice() -> None:
    assert part_of_content({"type": "text", "text": "Hi", "signature": None})["json"] is None
    assert part_of_content({"type": "text", "text": "Hi"})["json"] is not None


def test_entries_keep_the_order_of_their_fields() -> None:
    part = {"text": "Hi", "signature": None, "type": "text"}
    tool_call = {"type": "function", "id": "call-1", "function": {"name": "mail", "arguments": "{}"}}
    answer = {"func_response": "sent", **returned()}
    (only,) = messages_of(converted(message(1, content=[part], tool_calls=[tool_call], tool_returns=[answer])))
    assert list(part_of(only["content"][0])) == list(part)
    assert list(tool_call_of(only["tool_calls"][0])) == list(tool_call)
    assert list(tool_call_of(only["tool_calls"][0])["function"]) == ["name", "arguments"]
    assert list(tool_return_of(only["tool_returns"][0])) == list(answer)


def test_legacy_text_without_content_becomes_one_text_part() -> None:
    old = message(1, "user", content=None, text="Hello")
    both = message(2, "user", reply="new", text="old")
    first, second = messages_of(documented(old, both))
    assert first["content"] == [{"type": "text", "text": "Hello"}]
    assert [part["text"] for part in second["content"]] == ["new"]


def test_message_columns_of_an_older_letta_read_as_empty() -> None:
    old = message(1, reply="Hi", tool_calls=None, tool_returns=None, approvals=None)
    (only,) = messages_of(documented(old))
    assert not {"tool_calls", "tool_returns", "approvals"} & only.keys()


# --- kinds


@pytest.mark.parametrize(
    ("role", "text", "kind"),
    [
        ("user", "Hello", "user"),
        ("user", '{"type": "heartbeat", "reason": "…"}', "heartbeat"),
        ("user", ' \n{"type": "system_alert", "message": "…"}', "system_alert"),
        ("user", '{"type": "login", "last_login": "…"}', "login"),
        ("user", '{"type": "user_message", "message": "Hello"}', "user"),
        ("user", '{"type": ["heartbeat"]}', "user"),
        ("user", '{"type": "heartbeat"', "user"),
        ("user", "[Incoming message from agent with ID 'agent-2' - to reply …] Hi", "agent"),
        ("system", "[Incoming message from agent with ID 'agent-2' - to reply …] Hi", "agent"),
        ("user", "<system-reminder>\nYou are a sleeptime agent - …", "agent"),
        ("summary", '{"type": "system_alert", "message": "…"}', "summary"),
        ("assistant", '{"type": "heartbeat"}', "assistant"),
        ("system", "Be kind.", "system"),
        ("tool", "sent", "tool"),
        ("approval", "", "approval"),
        ("oracle", "Hm.", "oracle"),
    ],
)
def test_kind_says_what_the_role_does_not(role: str, text: str, kind: str) -> None:
    assert messages_of(converted(message(1, role, text)))[0]["kind"] == kind


# --- replies and thoughts


def replied(*, agent_type: str | None = "letta_v1_agent", **values: Any) -> tuple[str | None, str | None]:
    config = values.pop("request_config", None)
    row = converted(
        message(1, values.pop("role", "assistant"), **values), agent=agent(agent_type), request_config=config
    )
    (only,) = messages_of(row)
    return only["assistant_text"], only["inner_thought"]


def send(text: str, name: str = "send_message") -> list[Any]:
    return [call(name, f'{{"message": "{text}", "request_heartbeat": true}}')]


def test_reply_of_a_newer_agent_is_its_text() -> None:
    assert replied(reply="Hello") == ("Hello", None)


@pytest.mark.parametrize("agent_type", ["memgpt_agent", "memgpt_v2_agent", "react_agent", "workflow_agent"])
def test_reply_of_an_older_agent_is_an_argument(agent_type: str) -> None:
    assert replied(agent_type=agent_type, reply="She greets.", tool_calls=send("Hello")) == (
        "Hello",
        "She greets.",
    )
    assert replied(agent_type=agent_type, reply="She greets.") == (None, "She greets.")


def test_reply_of_a_deleted_agent_depends_on_sending() -> None:
    assert replied(agent_type=None, reply="She greets.", tool_calls=send("Hello")) == ("Hello", "She greets.")
    assert replied(agent_type=None, reply="Hello") == ("Hello", None)


def test_reply_of_a_newer_agent_that_sends_is_text_and_argument() -> None:
    assert replied(reply="Hello", tool_calls=send("there")) == ("Hello\n\nthere", None)


def test_reply_is_taken_from_the_tool_that_the_run_names() -> None:
    config = {"assistant_message_tool_name": "answer", "assistant_message_tool_kwarg": "message"}
    assert replied(agent_type="memgpt_agent", tool_calls=send("Hi", "answer"), request_config=config) == (
        "Hi",
        None,
    )
    assert replied(agent_type="memgpt_agent", tool_calls=send("Hi"), request_config=config) == (None, None)


@pytest.mark.parametrize("arguments", ['{"message": ', '{"message": 5}', "[]", None, '{"text": "Hi"}'])
def test_reply_from_arguments_without_one_is_null(arguments: Any) -> None:
    assert replied(agent_type="memgpt_agent", tool_calls=[call("send_message", arguments)]) == (None, None)


def test_reply_of_several_parts_is_joined_by_blank_lines() -> None:
    parts = [{"type": "text", "text": text} for text in ("One.", "", "Two.")]
    assert replied(content=parts) == ("One.\n\nTwo.", None)
    assert replied(agent_type="memgpt_agent", tool_calls=send("A") + send("B")) == ("A\n\nB", None)


def test_reply_of_other_roles_is_null() -> None:
    for role in ("user", "tool", "system", "summary"):
        assert replied(role=role, reply="Hello") == (None, None)


def test_reply_in_an_approval_request_is_a_reply() -> None:
    assert replied(role="approval", reply="May I?", tool_calls=[call("mail")]) == ("May I?", None)


# --- calls, returns, approvals


def test_returns_in_one_row_are_each_joined_to_their_call() -> None:
    (_, second) = messages_of(
        documented(
            message(1, tool_calls=[call("a", call_id="call-1"), call("b", call_id="call-2")]),
            message(2, "tool", tool_returns=[returned("error", "call-2", "no"), returned("success", "call-1", "yes")]),
        )
    )
    assert [(item["tool_call_id"], item["status"], item["text"]) for item in second["tool_returns"]] == [
        ("call-2", "error", "no"),
        ("call-1", "success", "yes"),
    ]


def test_return_of_a_denied_call_is_marked_and_keeps_its_status() -> None:
    rows = [
        message(
            1,
            "approval",
            approvals=[{"type": "approval", "tool_call_id": "call-2", "approve": False, "reason": "Not at night."}],
        ),
        message(2, "tool", tool_returns=[returned("error", "call-2"), returned("success", "call-1")]),
    ]
    decision, returns = messages_of(documented(*rows))
    assert decision["approvals"][0]["reason"] == "Not at night."
    assert [item.get("denied") for item in returns["tool_returns"]] == [True, None]
    assert returns["tool_returns"][0]["status"] == "error"


def test_legacy_decision_in_columns_reads_as_an_approval() -> None:
    row = message(1, "approval", approvals=None, approve=False, approval_request_id="message-0", denial_reason="No.")
    (only,) = messages_of(documented(row))
    assert only["approvals"] == [
        {"type": "approval", "approval_request_id": "message-0", "approve": False, "reason": "No."}
    ]


def test_return_of_a_client_side_tool_is_an_approval_entry() -> None:
    entry = {"tool_call_id": "call-1", "status": "success", "stdout": ["read"], "stderr": [], "func_response": "ok"}
    (only,) = messages_of(documented(message(1, "approval", approvals=[entry])))
    assert only["approvals"] == [entry]


def test_response_that_is_no_string_keeps_its_own_name() -> None:
    (only,) = messages_of(documented(message(1, "tool", tool_returns=[returned(text={"a": 1})])))
    assert (only["tool_returns"][0]["text"], only["tool_returns"][0]["func_response"]) == (None, {"a": 1})


def test_return_with_a_field_of_our_name_is_not_mistaken_for_ours() -> None:
    odd = returned(text="stored", denied=True) | {"text": "odd"}
    row = converted(message(1, "tool", tool_returns=[odd]))
    (only,) = messages_of(documented(message(1, "tool", tool_returns=[odd])))
    assert only["tool_returns"][0]["text"] == "stored"
    assert "denied" not in only["tool_returns"][0]
    assert '"text":"odd"' in messages_of(row)[0]["tool_returns"][0]["json"]


def test_tools_are_named_in_order_of_first_use() -> None:
    row = converted(
        message(1, tool_calls=[call("b"), call("a")], step_id="step-2"),
        message(2, tool_calls=[call("c"), call("b"), {"id": "nameless"}], step_id="step-1"),
        steps=[step("step-1"), step("step-2")],
    )
    assert row["tools_used"] == ["c", "b", "a"]


# --- order and size


def order(*messages: Any, **values: Any) -> list[tuple[str | None, list[int]]]:
    row = converted(*messages, **values)
    return [(turn["step_id"], [item["sequence_id"] for item in turn["messages"]]) for turn in row["turns"]]


def test_steps_of_one_time_are_ordered_by_message_then_id() -> None:
    steps = [step(f"step-{letter}", created_at=NOON) for letter in "abcd"]
    messages = [message(5, step_id="step-a"), message(3, step_id="step-c")]
    assert order(*messages, steps=steps) == [("step-c", [3]), ("step-a", [5]), ("step-b", []), ("step-d", [])]


def test_messages_without_a_step_form_a_turn_per_stretch() -> None:
    messages = [message(n, step_id=None if n in (1, 2, 5) else "step-1") for n in range(1, 7)]
    assert order(*messages) == [(None, [1, 2]), ("step-1", [3, 4, 6]), (None, [5])]


def test_messages_of_a_deleted_step_form_a_turn_that_names_it() -> None:
    row = converted(message(1, step_id="step-gone"), message(2))
    first = row["turns"][0]
    assert (first["step_id"], first["input_tokens"], first["model"]) == ("step-gone", None, None)
    assert row["message_count"] == 2
    assert row["step_count"] == 1


def test_convert_run_with_thousands_of_messages_keeps_all() -> None:
    steps = [step(f"step-{n}") for n in range(2_000)]
    messages = [message(n, step_id=f"step-{n // 3}", reply=str(n)) for n in range(6_000)]
    row = converted(*messages, steps=steps)
    assert [item["assistant_text"] for item in messages_of(row)] == [str(n) for n in range(6_000)]
    assert (row["step_count"], row["message_count"], len(row["turns"])) == (2_000, 6_000, 2_000)


def test_convert_run_without_rows_gives_no_turns() -> None:
    row = converted(steps=[], status="failed", stop_reason=None)
    assert (row["turns"], row["step_count"], row["message_count"], row["usage_reported"]) == ([], 0, 0, False)


@pytest.mark.parametrize("odd", ["", " ", "a.b[0].c", "'; DROP TABLE runs; --", "é😀", "run-1\n", "/../x"])
def test_ids_with_odd_characters_stay_as_they_are(odd: str) -> None:
    row = converted(message(1, id=odd, step_id=odd, conversation_id=odd), steps=[step(odd)], id=odd, agent_id=odd)
    assert (row["run_id"], row["agent_id"], row["turns"][0]["step_id"]) == (odd, odd, odd)
    assert messages_of(row)[0]["message_id"] == odd


# --- chains


def answering(*messages: Any, **values: Any) -> Any:
    return converted(*messages, foreign_steps=[step("step-0", run_id="run-0")], **values)


def test_continued_run_owns_the_step_of_the_first_messages() -> None:
    row = answering(message(1, "approval", step_id="step-0"), message(2, step_id="step-1"))
    assert row["continues_run_id"] == "run-0"
    first = row["turns"][0]
    assert (first["step_run_id"], first["input_tokens"], first["model"]) == ("run-0", None, "gpt-4o-mini")
    assert row["step_count"] == 1
    assert row["input_tokens"] == 100


def test_continued_run_is_null_where_the_asking_run_is_deleted() -> None:
    row = converted(message(1, "approval", step_id="step-0"), foreign_steps=[step("step-0", run_id=None)])
    assert row["continues_run_id"] is None
    assert row["turns"][0]["step_run_id"] is None


def test_chains_of_the_sample_can_be_followed_both_ways() -> None:
    rows = {row["run_id"]: row for row in (convert_run(raw, HOUR) for raw in sample_runs())}
    answers = {run_id: row["continues_run_id"] for run_id, row in rows.items() if row["continues_run_id"]}
    assert answers
    waiting = {run_id for run_id, row in rows.items() if row["execution_status"] == "awaiting_approval"}
    asked_for = set(answers.values())
    assert asked_for <= set(rows)
    assert waiting & asked_for
    for answer, asking in answers.items():
        assert rows[asking]["end_time"] < rows[answer]["start_time"]


# --- metadata, usage, durations, cost


def test_times_are_utc_and_the_duration_is_their_difference() -> None:
    row = converted(created_at=NOON, completed_at=datetime(2026, 3, 1, 12, 0, 1, 500_000))
    assert row["end_time"] == datetime(2026, 3, 1, 12, 0, 1, 500_000, tzinfo=UTC)
    assert row["duration_ns"] == 1_500_000_000
    assert documented(created_at=NOON)["metadata"]["start_time"] == "2026-03-01T12:00:00+00:00"
    assert converted(completed_at=None)["duration_ns"] is None


def test_run_ns_comes_from_the_metrics_else_from_the_run() -> None:
    metrics = {**METRICS_ROW["run"], "id": "run-1", "run_ns": 7}
    assert converted(run_metrics=metrics, total_duration_ns=9)["run_ns"] == 7
    assert converted(run_metrics={**metrics, "run_ns": None}, total_duration_ns=9)["run_ns"] == 9
    assert converted(total_duration_ns=9)["run_ns"] == 9
    assert converted(run_metrics={**metrics, "run_ns": 0}, total_duration_ns=9)["run_ns"] == 0


def test_durations_of_a_step_come_from_its_metrics() -> None:
    row = converted(step_metrics=[step_metrics(step_ns=5, llm_request_ns=3, tool_execution_ns=None)])
    assert [row["turns"][0][name] for name in ("step_ns", "llm_request_ns", "tool_execution_ns")] == [5, 3, None]


def test_tokens_are_summed_over_own_steps_by_kind() -> None:
    steps = [
        step("step-1", cached_input_tokens=40, prompt_tokens_details='{"cache_creation_tokens": 5}'),
        step("step-2", completion_tokens_details='{"reasoning_tokens": 0}', prompt_tokens_details="null"),
    ]
    row = answering(message(1, "approval", step_id="step-0"), steps=steps)
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (200, 20, 220)
    assert (row["cached_input_tokens"], row["cache_write_tokens"], row["reasoning_tokens"]) == (40, 5, 0)


def test_usage_in_a_column_precedes_the_details() -> None:
    only = step(cached_input_tokens=1, prompt_tokens_details='{"cached_tokens": 2, "cache_read_tokens": 3}')
    assert converted(steps=[only])["cached_input_tokens"] == 1
    assert converted(steps=[{**only, "cached_input_tokens": None}])["cached_input_tokens"] == 2


def test_usage_of_zero_without_details_is_not_reported() -> None:
    silent = step(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    assert converted(steps=[silent])["usage_reported"] is False
    assert converted(steps=[silent, step("step-2")])["usage_reported"] is True
    assert converted(steps=[{**silent, "prompt_tokens_details": '{"cached_tokens": 0}'}])["usage_reported"] is True
    assert converted(steps=[{**silent, "prompt_tokens_details": "null"}])["usage_reported"] is False


def test_cost_of_a_run_is_that_of_its_own_steps() -> None:
    row = answering(
        message(1, "approval", step_id="step-0"),
        steps=[step(prompt_tokens=1_000_000, completion_tokens=1_000_000, total_tokens=2_000_000)],
    )
    # OpenAI's price list: $0.15 a million tokens in, $0.60 a million out.
    assert row["cost_usd"] == Decimal("0.75")


@pytest.mark.parametrize(
    "unknown",
    [
        {"model": None},
        {"model": "a-model-of-tomorrow", "provider_name": "my-own"},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"cached_input_tokens": 10**6},
    ],
)
def test_cost_is_null_where_one_price_or_usage_is_unknown(unknown: Any) -> None:
    assert converted(steps=[step("step-1"), step("step-2", **unknown)])["cost_usd"] is None


def test_cost_of_a_run_without_steps_is_null() -> None:
    assert converted(steps=[])["cost_usd"] is None


def test_cost_of_an_undated_step_uses_the_time_of_its_run() -> None:
    assert converted(steps=[step(created_at=None)])["cost_usd"] == converted()["cost_usd"]
    assert converted(steps=[step(created_at=None)], created_at=None)["cost_usd"] is None


def test_conversation_is_the_runs_else_that_of_all_messages() -> None:
    messages = [message(1, conversation_id="conv-1"), message(2, conversation_id="conv-1")]
    assert converted(*messages, conversation_id="conv-0")["conversation_id"] == "conv-0"
    assert converted(*messages)["conversation_id"] == "conv-1"
    assert converted(*messages, message(3, conversation_id="conv-2"))["conversation_id"] is None
    assert converted(*messages, message(3, conversation_id=None))["conversation_id"] is None


def test_deleted_messages_stay_and_are_marked() -> None:
    row = converted(message(1, "user", "Hello", is_deleted=True))
    assert messages_of(row)[0]["is_deleted"] is True
    assert messages_of(row)[0]["content"][0]["text"] == "Hello"
    assert row["message_count"] == 1


def test_attributes_of_a_deleted_agent_are_null() -> None:
    row = converted(agent=None)
    assert (row["agent_id"], row["agent_name"], row["agent_type"]) == ("agent-1", None, None)


def test_trajectory_id_never_changes() -> None:
    # A fixed value: other systems may have stored it.
    assert converted()["trajectory_id"] == "28d35847-4bff-510f-a89b-565583b318d3"


def test_partition_key_and_context_are_passed_on() -> None:
    context = {"system_prompt": "Be kind.", "tools": "[]", "source": "provider_trace"}
    row = convert_run(raw_run(context=context, deleted_at=NOON + timedelta(days=1)), HOUR)
    assert (row["partition_key"], row["context"], row["deleted_at"]) == (HOUR, context, NOON + timedelta(days=1))
