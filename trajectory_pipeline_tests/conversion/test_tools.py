"""Which tools a run asked for, ran and was denied: in hand-made runs, and in real ones with approvals."""

import json
from typing import Any

import pytest

from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline.demo.letta_sample.labels import FIRST_ANNOTATOR, label_records
from trajectory_pipeline_tests.conversion.raw_runs import (
    HOUR,
    Raw,
    asked,
    batch_converted,
    call,
    converted,
    message,
    messages_of,
    raw_run,
    returned,
    step,
)
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs, story_runs

ANSWERING: dict[str, Any] = {"foreign_steps": [step("step-0", run_id="run-0")]}


def decision(call_id: str = "call-1", *, approve: bool = True) -> Raw:
    return {"type": "approval", "tool_call_id": call_id, "approve": approve, "reason": None}


def answer(*decisions: Raw, returns: list[Raw], name: str | None = None) -> list[Raw]:
    """What an answering run begins with: the decisions, and the returns, in the step that asked."""
    return [
        message(1, "approval", step_id="step-0", approvals=list(decisions)),
        message(2, "tool", step_id="step-0", name=name, tool_returns=returns),
    ]


def tools(*messages: Raw, **values: Any) -> tuple[list[str], list[str], list[str]]:
    row = converted(*messages, **values)
    (columnar,) = batch_converted(raw_run(*messages, **values)).rows
    names = ("tools_requested", "tools_used", "tools_denied")
    assert [columnar[name] for name in names] == [row[name] for name in names]
    return row["tools_requested"], row["tools_used"], row["tools_denied"]


def test_tools_used_exclude_a_call_that_waits() -> None:
    asking = [
        message(1, tool_calls=[call("look")]),
        message(2, "approval", tool_calls=[call("mail", call_id="call-2")]),
    ]
    assert tools(*asking, stop_reason="requires_approval") == (["look", "mail"], ["look"], [])


def test_tools_used_name_an_approved_call_where_it_ran() -> None:
    run = answer(decision(), returns=[returned()], name="mail")
    assert tools(*run, asked_calls=[asked("mail")], **ANSWERING) == ([], ["mail"], [])
    assert tools(*run, **ANSWERING) == ([], ["mail"], [])


def test_tools_denied_are_named_by_the_call_that_asked() -> None:
    run = answer(decision(approve=False), returns=[returned("error")])
    assert tools(*run, asked_calls=[asked("mail")], **ANSWERING) == ([], [], ["mail"])


def test_tools_of_a_call_that_nothing_names_are_not_guessed() -> None:
    assert tools(*answer(decision(approve=False), returns=[returned("error")]), **ANSWERING) == ([], [], [])
    assert tools(*answer(decision(), returns=[returned()]), **ANSWERING) == ([], [], [])


def test_tools_of_a_call_id_with_two_names_are_not_guessed() -> None:
    run = answer(decision(), returns=[returned()])
    assert tools(*run, asked_calls=[asked("mail"), asked("book")], **ANSWERING) == ([], [], [])


def test_tools_of_mixed_decisions_are_kept_apart() -> None:
    run = answer(
        decision("call-1"),
        decision("call-2", approve=False),
        returns=[returned("error", "call-2"), returned("success", "call-1")],
        name="book",
    )
    found = tools(*run, asked_calls=[asked("book", "call-1"), asked("mail", "call-2")], **ANSWERING)
    assert found == ([], ["book"], ["mail"])


def test_tools_of_several_approved_calls_are_all_named() -> None:
    run = answer(decision(), decision("call-2"), returns=[returned(), returned(call_id="call-2")], name="book")
    found = tools(*run, asked_calls=[asked("book"), asked("mail", "call-2")], **ANSWERING)
    assert found == ([], ["book", "mail"], [])


def test_tools_that_ran_at_the_client_are_named() -> None:
    run = answer(returned(), returns=[returned()])
    assert tools(*run, asked_calls=[asked("read_local_file")], **ANSWERING) == ([], ["read_local_file"], [])


def test_tools_denied_and_later_used_are_in_both() -> None:
    run = [
        *answer(decision(approve=False), returns=[returned("error")]),
        message(3, tool_calls=[call("mail", call_id="call-2")]),
    ]
    assert tools(*run, asked_calls=[asked("mail")], **ANSWERING) == (["mail"], ["mail"], ["mail"])


def test_tools_used_are_in_order_of_first_use() -> None:
    run = [
        *answer(decision(), returns=[returned()], name="mail"),
        message(3, tool_calls=[call("look", call_id="call-2"), call("mail", call_id="call-3")]),
    ]
    assert tools(*run, **ANSWERING) == (["look", "mail"], ["mail", "look"], [])


def test_tools_with_a_legacy_denial_are_denied() -> None:
    run = [
        message(1, "approval", tool_calls=[call("mail")]),
        message(2, "approval", approve=False, approval_request_id="message-1"),
        message(3, "tool", tool_returns=[returned("error")]),
    ]
    assert tools(*run) == (["mail"], [], ["mail"])


@pytest.mark.parametrize("runs", [sample_runs, story_runs])
def test_row_of_returns_names_the_first_that_was_not_denied(runs: Any) -> None:
    """What ``row_names`` rests on, in every real row with a name."""
    calls = {
        (message["step_id"], each["id"]): each["function"]["name"]
        for raw in runs()
        for message in raw["messages"]
        for each in json.loads(message["tool_calls"] or "[]")
    }
    named = 0
    for raw in runs():
        steps = {message["id"]: message["step_id"] for message in raw["messages"]}
        for row in messages_of(convert_run(raw, HOUR)):
            ran = [item for item in row["tool_returns"] if not item["denied"]]
            if row["role"] == "tool" and row["name"] is not None:
                assert calls[steps[row["message_id"]], ran[0]["tool_call_id"]] == row["name"]
                named += 1
    assert named > 280


@pytest.mark.parametrize(
    ("key", "requested", "used", "denied"),
    [
        ("tp-both-1", ["book_room", "send_email"], [], []),
        ("tp-both-2", [], ["book_room"], ["send_email"]),
        ("tp-margin-1", ["list_rooms", "book_room"], ["list_rooms"], []),
        ("tp-margin-2", ["book_room"], [], ["book_room"]),
        ("tp-margin-3", [], ["book_room"], []),
        ("tp-claim-2", [], [], ["send_email"]),
        ("tp-moor-2", ["list_rooms", "book_room"], ["book_room", "list_rooms"], []),
        ("tp-open", ["send_email"], [], []),
    ],
)
def test_tools_of_the_story_are_kept_apart(key: str, requested: list[str], used: list[str], denied: list[str]) -> None:
    raw = next(raw for raw in story_runs() if label_records(FIRST_ANNOTATOR)[raw["run_id"]]["key"] == key)
    row = convert_run(raw, HOUR)
    assert (row["tools_requested"], row["tools_used"], row["tools_denied"]) == (requested, used, denied)
