"""A run that cannot be converted is quarantined with its raw rows, the error and its path; the others are converted."""

import json
from typing import Any

import pyarrow as pa
import pytest

from trajectory_pipeline.conversion import reference
from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.conversion.reference import QuarantinedRun
from trajectory_pipeline.conversion.summary import RunFacts
from trajectory_pipeline_tests.conversion.raw_runs import (
    HOUR,
    Raw,
    batch_converted,
    batch_of,
    message,
    raw_run,
    step,
)
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs


def quarantined(raw: Raw) -> QuarantinedRun:
    conversion = batch_converted(raw)
    assert not conversion.rows
    (item,) = conversion.quarantined
    return item


@pytest.mark.parametrize(
    ("raw", "place", "error"),
    [
        (raw_run(message(1, content="{broken")), "messages[message-1].content", "is not valid JSON"),
        (raw_run(message(1, content="5")), "messages[message-1].content", "a number, expected an array"),
        (raw_run(message(1, content='"text"')), "messages[message-1].content", "a string, expected an array"),
        (raw_run(message(1, content="{}")), "messages[message-1].content", "an object, expected an array"),
        (raw_run(message(1, content='[{}, "text"]')), "messages[message-1].content[1]", "expected an object"),
        (raw_run(message(1, tool_calls="[null]")), "messages[message-1].tool_calls[0]", "null, expected an object"),
        (raw_run(message(1, tool_returns="[[]]")), "messages[message-1].tool_returns[0]", "an array"),
        (raw_run(message(1, approvals="true")), "messages[message-1].approvals", "a boolean"),
        (raw_run(metadata_="[]"), "runs[run-1].metadata_", "an array, expected an object"),
        (raw_run(metadata_=""), "runs[run-1].metadata_", "is not valid JSON"),
        (raw_run(request_config='"x"'), "runs[run-1].request_config", "a string, expected an object"),
        (raw_run(steps=[step(error_data="{")]), "steps[step-1].error_data", "is not valid JSON"),
        (raw_run(steps=[step(tags='["a", 5]')]), "steps[step-1].tags[1]", "a number, expected a string"),
        (raw_run(steps=[step(tags='"a"')]), "steps[step-1].tags", "a string, expected an array of strings"),
        (raw_run(steps=[step(prompt_tokens_details="{")]), "steps[step-1].prompt_tokens_details", "not valid JSON"),
        (
            raw_run(steps=[step(prompt_tokens_details='{"cached_tokens": 99999999999999999999}')]),
            "steps[step-1].prompt_tokens_details.cached_tokens",
            "99999999999999999999",
        ),
        (raw_run(steps=[step(n, prompt_tokens=2**62) for n in "abc"]), "runs[run-1]", "input_tokens"),
        (raw_run(message(1, id=None)), "messages[0 of runs[run-1]].id", "is null"),
        (raw_run(message(1, role=None)), "messages[message-1].role", "is null"),
        (raw_run(message(1, sequence_id=None)), "messages[message-1].sequence_id", "is null"),
        (raw_run(steps=[step(), step("step-2") | {"id": None}]), "steps[1 of runs[run-1]].id", "is null"),
        (raw_run(agent_id=None), "runs[run-1].agent_id", "is null"),
        (raw_run(status=None), "runs[run-1].status", "is null"),
    ],
)
def test_quarantine_names_the_path_of_an_unreadable_value(raw: Raw, place: str, error: str) -> None:
    item = quarantined(raw)
    assert item.json_path == place
    assert error in item.error


def test_quarantine_stores_the_raw_rows_whole() -> None:
    raw = raw_run(message(1, reply="שלום"), message(2, content='[{"broken": \\u'))
    item = quarantined(raw)
    quarantined_raw = json.loads(item.raw)
    assert quarantined_raw["messages"][1]["content"] == raw["messages"][1]["content"]
    assert "שלום" in item.raw or "\\u05e9" in quarantined_raw["messages"][0]["content"]
    assert (item.run_id, item.steps, item.messages) == ("run-1", 1, 2)


def test_quarantined_run_leaves_the_others_and_counts_balance() -> None:
    raws = list(sample_runs()[:20])
    raws[7] = {**raws[7], "run": {**raws[7]["run"], "metadata_": "{"}}
    conversion = batch_converted(*raws)
    assert [item.run_id for item in conversion.quarantined] == [raws[7]["run_id"]]
    assert [row["run_id"] for row in conversion.rows] == [raw["run_id"] for n, raw in enumerate(raws) if n != 7]
    for count, rows in (("message_count", "messages"), ("step_count", "steps")):
        assert sum(row[count] for row in conversion.rows) + len(raws[7][rows]) == sum(len(raw[rows]) for raw in raws)


def test_quarantined_run_repaired_at_the_source_is_converted() -> None:
    broken = message(1, content="[")
    assert quarantined(raw_run(broken))
    assert batch_converted(raw_run({**broken, "content": "[]"})).rows


def test_convert_batch_with_a_defect_quarantines_only_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real = reference.summary_row

    def faulty(facts: RunFacts) -> Any:
        if facts.run_id == "run-2":
            raise ZeroDivisionError("thirteen")
        return real(facts)

    monkeypatch.setattr(reference, "summary_row", faulty)
    conversion = batch_converted(raw_run(message(13, content='[{"a": 1, "a": 2}]'), id="run-2"), raw_run(message(1)))
    assert [row["run_id"] for row in conversion.rows] == ["run-1"]
    (item,) = conversion.quarantined
    assert (item.run_id, item.json_path) == ("run-2", "runs[run-2]")
    assert "fault of trajectory-pipeline" in item.error
    assert "ZeroDivisionError: thirteen" in item.error


# --- raw rows of an older version of the schema


def without_columns(raw: Raw, *names: str) -> Any:
    if isinstance(raw, dict):
        return {name: without_columns(value, *names) for name, value in raw.items() if name not in names}
    return [without_columns(item, *names) for item in raw] if isinstance(raw, list) else raw


def test_raw_rows_without_columns_read_as_null() -> None:
    lacking = ("model_handle", "sender_id", "conversation_id", "step_metrics", "context", "deleted_at", "run_metrics")
    whole = raw_run(message(1, reply="Hi"))
    old = pa.RecordBatch.from_pylist([without_columns(whole, *lacking)])
    now = convert_batch(batch_of(whole), HOUR)
    assert convert_batch(old, HOUR).rows == now.rows
    assert now.rows
