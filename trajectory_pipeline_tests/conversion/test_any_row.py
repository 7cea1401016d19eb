"""Whatever a raw row holds, only its own run can fail: converting, erasing and rendering raise nothing."""

import io
import json
import random
import re
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from trajectory_pipeline.cli.render_explanation import render_explanation
from trajectory_pipeline.cli.render_trajectory import render_trajectory
from trajectory_pipeline.conversion import call_price, convert, document
from trajectory_pipeline.conversion.columnar import decode
from trajectory_pipeline.conversion.convert import Conversion, convert_batch
from trajectory_pipeline.conversion.document import trajectory_document
from trajectory_pipeline.conversion.erase import erase_deleted
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres.copy_writer import copy_lines
from trajectory_pipeline_tests.conversion.mutations import CANARY, mutated
from trajectory_pipeline_tests.conversion.raw_runs import (
    HOUR,
    NOON,
    Raw,
    agent,
    batch_of,
    call,
    message,
    messages_of,
    raw_run,
    returned,
    step,
)
from trajectory_pipeline_tests.judge.rendering import render

chances = st.randoms(use_true_random=False)
RUNS = 6


def mutated_batch(chance: random.Random, **values: Any) -> pa.RecordBatch:
    return batch_of(*({**mutated(f"run-{number}", chance), **values} for number in range(RUNS)))


def by_reference(batch: pa.RecordBatch) -> Conversion:
    with mock.patch.object(convert, "_convert_columnar", return_value=(None, list(range(batch.num_rows)))):
        return convert_batch(batch, HOUR, documents=True)


def agreed(batch: pa.RecordBatch) -> Conversion:
    """Convert a batch both ways, compare all that comes of it, and return the conversion."""
    conversion, reference = convert_batch(batch, HOUR, documents=True), by_reference(batch)
    assert conversion.rows == reference.rows
    assert conversion.trajectories.equals(reference.trajectories)
    assert conversion.quarantined == reference.quarantined
    assert list(map(read, conversion.documents)) == list(map(read, reference.documents))
    assert conversion.trajectories.num_rows + len(conversion.quarantined) == batch.num_rows
    return conversion


def read(document: tuple[bytes | None, str | None]) -> Any:
    """Read a document as any program in Python does, with its limits."""
    text, reason = document
    return text and json.loads(text), reason


@given(chances)
@settings(max_examples=15)
def test_convert_batch_of_any_rows_raises_nothing(chance: random.Random) -> None:
    conversion = agreed(mutated_batch(chance))
    assert not any("fault of trajectory-pipeline" in run.error for run in conversion.quarantined)
    if conversion.documents:
        assert b"\0" not in b"".join(copy_lines(conversion.trajectories, conversion.documents))


@given(chances)
@settings(max_examples=15)
def test_show_explain_and_transcript_of_any_rows_raise_nothing(chance: random.Random) -> None:
    conversion = convert_batch(mutated_batch(chance), HOUR, documents=True)
    for row, (text, reason) in zip(conversion.rows, conversion.documents, strict=True):
        data = text and json.loads(text)
        render(data or trajectory_document(row))
        render(trajectory_document(row))
        shown = {**row, "data": data, "data_omitted_reason": reason}
        explanation = {"source": {}, "captured": {}, "trajectory": shown, "shown": {"missing": "-"}, "verdict": None}
        console = Console(file=io.StringIO())
        console.print(render_trajectory(shown, None, {}, {}))
        console.print(render_explanation({**explanation, "missing": "-"}, data))


@given(chances)
@settings(max_examples=15)
def test_erase_of_any_rows_leaves_no_text(chance: random.Random) -> None:
    erased = erase_deleted(mutated_batch(chance, deleted_at=NOON))
    texts = str(erased.cast(timeless(erased.schema)).to_pylist())
    # Ids stay.
    assert CANARY not in re.sub(rf'"(tool_call_)?id":"{CANARY}"', "", texts)
    assert erase_deleted(erased).equals(erased)
    conversion = agreed(erased)
    assert all(row["erased"] for row in conversion.rows)


