"""The contract of arguments: an object only where it says the same as the text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.exports.source import parse_arguments

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_object_is_given_back(value: dict[str, object]) -> None:
    parsed = parse_arguments(json.dumps(value))
    assert parsed.value == value
    assert list(parsed.value or {}) == list(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[1]", "{", '"text"', "7", "city=Oslo", '{"a": NaN}', '{"a": 1, "a": 2}'),
        *('{"a": 0.1000000000000000055511151231257827}', '{"a": 1e999}', "[" * 100_000),
    ],
)
def test_text_that_an_object_cannot_give_back_stays_text(text: str) -> None:
    parsed = parse_arguments(text)
    assert (parsed.text, parsed.value) == (text, None)
