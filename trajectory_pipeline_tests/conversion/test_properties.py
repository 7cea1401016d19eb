"""What holds for every run, whatever its shape: nothing lost, one order, the same bytes, the same document everywhere.

The examples are `strategies.raw_runs`; every run of the sample is held against the same properties.
"""

import base64
import binascii
import copy
import functools
import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.conversion.document import postgres_document, trajectory_document
from trajectory_pipeline.conversion.messages import approval_of, part_of, tool_call_of, tool_return_of
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import BOTH, PARQUET_ONLY, ListOf, Struct, Type
from trajectory_pipeline_tests.conversion.inverse import row_of
from trajectory_pipeline_tests.conversion.json_values import differences, escaped, read
from trajectory_pipeline_tests.conversion.raw_runs import (
    HOUR,
    METRICS_ROW,
    NOON,
    Raw,
    Row,
    batch_of,
    messages_of,
)
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs
from trajectory_pipeline_tests.conversion.strategies import raw_runs


@dataclass
class Case:
    """One run: its raw rows, its trajectory, and the trajectory as a Parquet file gives it back."""

    raw: Raw

    @cached_property
    def row(self) -> Row:
        return convert_run(self.raw, HOUR)

    @cached_property
    def stored(self) -> Row:
        return through_parquet([self.row])[0]

    @cached_property
    def document(self) -> dict[str, Any]:
        return trajectory_document(self.row)


@functools.cache
def sample_cases() -> list[Case]:
    cases = [Case(raw) for raw in sample_runs()]
    for case, stored in zip(cases, through_parquet([case.row for case in cases]), strict=True):
        case.stored = stored
    return cases


def holds_for_the_sample_and_any_run(check: Callable[[Case], None]) -> Callable[[], None]:
    @given(raw_runs())
    def any_run(raw: Raw) -> None:
        check(Case(raw))

    @functools.wraps(check, assigned=("__name__", "__doc__"), updated=())
    def both() -> None:
        for case in sample_cases():
            check(case)
        any_run()

    del both.__wrapped__  # pytest would look there for fixtures
    return both


# --- conservation


@holds_for_the_sample_and_any_run
def test_messages_are_in_one_turn_and_own_steps_are_turns(case: Case) -> None:
    row = case.row
    found = Counter(message["message_id"] for message in messages_of(row))
    assert found == Counter(message["id"] for message in case.raw["messages"])
    assert row["message_count"] == len(case.raw["messages"])
    turns = Counter(turn["step_id"] for turn in row["turns"] if turn["step_id"] is not None)
    assert set(turns.values()) <= {1}
    assert {step["id"] for step in case.raw["steps"] + case.raw["foreign_steps"]} <= turns.keys()
    assert row["step_count"] == len(case.raw["steps"])
    step_of = {message["id"]: message["step_id"] for message in case.raw["messages"]}
    for turn in row["turns"]:
        assert {step_of[message["message_id"]] for message in turn["messages"]} <= {turn["step_id"]}


@holds_for_the_sample_and_any_run
def test_entries_after_parquet_equal_the_source_part_by_part(case: Case) -> None:
    row = case.stored
    stored = {message["message_id"]: message for message in messages_of(row)}
    for source in case.raw["messages"]:
        for column, back in (
            ("content", part_of),
            ("tool_calls", tool_call_of),
            ("tool_returns", tool_return_of),
            ("approvals", approval_of),
        ):
            expected = escaped(read(source[column]) or [], "", [])
            if column == "content" and not expected and source["text"]:
                expected = [{"type": "text", "text": source["text"]}]
            if column == "approvals" and not expected and source["approve"] is not None:
                continue
            assert not list(differences(expected, [back(item) for item in stored[source["id"]][column]], column))


@holds_for_the_sample_and_any_run
def test_columns_hold_no_undeclared_null(case: Case) -> None:
    row = case.row
    for column in TRAJECTORIES.columns:
        if column.sinks in (BOTH, PARQUET_ONLY):
            assert list(undeclared_nulls(row[column.name], column.type, column.nullable, column.name)) == []


def undeclared_nulls(value: Any, kind: Type, nullable: bool, place: str) -> Any:
    if value is None:
        if not nullable:
            yield place
    elif isinstance(kind, ListOf):
        for item in value:
            yield from undeclared_nulls(item, kind.item, False, f"{place}[]")
    elif isinstance(kind, Struct):
        assert value.keys() == {field.name for field in kind.fields}, place
        for field in kind.fields:
            yield from undeclared_nulls(value[field.name], field.type, field.nullable, f"{place}.{field.name}")