def timeless(schema: Any) -> Any:
    """The schema with times as numbers: Python cannot hold them all."""
    return pa.schema([field.with_type(without_times(field.type)) for field in schema])


def without_times(kind: Any) -> Any:
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(without_times(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(without_times(kind.value_type))
    return pa.int64() if pa.types.is_timestamp(kind) else kind


# ---- containment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["prompt_tokens", "completion_tokens", "total_tokens", "cached_input_tokens"])
@pytest.mark.parametrize("model", ["gpt-4o-mini", "gemini-2.5-pro", "claude-haiku-4-5"])
def test_negative_count_makes_the_price_unknown(column: str, model: str) -> None:
    conversion = agreed(batch_of(raw_run(message(1, reply="Hi"), steps=[step(model=model, **{column: -1})])))
    assert conversion.rows[0]["cost_usd"] is None or column == "total_tokens"
    name = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}.get(column, column)
    assert conversion.rows[0][name] == -1


@pytest.mark.parametrize("error", [RecursionError, OverflowError, pa.ArrowInvalid, KeyError, TypeError, AssertionError])
@pytest.mark.parametrize("place", ["get_prices", "calc_price"])
def test_price_list_that_raises_makes_the_price_unknown(error: type[Exception], place: str) -> None:
    target = {"get_prices": "genai_prices.types.ModelInfo.get_prices", "calc_price": "genai_prices.calc_price"}[place]
    batch = batch_of(raw_run(message(1, reply="Hi"), steps=[step(model="gpt-4.1", prompt_tokens=11)]))
    # Rates that an earlier test looked up are remembered.
    with mock.patch(target, side_effect=error("odd")), mock.patch.dict(call_price._rates, clear=True):
        conversion = convert_batch(batch, HOUR)
    assert [row["cost_usd"] for row in conversion.rows] == [None]


@pytest.mark.parametrize("error", [RecursionError, OverflowError, pa.ArrowInvalid, KeyError, TypeError])
@pytest.mark.parametrize("stage", ["trajectories_batch", "columnar_documents", "raw_columns"])
def test_batch_with_a_defect_of_the_columnar_path_is_converted(error: type[Exception], stage: str) -> None:
    batch = batch_of(raw_run(message(1, reply="Hi")), raw_run(message(2, reply="Ho"), id="run-2"))
    expected = by_reference(batch)
    with mock.patch.object(convert, stage, side_effect=error("odd")):
        conversion = convert_batch(batch, HOUR, documents=True)
    assert (conversion.rows, conversion.reference_path_count) == (expected.rows, 2)


def test_value_that_arrow_cannot_hold_quarantines_its_run_only() -> None:
    real = convert.convert_run

    def odd(raw: Raw, key: str) -> Any:
        row = real(raw, key)
        return {**row, "step_count": 2**70} if raw["run_id"] == "run-2" else row

    batch = batch_of(raw_run(message(1, reply="Hi")), raw_run(message(2, reply="Ho"), id="run-2"))
    with mock.patch.object(convert, "convert_run", odd):
        conversion = by_reference(batch)
    assert [row["run_id"] for row in conversion.rows] == ["run-1"]
    assert [run.run_id for run in conversion.quarantined] == ["run-2"]


def test_entry_with_a_defect_of_the_decoder_takes_the_reference_path() -> None:
    batch = batch_of(raw_run(message(1, content=[{"type": "odd"}])), raw_run(message(2, reply="Ho"), id="run-2"))
    with mock.patch.object(decode, "_reject_inexact", side_effect=RecursionError):
        conversion = convert_batch(batch, HOUR)
    assert (conversion.trajectories.num_rows, conversion.reference_path_count) == (2, 1)


@pytest.mark.parametrize(
    ("table", "column", "place"),
    [
        ("run", "created_at", "runs[run-1].created_at"),
        ("run", "completed_at", "runs[run-1].completed_at"),
        ("messages", "created_at", "messages[message-1].created_at"),
        ("steps", "created_at", "steps[step-1].created_at"),
    ],
)
@pytest.mark.parametrize("time", [253_402_300_800_000_000, -62_135_596_800_000_001, 2**63 - 1])
def test_time_beyond_the_year_9999_quarantines_its_run(table: str, column: str, place: str, time: int) -> None:
    odd = raw_run(message(1, reply="Hi"))
    (odd["run"] if table == "run" else odd[table][0])[column] = time
    conversion = agreed(batch_of(odd, raw_run(message(2, reply="Ho"), id="run-2")))
    (item,) = conversion.quarantined
    assert item.json_path == place
    assert "years 1 to 9999" in item.error
    assert json.loads(item.raw)["run_id"] == "run-1"


def test_nul_in_a_copied_column_quarantines_its_run() -> None:
    conversion = agreed(batch_of(raw_run(message(1, name="a\0b")), raw_run(message(2, reply="Ho"), id="run-2")))
    (item,) = conversion.quarantined
    assert (item.json_path, item.error) == (
        "messages[message-1].name",
        "holds a NUL character or is no UTF-8, and cannot be stored",
    )


@pytest.mark.parametrize("column", ["id", "name", "sender_id", "content", "tool_returns", "otid"])
def test_bytes_that_are_no_utf_8_quarantine_their_run_only(column: str) -> None:
    """As a source of the encoding SQL_ASCII may hold them."""
    mark = '[{"type": "text", "text": "@@@"}]'
    odd = batch_of(raw_run(message(1, **{column: mark})), raw_run(message(2, reply="Ho"), id="run-2"))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, odd.schema) as writer:
        writer.write_batch(odd)
    with pa.ipc.open_stream(sink.getvalue().to_pybytes().replace(b"@@@", b"\xff\xfe@")) as reader:
        conversion = agreed(batch := reader.read_next_batch())
    # Of no use to a trajectory.
    assert [run.run_id for run in conversion.quarantined] == ([] if column == "otid" else ["run-1"])
    deleted = batch.set_column(batch.schema.get_field_index("deleted_at"), "deleted_at", pa.array([NOON, NOON]))
    assert erase_deleted(deleted.cast(batch.schema)).num_rows == 2


