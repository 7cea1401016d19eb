"""The views over turns, messages and tool calls hold what the documents hold; the counts add up to them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row


@pytest.fixture(scope="module")
def captured(make_own_settings: Callable[[], Settings]) -> Pipeline:
    """The whole sample, captured and converted once; only the last test changes it."""
    settings = make_own_settings()
    folder = settings.storage.data_folder / "parquet"
    pipeline = Pipeline(str(settings.source.postgres_url), str(settings.storage.database_url), folder)
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


def test_tool_calls_have_the_first_return_of_their_run_or_chain(captured: Pipeline) -> None:
    expected: Counter[tuple[object, ...]] = Counter()
    by_start = sorted(documents(captured), key=lambda document: str(document["metadata"]["start_time"]))
    for document in by_start:
        continuing = [other for other in by_start if other["metadata"]["continues_run_id"] == document["run_id"]]
        messages = messages_with_step(document)
        for position, (step_id, message) in enumerate(messages):
            for call in message.get("tool_calls") or []:
                later = [(document["run_id"], each) for _, each in messages[position + 1 :]]
                later += [
                    (other["run_id"], each)
                    for other in continuing
                    for step_of_other, each in messages_with_step(other)
                    if step_of_other == step_id
                ]
                answers = (
                    (run_id, each["message_id"], back["status"])
                    for run_id, each in later
                    for back in each.get("tool_returns") or []
                    if call["id"] is not None and back["tool_call_id"] == call["id"]
                )
                answer = next(answers, (None, None, None))
                expected[(document["run_id"], call["id"], call["function"]["name"], *answer)] += 1
    columns = ("run_id", "tool_call_id", "tool", "return_run_id", "return_message_id", "return_status")
    found = Counter(tuple(row[name] for name in columns) for row in rows(captured, "tool_calls"))
    assert found == expected
    assert sum(row[3] not in (None, row[0]) for row in found) >= 15


def messages_with_step(document: dict[str, Any]) -> list[tuple[str | None, dict[str, Any]]]:
    return [(turn["step_id"], message) for turn in document["turns"] for message in turn["messages"]]


def test_tool_usage_counts_every_call_once(captured: Pipeline) -> None:
    usage = rows(captured, "tool_usage")
    assert sum(row["calls"] for row in usage) == len(rows(captured, "tool_calls"))
    for row in usage:
        returned = [each for each in rows(captured, "tool_calls") if each["tool"] == row["tool"] and each["denied"]]
        assert all(each["return_status"] == "error" for each in returned)
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