# --- determinism


@given(raw_runs(), st.randoms(use_true_random=False))
def test_rows_in_any_order_give_the_same_bytes(raw: Raw, chance: random.Random) -> None:
    assert arrow_bytes(shuffled(raw, chance)) == arrow_bytes(raw)


def test_rows_of_the_sample_in_any_order_give_the_same_bytes() -> None:
    chance = random.Random(3)
    for raw in sample_runs():
        assert arrow_bytes(shuffled(raw, chance)) == arrow_bytes(raw), raw["run_id"]


def shuffled(raw: Raw, chance: random.Random) -> Raw:
    lists = ("messages", "steps", "foreign_steps", "step_metrics")
    return {name: chance.sample(value, len(value)) if name in lists else value for name, value in raw.items()}


def arrow_bytes(raw: Raw) -> bytes:
    batch = pa.RecordBatch.from_pylist([convert_run(raw, HOUR)], schema=arrow_schema(TRAJECTORIES))
    return batch.serialize().to_pybytes()


# --- the digest


def change_nothing_that_was_said(raw: Raw, chance: random.Random) -> None:
    raw["run"] |= {"ttft_ns": 1, "total_duration_ns": 2, "updated_at": NOON, "project_id": "project-9"}
    raw["run"]["completed_at"] = (NOON + timedelta(days=1)).replace(tzinfo=None)
    raw["run"]["background"] = True
    raw["run_metrics"] = {**METRICS_ROW["run"], "id": raw["run_id"], "run_ns": 77}
    raw["step_metrics"] = [{**METRICS_ROW["step"], "id": step["id"], "step_ns": 88} for step in raw["steps"]]
    for step in raw["steps"]:
        step |= {"feedback": "negative", "tags": '["\\u0000 late"]', "updated_at": NOON, "model": "another-model"}
        step |= {"prompt_tokens": 9, "cached_input_tokens": 4, "prompt_tokens_details": '{"\\u0000": 1}'}
    for step in raw["foreign_steps"]:
        step |= {"run_id": "run-elsewhere", "feedback": "positive", "stop_reason": "cancelled"}
        step |= {"error_type": "Unknown", "error_data": '{"message": "\\ud83d"}'}
    for message in raw["messages"]:
        message |= {"is_deleted": not message["is_deleted"], "conversation_id": "conv-9", "updated_at": NOON}
        message |= {"created_at": None, "model": "another-model"}
    raw["agent"] = chance.choice([None, {**(raw["agent"] or {}), "name": "Eve", "agent_type": "memgpt_agent"}])
    raw["agent_tags"] = ["late"]
    raw["context"] = {"system_prompt": "Changed.", "tools": "[]", "source": "at_capture"}
    raw["deleted_at"] = NOON


@given(raw_runs(), st.randoms(use_true_random=False))
def test_digest_of_any_run_ignores_what_is_not_covered(raw: Raw, chance: random.Random) -> None:
    changed = copy.deepcopy(raw)
    change_nothing_that_was_said(changed, chance)
    before, after = convert_run(raw, HOUR), convert_run(changed, "2030-01-01-00:00")
    assert before["content_digest"] == after["content_digest"]


def test_digest_of_the_sample_ignores_what_is_not_covered() -> None:
    for case in sample_cases():
        changed = copy.deepcopy(case.raw)
        change_nothing_that_was_said(changed, random.Random(4))
        assert case.row["content_digest"] == convert_run(changed, HOUR)["content_digest"]


def in_messages(column: str, old: str, new: str) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for message in raw["messages"]:
            message[column] = (message[column] or "").replace(old, new, 1)

    return change


def in_run(**values: Any) -> Callable[[Raw], None]:
    return lambda raw: raw["run"].update(values)


