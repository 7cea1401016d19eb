r"""Text that breaks pipelines: documents show a visible escape and its path, and hold everything else unchanged.

Raw rows are the reader's affair and stay byte for byte; here it is what becomes of them in a trajectory.
"""

import hashlib
import io
import json
import time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trajectory_pipeline.conversion.document import postgres_document, trajectory_document
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline.lossless_json import MAX_DEPTH, Verbatim
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.conversion.raw_runs import (
    HOUR,
    Row,
    agent,
    batch_converted,
    call,
    converted,
    documented,
    message,
    messages_of,
    raw_run,
    returned,
    step,
)
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs


def text_part(json_string: str) -> str:
    """A content column whose text is this JSON string, as written."""
    return f'[{{"type": "text", "text": {json_string}, "signature": null}}]'


def with_text(json_string: str) -> Row:
    return converted(message(1, content=text_part(json_string)))


def text_of(row: Row) -> Any:
    return messages_of(trajectory_document(row))[0]["content"][0]["text"]


def data_of(row: Row) -> Any:
    text, reason = postgres_document(row)
    assert text is not None, reason
    return json.loads(text)


def stored(row: Row) -> Row:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], schema=arrow_schema(TRAJECTORIES)), file)
    found: Row = pq.read_table(io.BytesIO(file.getvalue())).to_pylist()[0]
    return found


# --- NUL and surrogates


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (r'"a\u0000b"', r"a\u0000b"),
        (r'"\ud83d"', r"\ud83d"),
        (r'"\ude00\ud83d"', r"\ude00\ud83d"),
        (r'"cut \ud83d"', r"cut \ud83d"),
    ],
)
def test_nul_and_lone_surrogates_are_escaped_and_listed(source: str, shown: str) -> None:
    row = with_text(source)
    assert text_of(row) == shown
    assert row["escaped"] == ["messages[message-1].content[0].text"]
    assert trajectory_document(stored(row)) == trajectory_document(row)
    assert messages_of(data_of(row))[0]["content"][0]["text"] == shown


def test_surrogate_pair_is_one_character_and_not_escaped() -> None:
    row = with_text(r'"\ud83d\ude00"')
    assert (text_of(row), row["escaped"]) == ("😀", [])


def test_escaped_text_differs_from_the_same_text_in_the_digest() -> None:
    escaped, written = with_text(r'"\u0000"'), with_text(r'"\\u0000"')
    assert text_of(escaped) == text_of(written) == r"\u0000"
    assert (bool(escaped["escaped"]), bool(written["escaped"])) == (True, False)
    assert escaped["content_digest"] != written["content_digest"]


def test_nul_in_an_argument_string_is_escaped_where_it_is_parsed() -> None:
    inner = r'{"message": "zero \u0000 and \ud83d"}'
    row = converted(message(1, tool_calls=[call("send_message", inner)]), agent=agent("memgpt_agent"))
    (sent,) = messages_of(trajectory_document(row))
    assert sent["tool_calls"][0]["function"]["arguments"] == inner
    assert sent["assistant_text"] == r"zero \u0000 and \ud83d"
    assert row["escaped"] == ["messages[message-1].assistant_text"]
    data_of(row)


def test_key_with_a_nul_is_escaped_and_listed() -> None:
    row = converted(message(1, content=r'[{"type": "odd", "a\u0000": {"b\ud83d": "\u0000"}}]'))
    assert messages_of(trajectory_document(row))[0]["content"] == [{"type": "odd", r"a\u0000": {r"b\ud83d": r"\u0000"}}]
    place = "messages[message-1].content[0]"
    assert row["escaped"] == [
        f"{place} (key)",
        rf"{place}.a\u0000 (key)",
        rf"{place}.a\u0000.b\ud83d",
    ]
    data_of(row)


