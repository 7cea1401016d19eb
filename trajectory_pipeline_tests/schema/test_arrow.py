"""Rows of Arrow as Python's values: the same as Arrow's own, whatever they hold, and with other texts where asked."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.schema.arrow import leaf_paths, rows_of, without_fields

PART = pa.struct([("text", pa.string()), ("tags", pa.list_(pa.string())), ("count", pa.int64())])
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("local", pa.timestamp("us")),
        ("share", pa.float64()),
        ("done", pa.bool_()),
        ("cost", pa.decimal128(18, 9)),
        ("one", PART),
        ("parts", pa.list_(PART)),
        ("lists", pa.list_(pa.list_(pa.string()))),
    ]
)
TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
PARTS = st.none() | st.fixed_dictionaries(
    {
        "text": TEXTS,
        "tags": st.none() | st.lists(TEXTS, max_size=3),
        "count": st.none() | st.integers(-(2**63), 2**63 - 1),
    }
)
ROWS = st.fixed_dictionaries(
    {
        "name": TEXTS,
        "at": st.none() | st.datetimes(timezones=st.just(UTC)),
        "local": st.none() | st.datetimes(),
        "share": st.none() | st.floats(allow_nan=False),
        "done": st.none() | st.booleans(),
        "cost": st.none() | st.decimals(-999, 999, places=9),
        "one": PARTS,
        "parts": st.none() | st.lists(PARTS, max_size=3),
        "lists": st.none() | st.lists(st.none() | st.lists(TEXTS, max_size=2), max_size=2),
    }
)


def batch_of(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)


def shouted(field: str, texts: Sequence[str]) -> list[str | None]:
    return [None if field == "name" else f"{field} {text}!" for text in texts]


def shouted_value(field: str, value: Any) -> Any:
    if isinstance(value, str):
        return shouted(field, [value])[0]
    if isinstance(value, list):
        return [shouted_value(field, item) for item in value]
    return {name: shouted_value(name, item) for name, item in value.items()} if isinstance(value, dict) else value


@given(st.lists(ROWS, max_size=6), st.integers(0, 6))
def test_rows_are_those_of_arrow_in_a_slice_too(rows: list[dict[str, Any]], start: int) -> None:
    batch = batch_of(rows).slice(min(start, len(rows)))
    assert rows_of(batch) == batch.to_pylist()


@given(st.lists(ROWS, max_size=6))
def test_every_text_is_changed_by_the_name_of_its_field(rows: list[dict[str, Any]]) -> None:
    batch = batch_of(rows)
    assert rows_of(batch, shouted) == [shouted_value("", row) for row in batch.to_pylist()]


@pytest.mark.parametrize("moment", [-(2**62), 2**62])
def test_time_that_python_cannot_hold_is_text_and_other_fields_are_changed_all_the_same(moment: int) -> None:
    times = pa.array([moment], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    batch = pa.RecordBatch.from_arrays([times, pa.array([["a"]])], ["at", "texts"])
    (row,) = rows_of(batch, shouted)
    assert isinstance(row["at"], str)
    assert row["texts"] == ["texts a!"]


def test_text_that_is_no_utf_8_begins_with_nul_and_is_changed() -> None:
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xff"]).buffers())
    (row,) = rows_of(pa.RecordBatch.from_arrays([wrong], ["text"]), shouted)
    assert row == {"text": "text \0a\\xff!"}


def test_text_that_stands_in_many_rows_is_changed_once() -> None:
    asked: list[str] = []

    def note(field: str, texts: Sequence[str]) -> Sequence[str]:
        asked.extend(texts)
        return texts

    rows_of(pa.RecordBatch.from_pylist([{"a": "x"}] * 5 + [{"a": "y"}]), note)
    assert asked == ["x", "y"]


def test_fields_are_left_out_at_any_depth() -> None:
    left = without_fields(SCHEMA, frozenset({"tags", "one"}))
    assert "one" not in left.names
    assert leaf_paths(left)[-3:] == [
        "parts.list.element.text",
        "parts.list.element.count",
        "lists.list.element.list.element",
    ]


def test_time_keeps_its_zone() -> None:
    moment = datetime(2025, 6, 1, tzinfo=UTC)
    (row,) = rows_of(pa.RecordBatch.from_pylist([{"at": moment}], schema=pa.schema([("at", SCHEMA.field("at").type)])))
    assert row["at"].utcoffset() == timedelta(0)
    assert row["at"] == moment
