"""The columnar and the reference conversion give the same trajectories, byte for byte, and the same documents as JSON.

Compared are every run of the sample, runs of any shape, and the sample's runs with one value replaced by another
that a source may hold.
"""

import copy
import json
import random
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajectory_pipeline.conversion.convert import Conversion, convert_batch
from trajectory_pipeline.conversion.document import postgres_document
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline.lossless_json import ConversionError
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.conversion.raw_runs import (
    HOUR,
    NOON,
    Raw,
    asked,
    batch_of,
    call,
    message,
    raw_run,
    returned,
    step,
)
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs
from trajectory_pipeline_tests.conversion.strategies import raw_runs


def agreed(*raws: Raw) -> Conversion:
    """Convert a batch both ways, compare them, and return the conversion."""
    batch = batch_of(*raws)
    conversion = convert_batch(batch, HOUR, documents=True)
    rows, wrong = [], []
    for raw in batch.to_pylist():
        try:
            rows.append(convert_run(raw, HOUR))
        except ConversionError as error:
            wrong.append((raw["run_id"], error.json_path, error.problem))
    plain = pa.RecordBatch.from_pylist(rows, schema=arrow_schema(TRAJECTORIES))
    if not conversion.trajectories.equals(plain):
        for short, long in zip(conversion.rows, plain.to_pylist(), strict=True):
            assert short == long
    assert conversion.trajectories.equals(plain)
    assert [(run.run_id, run.json_path, run.error) for run in conversion.quarantined] == wrong
    assert [(text and json.loads(text), why) for text, why in conversion.documents] == [
        (text and json.loads(text), why) for text, why in map(postgres_document, rows)
    ]
    return conversion


def test_converters_agree_on_the_sample_with_few_references() -> None:
    conversion = agreed(*sample_runs())
    surrogates = sum("\\ud83d" in json.dumps(raw, default=str).replace("\\\\", "\\") for raw in sample_runs())
    assert conversion.reference_path_count <= surrogates