def test_every_text_of_the_document_can_be_escaped() -> None:
    call_of_nuls = r'{"id": "\u0000", "function": {"name": "\ud83d", "arguments": "\u0000"}, "type": "function"}'
    return_of_nuls = r'{"tool_call_id": "\u0000", "status": "error", "stdout": ["\ud83d"], "func_response": "\u0000"}'
    denial_of_nuls = r'{"type": "approval", "tool_call_id": "\u0000", "approve": false, "reason": "\ud83d"}'
    row = converted(
        message(1, tool_calls=f"[{call_of_nuls}]", tool_returns=f"[{return_of_nuls}]", approvals=f"[{denial_of_nuls}]"),
        steps=[step(error_data=r'{"message": "\u0000"}', tags=r'["\ud83d"]')],
        metadata_=r'{"run_type": "\u0000", "error": {"message": "\ud83d"}, "other": "\u0000"}',
    )
    assert sorted(row["escaped"]) == [
        "messages[message-1].approvals[0].reason",
        "messages[message-1].approvals[0].tool_call_id",
        "messages[message-1].tool_calls[0].function.arguments",
        "messages[message-1].tool_calls[0].function.name",
        "messages[message-1].tool_calls[0].id",
        "messages[message-1].tool_returns[0].func_response",
        "messages[message-1].tool_returns[0].stdout[0]",
        "messages[message-1].tool_returns[0].tool_call_id",
        "runs[run-1].metadata_.error.message",
        "runs[run-1].metadata_.run_type",
        "steps[step-1].error_data.message",
        "steps[step-1].tags[0]",
    ]
    assert messages_of(row)[0]["tool_returns"][0]["denied"] is True
    data_of(row)
    assert trajectory_document(stored(row)) == trajectory_document(row)


def test_escaped_ignores_what_is_not_in_the_document() -> None:
    row = converted(
        steps=[step(prompt_tokens_details=r'{"\u0000": 1}')],
        request_config=r'{"odd": "\ud83d"}',
        metadata_=r'{"other": "\u0000", "errors": "\ud83d"}',
    )
    assert row["escaped"] == []


def test_sample_has_runs_with_a_lone_surrogate() -> None:
    rows = [convert_run(raw, HOUR) for raw in sample_runs() if "\\ud83d" in json.dumps(raw, default=str)]
    escaped = [row for row in rows if row["escaped"]]
    assert escaped
    for row in escaped:
        assert rb"\\ud83d" in postgres_document(row)[0]


# --- scripts


@pytest.mark.parametrize(
    "text",
    [
        "שלום \u202eabc\u202c",
        "e\u0301\u0323",
        "👩‍👩‍👧",
        "\u2028\u2029\u0085",
        "ﷺ",
        "\ufeffmark",
        "\ufffd",
        "\U0010ffff",
    ],
)
def test_right_to_left_and_combining_text_is_not_normalized(text: str) -> None:
    for written in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        row = with_text(written)
        assert text_of(row) == text_of(stored(row)) == text
        assert messages_of(data_of(row))[0]["content"][0]["text"] == text
        assert row["escaped"] == []


# --- size


def test_text_of_megabytes_is_whole_in_both_documents() -> None:
    text = "ab\u0000é" * 1_000_000
    began = time.perf_counter()
    row = with_text(json.dumps(text))
    assert len(text_of(stored(row))) == 4_000_000 + 5 * 1_000_000
    assert len(messages_of(data_of(row))[0]["content"][0]["text"]) == len(text_of(row))
    assert time.perf_counter() - began < 30


def test_document_too_long_for_jsonb_is_omitted_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trajectory_pipeline.conversion.document.MAX_JSONB_BYTES", 50_000)
    row = with_text(json.dumps("x" * 60_000))
    text, reason = postgres_document(row)
    assert text is None
    assert "bytes" in str(reason)
    assert "50000" in str(reason)
    assert text_of(stored(row)) == "x" * 60_000


# --- depth