@pytest.mark.parametrize("text", ["[" * 5000, '{"a":' * 5000, "[" * 5000 + "}" * 5000, "[" * 201])
def test_unclosed_json_of_any_depth_quarantines_its_run(text: str) -> None:
    odd = [raw_run(message(1, **{column: text})) for column in ("content", "tool_calls", "tool_returns", "approvals")]
    odd += [raw_run(metadata_=text), raw_run(request_config=text), raw_run(metadata_=f'{{"error": {text}')]
    odd += [raw_run(steps=[step(**{name: text})]) for name in ("error_data", "tags", "prompt_tokens_details")]
    for number, raw in enumerate(odd):
        raw["run_id"] = raw["run"]["id"] = f"run-{number}"
    conversion = agreed(batch_of(*odd, raw_run(message(2, reply="Ho"), id="run-x")))
    assert [row["run_id"] for row in conversion.rows] == ["run-x"]
    assert all("is not valid JSON" in run.error for run in conversion.quarantined)


@pytest.mark.parametrize("marked", [True, False, None])
def test_messages_of_a_run_that_is_marked_deleted_are_marked(marked: bool | None) -> None:
    """Whatever is so marked is not sent to a judge."""
    said = [message(1, reply="Hi"), message(2, reply="Ho", is_deleted=False)]
    (row,) = agreed(batch_of(raw_run(*said, is_deleted=marked))).rows
    assert [each["is_deleted"] for each in messages_of(row)] == [bool(marked)] * 2


# ---- what the converters must agree on -----------------------------------------------------------------------------

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}}