def test_rows_of_every_release_take_no_reference_path() -> None:
    """Rows as Letta 0.12 to 0.16.9 writes them: one of these must not make a whole database slow."""
    denial: dict[str, Any] = {"approve": False, "denial_reason": "No.", "approval_request_id": "message-1"}
    image = {"type": "image", "source": {"type": "letta", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    decided = {"type": "approval", "tool_call_id": "call-1", "approve": False, "reason": None}
    shapes = {
        "no-step": raw_run(message(1, "user", "Go", step_id=None), message(2, reply="a"), message(3, step_id=None)),
        "no-steps": raw_run(message(1, "user", "Go", step_id=None), steps=[]),
        "step-gone": raw_run(message(1, reply="a"), message(2, reply="b", step_id="step-gone")),
        "equal-sequence": raw_run(message(1, reply="a", sequence_id=1), message(2, reply="b", sequence_id=1)),
        "out-of-order": raw_run(message(2, reply="a"), message(1, reply="b"), steps=[step("step-2"), step()]),
        "equal-times": raw_run(
            message(1, reply="a", step_id="step-2"),
            message(2, reply="b"),
            steps=[step(created_at=NOON), step("step-2", created_at=NOON)],
        ),
        "no-time": raw_run(message(1, reply="a"), steps=[step(created_at=None), step("step-2", created_at=None)]),
        "legacy-text": raw_run(message(1, "user", content=None, text="Go"), message(2, content="[]", text="")),
        "legacy-approval": raw_run(
            message(1, "approval", tool_calls=[call("f")]),
            message(2, "approval", **denial),
            message(3, "tool", tool_returns=[returned()]),
        ),
        "approval-without-call": raw_run(
            message(1, "approval", tool_calls=[call("f")]),
            message(2, "approval", approvals=[{**decided, "tool_call_id": None}]),
        ),
        "approval": raw_run(
            message(1, "approval", tool_calls=[call("f")]), message(2, "approval", approvals=[decided])
        ),
        "foreign-step": raw_run(
            message(1, "tool", step_id="step-0", tool_returns=[returned()]),
            message(2, reply="a"),
            foreign_steps=[step("step-0", run_id="run-other")],
            asked_calls=[asked("f")],
        ),
        "image": raw_run(message(1, "user", content=[image, {"type": "text", "text": "What is it?"}])),
        "deleted-run": raw_run(message(1, reply="a", is_deleted=None), is_deleted=True),
        "deleted-message": raw_run(message(1, reply="a", is_deleted=True)),
        "failed": raw_run(
            status="failed",
            steps=[step(status="FAILED", error_type="LLMError", error_data='{"message": "Boom"}', tags='["odd"]')],
            metadata_={"error": "Boom"},
        ),
    }
    conversion = agreed(*(named(raw, f"run-{shape}") for shape, raw in sorted(shapes.items())))
    assert (conversion.trajectories.num_rows, conversion.reference_path_count) == (len(shapes), 0)


@pytest.mark.slow
@given(st.lists(raw_runs(), min_size=1, max_size=3))
@settings(max_examples=60)
def test_converters_agree_on_runs_of_any_shape(raws: list[Raw]) -> None:
    named = [copy.deepcopy(raw) for raw in raws]
    for number, raw in enumerate(named):
        raw["run_id"] = f"run-{number}"
    agreed(*named)


_TEXT = '[{"type": "text", "text": "Hi", "signature": null}]'
CHANGES: dict[str, list[Any]] = {
    "content": [
        None,
        "null",
        " [ ] ",
        "{}",
        "[1]",
        "[null]",
        "[",
        '[{"type": "text", "text": "a", "text": "b", "signature": null}]',
        '[{"type": "text", "ty\\u0070e": "text", "text": "b", "signature": null}]',
        '[{"type": "text", "text": "NUL \\u0000", "signature": null}]',
        '[{"type": "text", "text": "half \\ud83d", "signature": null}]',
        '[{"type": "text", "text": null, "signature": null}]',
        '[{"type": "text", "text": "a"}, {"type": "text", "text": "b", "signature": "s"}]',
        '[{"signature": null, "text": "a", "type": "text"}]',
        '[{"type": "reasoning", "is_native": false, "reasoning": "r", "signature": null}]',
        '[{"type": "reasoning", "is_native": true, "reasoning": null, "signature": null}]',
        '[{"type": "summarized_reasoning", "id": "rs", "summary": [{"index": 0, "text": "a"}],'
        ' "encrypted_content": "x"}]',
        '[{"type": "image", "source": {"type": "letta", "media_type": "image/png", "data": "iVBORw0KGgo="}}]',
        '[{"type": "odd", "n": 1.10}]',
        '[{"type": "odd", "n": 123456789012345678901234567890}]',
        '[{"type": "odd", "n": -0, "deep": [[[[[1]]]]]}]',
        '[{"type": "refusal", "refusal": "No."}]',
        f'[{{"type": "odd", "deep": {"[" * 300}{"]" * 300}}}]',
        _TEXT.replace("Hi", "\u2028 ünï \U0001f600"),
        _TEXT.replace("Hi", '{\\"type\\": \\"heartbeat\\"}'),
        _TEXT.replace("Hi", "[Incoming message from agent with ID"),
    ],
    "tool_calls": [
        None,
        json.dumps([call("send_message", '{"message": "Hello"}')]),
        json.dumps([call("send_message", '{"message": "NUL \\u0000"}')]),
        json.dumps([call("f", '{"a": 1}'), call("f", '{"a": 1.0}'), call("f", '{"a":1}')]),
        json.dumps([call("f", "no json"), call("f", "no  json"), call("f", None)]),
        json.dumps([call("f", {"a": 1}), call("f", '{"a": 1}')]),
        '[{"id": null, "function": null, "type": "function"}]',
        '[{"id": 1, "function": {"arguments": "{}", "name": "f"}, "type": "function"}]',
    ],
    "tool_returns": [
        None,
        json.dumps([returned("error"), returned(stdout=["a", None])]),
        json.dumps([returned(stdout=["a"], stderr=[], text=None)]),
        json.dumps([returned(text="{}", denied=True)]),
        json.dumps([returned(text={"a": 1})]),
    ],
    "approvals": [
        None,
        '[{"type": "approval", "tool_call_id": "call-1", "approve": false, "reason": "No."}]',
        '[{"type": "approval", "tool_call_id": null, "approve": false, "reason": null}]',
        '[{"tool_call_id": "call-1", "status": "success", "stdout": [], "stderr": [], "func_response": "x"}]',
    ],
    "text": ["", "legacy"],
    "approve": [True, False],
    "role": ["user", "system", "summary", "approval", "tool", None],
    "step_id": [None, "step-gone"],
    "sequence_id": [None, 0, 7],
    "name": ["Ada"],
    "is_deleted": [None, True],
}


@pytest.mark.parametrize("column", CHANGES)
def test_converters_agree_on_any_message_value(column: str) -> None:
    """One run a value, among ordinary ones, so that one batch is converted both ways."""
    runs = []
    for number, value in enumerate(CHANGES[column]):
        changed = raw_run(
            message(1, "user", "Go"),
            message(2, tool_calls=[call("f")], reply="Well"),
            message(3, "tool", tool_returns=[returned()]),
        )
        changed["messages"][number % 3][column] = value
        runs += [named(changed, f"run-{number:03}-a"), named(raw_run(message(1, reply="Hi")), f"run-{number:03}-b")]
    agreed(*runs)


STEP_CHANGES: dict[str, list[Any]] = {
    "created_at": [None],
    "prompt_tokens": [None, 0, 2**62],
    "prompt_tokens_details": [
        "null",
        "{}",
        "[",
        '{"cached_tokens": 3}',
        '{"cached_tokens": 1.5}',
        f'{{"cached_tokens": {2**70}}}',
    ],
    "completion_tokens_details": ['{"reasoning_tokens": 3, "reasoning_tokens": 4}', '"text"'],
    "error_type": ["LLMError"],
    "error_data": ["null", '{"message": "m", "n": 1.10}', '"half \\ud83d"', "["],
    "tags": ["null", "[]", '["good"]', "[1]", '["NUL \\u0000"]'],
    "feedback": ["positive", "negative"],
    "model": [None, "gpt-4o-mini", "no-such-model"],
    "status": ["FAILED", None],
    "run_id": [None, "run-other"],
    "context_window_limit": [None, 0],
}


@pytest.mark.parametrize("column", STEP_CHANGES)
def test_converters_agree_on_any_step_value(column: str) -> None:
    runs = []
    for number, value in enumerate(STEP_CHANGES[column]):
        for other in (False, True):
            changed = raw_run(
                message(1, reply="Hi"), message(2, reply="Ho", step_id="step-2"), steps=[step(), step("step-2")]
            )
            changed["steps"][1][column] = value
            if other:
                changed["foreign_steps"] = [changed["steps"].pop()]
            runs.append(named(changed, f"run-{number:03}-{other}"))
    agreed(*runs)


RUN_CHANGES: dict[str, list[Any]] = {
    "metadata_": [
        None,
        "null",
        "[]",
        "{",
        '{"error": "Boom"}',
        '{"error": {"error_type": "llm_error", "n": 1.10}}',
        '{"run_type": 1}',
        '{"run_type": "NUL \\u0000"}',
    ],
    "request_config": [None, '{"assistant_message_tool_name": "say"}', "["],
    "status": ["failed", "cancelled", "of tomorrow"],
    "stop_reason": [None, "max_steps", "error", "requires_approval"],
    "created_at": [None],
    "completed_at": [None, datetime(9000, 1, 1), datetime(1, 1, 1)],
    "conversation_id": ["conversation-1"],
    "agent_id": [None],
    "total_duration_ns": [5],
}


@pytest.mark.parametrize("column", RUN_CHANGES)
def test_converters_agree_on_any_run_value(column: str) -> None:
    agreed(
        *(
            named(raw_run(message(1, reply="Hi"), **{column: value}), f"run-{number:03}")
            for number, value in enumerate(RUN_CHANGES[column])
        )
    )


@given(st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_converters_agree_on_the_sample_in_another_order(chance: random.Random) -> None:
    raws = [copy.deepcopy(raw) for raw in chance.sample(sample_runs(), 10)]
    for raw in raws:
        chance.shuffle(raw["messages"])
        chance.shuffle(raw["steps"])
    agreed(*sorted(raws, key=lambda raw: str(raw["run_id"])))


def test_convert_batch_without_runs_gives_no_trajectories() -> None:
    assert agreed().trajectories.num_rows == 0


def test_converters_agree_on_the_order_of_equal_times() -> None:
    steps = [step("step-1", created_at=NOON), step("step-2", created_at=NOON), step("step-3", created_at=NOON)]
    agreed(raw_run(message(1, reply="a", step_id="step-3"), message(2, reply="b", step_id="step-2"), steps=steps))


def named(raw: Raw, run_id: str) -> Raw:
    raw["run_id"] = run_id
    raw["run"]["id"] = run_id
    return raw
