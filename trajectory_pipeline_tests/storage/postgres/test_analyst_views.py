"""The views over turns, messages and tool calls hold what the documents hold; the counts add up to them."""

from collections import Counter
from typing import Any

import pytest

from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    """The whole sample, captured and converted."""
    pipeline.capture(*sample_partitions())
    return pipeline


def documents(pipeline: Pipeline) -> list[dict[str, Any]]:
    return [row["data"] for row in pipeline.ask("SELECT data FROM trajectory.trajectories WHERE data IS NOT NULL")]


def rows(pipeline: Pipeline, view: str) -> list[Row]:
    return pipeline.ask(f"SELECT * FROM trajectory.{view}")


def test_turns_and_messages_hold_every_turn_and_message(captured: Pipeline) -> None:
    turns = [(document["run_id"], turn) for document in documents(captured) for turn in document["turns"]]
    assert Counter((row["run_id"], row["step_id"], row["messages"]) for row in rows(captured, "turns")) == Counter(
        (run_id, turn["step_id"], len(turn["messages"])) for run_id, turn in turns
    )
    expected = Counter(
        (run_id, message["message_id"], _text(message), len(message.get("tool_calls") or []))
        for run_id, turn in turns
        for message in turn["messages"]
    )
    found = Counter(
        (row["run_id"], row["message_id"], row["text"], row["tool_calls"]) for row in rows(captured, "messages")
    )
    assert found == expected


def _text(message: dict[str, Any]) -> str | None:
    texts = [part["text"] for part in message["content"] if part["type"] == "text" and part["text"] is not None]
    return "\n".join(texts) if texts else None


def test_tool_calls_have_the_first_later_return_of_their_run(captured: Pipeline) -> None:
    expected: Counter[tuple[object, ...]] = Counter()
    for document in documents(captured):
        messages = [message for turn in document["turns"] for message in turn["messages"]]
        for position, message in enumerate(messages):
            for call in message.get("tool_calls") or []:
                answers = (
                    (later["message_id"], back["status"])
                    for later in messages[position + 1 :]
                    for back in later.get("tool_returns") or []
                    if call["id"] is not None and back["tool_call_id"] == call["id"]
                )
                expected[(document["run_id"], call["id"], call["function"]["name"], *next(answers, (None, None)))] += 1
    found = Counter(
        (row["run_id"], row["tool_call_id"], row["tool"], row["return_message_id"], row["return_status"])
        for row in rows(captured, "tool_calls")
    )
    assert found == expected


def test_tool_usage_counts_every_call_once(captured: Pipeline) -> None:
    usage = rows(captured, "tool_usage")
    assert sum(row["calls"] for row in usage) == len(rows(captured, "tool_calls"))
    for row in usage:
        counted = sum(row[name] for name in ("succeeded", "failed", "denied", "unanswered"))
        assert counted <= row["calls"]
        assert row["error_rate"] is None or 0 <= row["error_rate"] <= 1


def test_agent_days_count_every_trajectory_once(captured: Pipeline) -> None:
    days = rows(captured, "agent_days")
    assert sum(row["runs"] for row in days) == sum(sample_partitions().values())
    assert len({(row["agent_id"], row["day"]) for row in days}) == len(days)


def test_views_leave_out_deleted_runs(captured: Pipeline) -> None:
    captured.do("UPDATE trajectory.trajectories SET deleted_at = now()")
    for view in ("turns", "messages", "tool_calls", "tool_usage", "agent_days"):
        assert rows(captured, view) == []