def nested(levels: int, inner: str = '"seed"') -> str:
    return '{"a": ' * levels + inner + "}" * levels


@pytest.mark.parametrize("levels", [MAX_DEPTH - 10, MAX_DEPTH + 1, 2 * MAX_DEPTH, 5_000, 100_000])
def test_deep_nesting_is_whole_in_parquet(levels: int) -> None:
    deep = nested(levels)
    row = converted(message(1, content=f'[{{"type": "odd", "deep": {deep}}}]'))
    (part,) = messages_of(stored(row))[0]["content"]
    assert part["json"].replace(" ", "") == f'{{"type":"odd","deep":{deep}}}'.replace(" ", "")
    assert trajectory_document(stored(row)) == trajectory_document(row)
    text, reason = postgres_document(row)
    if levels < MAX_DEPTH:
        assert text is not None
    else:
        assert text is None
        assert f"nested more than {MAX_DEPTH} levels" in str(reason)


def test_value_nested_too_deeply_keeps_its_text() -> None:
    inner = r'[1.50,  "\u0000", {"k": 1, "k": 2}]'
    row = converted(message(1, content=f'[{{"type": "odd", "deep": {nested(MAX_DEPTH + 20, inner)}}}]'))
    value = messages_of(trajectory_document(row))[0]["content"][0]["deep"]
    while isinstance(value, dict):
        value = value["a"]
    assert isinstance(value, Verbatim)
    assert inner in value.text


def test_deep_nesting_is_independent_of_the_call_stack() -> None:
    raw = raw_run(message(1, content=f'[{{"type": "odd", "deep": {nested(MAX_DEPTH)}}}]'))

    def from_below(levels: int) -> Row:
        return convert_run(raw, HOUR) if levels == 0 else from_below(levels - 1)

    assert from_below(300) == from_below(0)


@pytest.mark.parametrize("wrong", ["[1,]", "NaN", '{"a" 1}', "[1", "]", ""])
def test_invalid_json_is_refused_at_any_depth(wrong: str) -> None:
    for levels in (1, MAX_DEPTH + 1, 3 * MAX_DEPTH):
        (item,) = batch_converted(
            raw_run(message(1, content=f'[{{"type": "odd", "deep": {nested(levels, wrong)}}}]'))
        ).quarantined
        assert item.json_path == "messages[message-1].content"
        assert "is not valid JSON" in item.error


def test_deep_arguments_and_text_are_converted() -> None:
    deep = nested(5_000)
    row = converted(
        message(1, "user", deep),
        message(2, tool_calls=[call("send_message", deep), call("send_message", deep)]),
    )
    assert row["signals"]["repeated_calls"] == 1
    assert messages_of(row)[0]["kind"] == "user"


def test_deep_metadata_and_error_data_are_converted() -> None:
    row = converted(
        steps=[step(error_data=f'{{"message": "deep", "details": {nested(2_000)}}}')],
        metadata_=f'{{"error": {{"message": "deep", "detail": {nested(2_000)}}}}}',
        status="failed",
    )
    assert row["error"]["detail"].count("{") == 2_000
    assert row["turns"][0]["error"]["detail"].count("{") == 2_001
    data_of(row)


# --- numbers


@pytest.mark.parametrize(
    "number",
    [
        "9007199254740993",
        "18446744073709551616",
        "-123456789012345678901234567890",
        "0.1234567890123456789012345678901234567890",
        "1e400",
        "-1.5E-400",
        "1" * 4_300,
    ],
)
def test_number_keeps_all_its_digits_in_both_sinks(number: str) -> None:
    row = converted(message(1, content=f'[{{"type": "odd", "n": {number}}}]'))
    for converted_row in (row, stored(row)):
        assert as_decimal(messages_of(trajectory_document(converted_row))[0]["content"][0]["n"]) == Decimal(number)
    text, reason = postgres_document(row)
    assert reason is None
    assert messages_of(json.loads(text, parse_int=Decimal, parse_float=Decimal))[0]["content"][0]["n"] == Decimal(
        number
    )