def in_last_step(**values: Any) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        if raw["steps"]:
            max(raw["steps"], key=lambda step: step["created_at"]).update(values)

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(in_messages("content", '"text": "', '"text": "!'), id="a text"),
        pytest.param(in_messages("content", '"reasoning": "', '"reasoning": "!'), id="a thought"),
        pytest.param(in_messages("tool_calls", '\\"', ' \\"'), id="an argument"),
        pytest.param(in_messages("tool_calls", '"name": "', '"name": "x'), id="a tool"),
        pytest.param(in_messages("tool_returns", '"func_response": "', '"func_response": "!'), id="a return"),
        pytest.param(in_messages("tool_returns", '"status": "success"', '"status": "error"'), id="a status"),
        pytest.param(in_messages("tool_returns", '"stdout": null', '"stdout": ["!"]'), id="what a tool printed"),
        pytest.param(in_messages("approvals", '"approve": true', '"approve": false'), id="a decision"),
        pytest.param(in_run(stop_reason="a reason of tomorrow"), id="the stop reason"),
        pytest.param(in_run(metadata_='{"error": "another"}'), id="the error"),
        pytest.param(in_last_step(stop_reason="a reason of tomorrow"), id="the stop reason of a step"),
        pytest.param(in_last_step(error_data='{"message": "another"}'), id="the error of a step"),
    ],
)
def test_digest_changes_with(change: Callable[[Raw], None]) -> None:
    changed_runs = 0
    for case in sample_cases():
        changed = copy.deepcopy(case.raw)
        change(changed)
        if changed != case.raw:
            changed_runs += 1
            assert case.row["content_digest"] != convert_run(changed, HOUR)["content_digest"]
    assert changed_runs


def test_digests_and_trajectory_ids_of_the_sample_are_unique() -> None:
    rows = [case.row for case in sample_cases()]
    assert len({row["content_digest"] for row in rows}) == len({row["trajectory_id"] for row in rows}) == len(rows)


# --- the same document everywhere


@holds_for_the_sample_and_any_run
def test_document_from_parquet_is_the_one_written(case: Case) -> None:
    assert trajectory_document(case.stored) == case.document


def test_whole_sample_in_one_file_reads_back_as_written() -> None:
    conversion = convert_batch(batch_of(*sample_runs()), HOUR)
    assert not conversion.quarantined
    assert through_parquet(conversion.rows) == pa.Table.from_batches([conversion.trajectories]).to_pylist()
    assert [trajectory_document(row) for row in through_parquet(conversion.rows)] == list(
        map(trajectory_document, conversion.rows)
    )


def through_parquet(rows: list[Row]) -> list[Row]:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(TRAJECTORIES)), file)
    return pq.read_table(io.BytesIO(file.getvalue())).to_pylist()


@holds_for_the_sample_and_any_run
def test_document_made_into_a_row_gives_the_same_document(case: Case) -> None:
    document = case.document
    assert trajectory_document(row_of(document)) == document


@holds_for_the_sample_and_any_run
def test_postgres_document_is_whole_except_image_bytes(case: Case) -> None:
    row = case.row
    text, reason = postgres_document(row)
    assert reason is None
    assert not list(differences(stubbed(case.document), read(text)))


def stubbed(value: Any) -> Any:
    if isinstance(value, list):
        return [stubbed(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: stubbed(item) for key, item in value.items()}
    source = value.get("source")
    if value.get("type") == "image" and isinstance(source, dict) and isinstance(source.get("data"), str):
        made["source"] = {key: item for key, item in source.items() if key != "data"}
        try:
            content = base64.b64decode(source["data"], validate=True)
            broken = {}
        except binascii.Error:
            content, broken = source["data"].encode(), {"invalid_base64": True}
        made["source"]["stub"] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            **broken,
        }
    return made


@holds_for_the_sample_and_any_run
def test_postgres_document_can_be_stored_as_jsonb(case: Case) -> None:
    row = case.row
    text, reason = postgres_document(row)
    assert (text is None) != (reason is None)
    if text is None:
        return
    text.decode()
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"), parse_float=Decimal)
    for string in strings_of(parsed):
        string.encode()
        assert "\0" not in string


def strings_of(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_of(item)


@given(st.lists(raw_runs(most_messages=3), min_size=1, max_size=4))
@settings(max_examples=30)
def test_convert_batch_gives_one_row_a_run_in_order(raws: list[Raw]) -> None:
    named = [{**raw, "run_id": f"run-{n}", "run": {**raw["run"], "id": f"run-{n}"}} for n, raw in enumerate(raws)]
    conversion = convert_batch(batch_of(*named), HOUR)
    assert not conversion.quarantined
    assert [row["run_id"] for row in conversion.rows] == [raw["run_id"] for raw in named]
    assert conversion.trajectories.num_rows == len(raws)
    assert [without(row, "context") for row in conversion.rows] == [
        without(convert_run(raw, HOUR), "context") for raw in named
    ]


def without(row: Row, name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}