@pytest.mark.parametrize(
    "values",
    [
        {"tool_calls": [call("f", {"page": [IMAGE]})]},
        {"tool_calls": [call("f", IMAGE)]},
        {"tool_calls": [{**call("f", "{}"), "extra": IMAGE}]},
        {"approvals": [{"type": "approval", "tool_call_id": "c", "approve": True, "reason": IMAGE}]},
        {"approvals": [returned(text=[IMAGE])]},
    ],
)
def test_image_anywhere_is_a_stub_in_postgres(values: Raw) -> None:
    (document,) = agreed(batch_of(raw_run(message(1, **values)))).documents
    assert b"AAEC" not in (document[0] or b"")
    assert b'"stub"' in (document[0] or b"")


@pytest.mark.parametrize("number", ["1e-999999", "1e-400", "0e-999999", "0", "-0", '""', "{}", '{"n": 1e-999999}'])
@pytest.mark.parametrize("column", ["prompt_tokens_details", "completion_tokens_details"])
def test_odd_usage_details_are_reported_alike(number: str, column: str) -> None:
    unreported = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, column: number}
    agreed(batch_of(raw_run(message(1, reply="Hi"), steps=[step(**unreported)])))


@pytest.mark.parametrize("number", ["9" * 4301, "-" + "9" * 4301, "1e4300", "1.5e5000"])
def test_number_too_long_for_python_omits_the_document(number: str) -> None:
    conversion = agreed(batch_of(raw_run(message(1, content=f'[{{"type": "odd", "n": {number}}}]'))))
    ((text, reason),) = conversion.documents
    assert text is None
    assert "more than the 4300 that Python reads" in str(reason)


def test_reply_beside_a_number_too_long_for_python_is_read() -> None:
    arguments = f'{{"message": "Hello", "n": {"9" * 5000}}}'
    sent = message(1, tool_calls=[call("send_message", arguments)])
    (row,) = agreed(batch_of(raw_run(sent, agent=agent("memgpt_agent")))).rows
    assert messages_of(row)[0]["assistant_text"] == "Hello"


@pytest.mark.parametrize("content", ['[{"type": "odd", "n": [1{}]}]', '[{"type": "text", "text": "{}"}]'])
def test_document_of_too_many_values_is_omitted(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(document, "MAX_JSONB_VALUES", 1000)
    of_values = batch_of(raw_run(message(1, content=content.replace("{}", ",1" * 2000))))
    ((text, reason),) = agreed(of_values).documents
    if "odd" in content:
        assert text is None
        assert "values, more than the 1000 that are offered to jsonb" in str(reason)
    else:  # commas in a text are no values
        assert (text is not None, reason) == (True, None)


# ---- tool returns of several parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ([{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}], "a\nb"),
        ([{"type": "text", "text": ""}, {"type": "text", "text": "b"}], "b"),
        ([IMAGE], None),
        ([{"type": "text", "text": 5}, {"type": "odd", "text": "no"}, "no", None], None),
        ([], None),
        ({"type": "text", "text": "a"}, None),
        ("a", "a"),
    ],
)
def test_tool_return_of_parts_has_the_text_of_its_text_parts(response: Any, text: str | None) -> None:
    conversion = agreed(batch_of(raw_run(message(1, "tool", tool_returns=[returned(text=response)]))))
    (row,) = conversion.rows
    (item,) = messages_of(row)[0]["tool_returns"]
    assert item["text"] == text
    (shown,) = messages_of(read(conversion.documents[0])[0])[0]["tool_returns"]
    assert shown["text"] == text
    # What is no string stays whole beside it; of images a stub.
    assert ("func_response" in shown) == (not isinstance(response, str))
    assert b"AAEC" not in (conversion.documents[0][0] or b"")


def test_schema_of_no_trajectories_is_that_of_trajectories() -> None:
    assert convert_batch(batch_of(), HOUR).trajectories.schema.equals(arrow_schema(TRAJECTORIES))
    assert not pc.any(pc.is_null(convert_batch(batch_of(), HOUR).trajectories.column("run_id"))).as_py()