def as_decimal(number: Any) -> Decimal:
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)


@pytest.mark.parametrize("number", ["1e200000", "1" * 140_000, "1e-20000", "1e99999999999999999999"])
def test_number_beyond_numeric_omits_the_document_with_the_reason(number: str) -> None:
    row = converted(message(1, content=f'[{{"type": "odd", "n": {number}}}]'))
    text, reason = postgres_document(row)
    assert text is None
    assert "number beyond Postgres numeric" in str(reason)
    written = messages_of(stored(row))[0]["content"][0]["json"]
    assert written.lower().replace("+", "") == f'{{"type":"odd","n":{number}}}'


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_quarantined_by_name(constant: str) -> None:
    conversion = batch_converted(raw_run(message(1, content=f'[{{"type": "odd", "n": {constant}}}]')))
    (item,) = conversion.quarantined
    assert constant in item.error
    assert item.json_path == "messages[message-1].content"
    assert constant in item.raw


def test_nan_in_an_argument_string_stays_text() -> None:
    row = converted(message(1, tool_calls=[call("roll_dice", '{"a": NaN}'), call("roll_dice", '{"a":NaN}')]))
    assert row["signals"]["tool_calls"] == 2
    data_of(row)


# --- keys, blanks, images


def test_duplicate_keys_take_the_last_value_as_jsonb_does() -> None:
    row = converted(message(1, content='[{"type": "text", "text": "first", "text": "last", "signature": null}]'))
    assert text_of(row) == text_of(stored(row)) == "last"


@pytest.mark.parametrize("blank", ["", " ", "\n\t\r "])
def test_whitespace_between_tokens_changes_nothing(blank: str) -> None:
    source = blank.join(["[", "{", '"type"', ":", '"text"', ",", '"text"', ":", '"Hi"', "}", "]", ""])
    row = converted(message(1, content=source))
    assert messages_of(trajectory_document(row))[0]["content"] == [{"type": "text", "text": "Hi"}]
    assert row["content_digest"] == converted(message(1, content=[{"type": "text", "text": "Hi"}]))["content_digest"]


def test_image_is_whole_in_parquet_and_a_stub_in_postgres() -> None:
    source = {"type": "letta", "file_id": "file-1", "media_type": "image/png", "data": "AAECAw==", "detail": None}
    row = converted(message(1, "user", content=[{"type": "image", "source": source}]))
    assert messages_of(trajectory_document(stored(row)))[0]["content"][0]["source"] == source
    assert messages_of(row)[0]["content"][0]["media_type"] == "image/png"
    shown = messages_of(data_of(row))[0]["content"][0]["source"]
    assert shown == {
        **{name: value for name, value in source.items() if name != "data"},
        "stub": {"bytes": 4, "sha256": hashlib.sha256(bytes([0, 1, 2, 3])).hexdigest()},
    }


def test_image_of_invalid_base64_has_a_stub_that_says_so() -> None:
    row = converted(message(1, content=[{"type": "image", "source": {"data": "no base64!"}}]))
    assert messages_of(data_of(row))[0]["content"][0]["source"]["stub"] == {
        "bytes": 10,
        "sha256": hashlib.sha256(b"no base64!").hexdigest(),
        "invalid_base64": True,
    }
    assert messages_of(trajectory_document(row))[0]["content"][0]["source"]["data"] == "no base64!"


def test_image_in_a_tool_return_becomes_a_stub() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}}
    row = converted(
        message(1, "tool", tool_returns=[returned(text=[{"type": "text", "text": "see"}, image])]),
        message(2, "tool", content=[{"type": "tool_return", "tool_call_id": "call-1", "content": [image]}]),
    )
    assert "AAEC" not in json.dumps(data_of(row))
    assert json.dumps(documented(message(1, content=[image]))).count("AAEC") == 1
