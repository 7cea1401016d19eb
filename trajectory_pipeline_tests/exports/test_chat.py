"""Chats for trainers: what OpenAI refuses is not in its form, and a chat has a question and an answer."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trajectory_pipeline.exports.chat import (
    NO_ANSWER,
    NO_LABEL,
    NO_QUESTION,
    kto_record,
    openai_record,
    sft_record,
)
from trajectory_pipeline.exports.source import ExportRun, NoPlace
from trajectory_pipeline_tests.conversion.raw_runs import Raw, call, message, raw_run, returned
from trajectory_pipeline_tests.conversion.strategies import raw_runs
from trajectory_pipeline_tests.exports.content import export_runs

ASKED = message(1, "user", "Where is it?")
ANSWERED = message(9, reply="There.")


def the_run(*messages: Raw, system: str | None = None, outcome: str = "success") -> ExportRun:
    """Return a run with a verdict; ``system`` is the system prompt that its agent had."""
    (run,) = export_runs([raw_run(*messages)])
    context = None if system is None else {"system_prompt": system, "tools": None}
    return ExportRun({**run.trajectory, "context": context}, {"outcome": outcome})


def roles(chat: list[dict[str, Any]]) -> list[str]:
    return [one["role"] for one in chat]


def chat_of(run: ExportRun) -> list[dict[str, Any]]:
    record = openai_record(run)
    assert not isinstance(record, NoPlace)
    chat: list[dict[str, Any]] = record["messages"]
    return chat


def refusals(record: dict[str, Any]) -> list[str]:
    """Return why OpenAI would refuse a line of a fine-tuning file, by its guides for chats and for fine-tuning."""
    chat, found = record["messages"], []
    if chat[-1]["role"] != "assistant":
        found.append("it does not end with the assistant")
    defined = {tool["function"]["name"] for tool in record.get("tools", ())}
    for place, one in enumerate(chat):
        calls = one.get("tool_calls") or []
        if any(each["function"]["name"] not in defined for each in calls):
            found.append("a tool without a definition")
        if one["role"] == "assistant" and not calls and one["content"] is None:
            found.append("neither text nor calls")
        if "tool_calls" in one and not calls:
            found.append("an empty list of calls")
        following = [other["tool_call_id"] for other in chat[place + 1 :][: len(calls)] if other["role"] == "tool"]
        if place + 1 < len(chat) and not {each["id"] for each in calls} <= set(following):
            found.append("calls that are not answered next")
    return found


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw_runs(), st.booleans())
def test_openai_would_not_refuse_a_line(raw: Raw, asked_first: bool) -> None:
    messages = [message(-1, "user", "Hello?", step_id=None), *raw["messages"]] if asked_first else raw["messages"]
    for run in export_runs([{**raw, "messages": messages}]):
        record = openai_record(run)
        if isinstance(record, NoPlace):
            assert record in (NO_ANSWER, NO_QUESTION)
        else:
            assert refusals(record) == []


def test_what_comes_after_the_last_answer_is_left_out_of_openai_and_counted() -> None:
    run = the_run(ASKED, message(2, tool_calls=[call("look")]), message(3, "tool", tool_returns=[returned()]))
    assert roles(chat_of(run)) == ["user", "assistant"]
    assert run.losses["messages after the agent's last"] == 1


def test_call_without_a_return_amid_the_chat_is_left_out_of_openai_and_counted() -> None:
    both = message(2, reply="I look.", tool_calls=[call("look"), call("ask", call_id="call-2")])
    run = the_run(ASKED, both, message(3, "tool", tool_returns=[returned()]), ANSWERED)
    chat = chat_of(run)
    assert [each["id"] for each in chat[1]["tool_calls"]] == ["call-1"]
    assert run.losses["calls without a return"] == 1
    run = the_run(ASKED, message(2, tool_calls=[call("look")]), message(4, "user", "Well?"), ANSWERED)
    assert roles(chat_of(run)) == ["user", "user", "assistant"]


def test_run_whose_only_answer_is_a_call_without_a_return_has_no_place_in_openai() -> None:
    run = the_run(ASKED, message(2, tool_calls=[call("look")]), message(4, "user", "Well?"))
    assert openai_record(run) == NO_ANSWER


def test_return_that_comes_late_is_left_out_of_openai_with_its_call() -> None:
    late = message(5, "tool", tool_returns=[returned()])
    run = the_run(ASKED, message(2, tool_calls=[call("look")]), message(4, "user", "Well?"), late, ANSWERED)
    assert roles(chat_of(run)) == ["user", "user", "assistant"]
    assert run.losses["tool returns that do not follow their call"] == 1


def test_tool_without_a_definition_is_named_in_openai_and_counted() -> None:
    run = the_run(ASKED, message(2, tool_calls=[call("look")]))
    record = openai_record(run)
    assert not isinstance(record, NoPlace)
    assert record["tools"] == [{"type": "function", "function": {"name": "look"}}]
    assert run.losses["definitions of tools that were called"] == 1


@pytest.mark.parametrize("record_of", [openai_record, sft_record, kto_record])
def test_run_without_a_question_or_an_answer_has_no_place(record_of: Any) -> None:
    """A run that goes on after an approval has no message of a user: what was asked is in the run before it."""
    assert record_of(the_run(ANSWERED)) == NO_QUESTION
    assert record_of(the_run(ANSWERED, message(10, "user", "Thanks."))) == NO_QUESTION
    assert record_of(the_run(ASKED)) == NO_ANSWER


def test_only_success_and_failure_have_labels() -> None:
    for outcome in ("partial_success", "unknown"):
        run = the_run(ASKED, ANSWERED, outcome=outcome)
        assert kto_record(run) == NO_LABEL
