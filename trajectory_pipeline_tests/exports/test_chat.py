"""Chats for trainers: what OpenAI refuses is not in its form, a chat has a question, and pairs answer one question."""

import json
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
    pair_side,
    preference,
    sft_record,
)
from trajectory_pipeline.exports.source import ExportRun, NoPlace
from trajectory_pipeline_tests.conversion.raw_runs import Raw, call, message, raw_run, returned
from trajectory_pipeline_tests.conversion.strategies import raw_runs
from trajectory_pipeline_tests.exports.content import export_runs

ASKED = message(1, "user", "Where is it?")
ANSWERED = message(9, reply="There.")


def the_run(*messages: Raw, system: str | None = None, outcome: str = "success", **options: Any) -> ExportRun:
    agent_context = {} if system is None else {"context": {"system_prompt": system, "tools": None}}
    (run,) = export_runs([raw_run(*messages)], **options)
    context = {**(run.trajectory["context"] or {}), **agent_context.get("context", {})}
    return ExportRun({**run.trajectory, "context": context or None}, {"outcome": outcome})


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
        assert kto_record(run) == pair_side(run, across_agents=True) == NO_LABEL


def metadata(recompiled: str, agent: str = "agent-1") -> str:
    return f"\n\n<memory_metadata>\n- AGENT_ID: {agent}\n- Last recompiled: {recompiled}\n</memory_metadata>"


def letta_return(value: str, time: str) -> Raw:
    """Make a message with a return as Letta's server wraps it."""
    text = json.dumps({"status": "OK", "message": value, "time": time}, indent=2)
    return message(3, "tool", tool_returns=[returned(text=text)])


def test_pair_may_differ_in_what_letta_itself_wrote_and_when() -> None:
    look = message(2, tool_calls=[call("look")])
    success, failure = (
        the_run(ASKED, look, letta_return("here", time), message(4, reply=answer), system=f"Be brief.{metadata(time)}")
        for time, answer in (("09:00", "Here."), ("10:00", "Nowhere."))
    )
    sides = [pair_side(run, across_agents=False) for run in (success, failure)]
    (asked, _, chosen), (asked_too, _, rejected) = sides  # type: ignore[misc]  # neither is without a place
    assert asked == asked_too
    found = preference(chosen, rejected)
    assert found is not None
    assert found.parted_at == 4
    assert [found.record[side][0]["content"] for side in ("chosen", "rejected")] == ["Here.", "Nowhere."]
    assert found.record["prompt"][0]["content"].startswith("Be brief.")


def test_pair_across_agents_has_the_prompt_of_the_success() -> None:
    success = the_run(ASKED, message(2, reply="Here."), system="You are Wren.")
    failure = the_run(ASKED, message(2, reply="Nowhere."), system="You are Milo.", outcome="failure")
    apart = [pair_side(run, across_agents=False) for run in (success, failure)]
    assert apart[0][0] != apart[1][0]  # type: ignore[index]  # neither is without a place
    (asked, label, chosen), (asked_too, other, rejected) = (  # type: ignore[misc]
        pair_side(run, across_agents=True) for run in (success, failure)
    )
    assert (asked == asked_too, label, other) == (True, True, False)
    found = preference(chosen, rejected)
    assert found is not None
    assert [one["content"] for one in found.record["prompt"]] == ["You are Wren.", "Where is it?"]


def test_what_tools_returned_is_compared_but_for_its_time() -> None:
    look = message(2, tool_calls=[call("look")])
    success, failure = (
        the_run(ASKED, look, letta_return(value, "09:00"), message(4, reply=value)) for value in ("here", "nowhere")
    )
    chosen, rejected = (sft_record(run) for run in (success, failure))
    assert preference(chosen, rejected) is None  # type: ignore[arg-type]  # neither is without a place
