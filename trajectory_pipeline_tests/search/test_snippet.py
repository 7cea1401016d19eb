"""A snippet is one line of limited length, around the most telling word that the text has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.search.snippet import LENGTH, snippet

LONG = " ".join(f"word{n}" for n in range(200))


def test_a_short_text_is_shown_whole_on_one_line() -> None:
    assert snippet("Task: a\n\n b", ["'b'"]) == "Task: a b"


@pytest.mark.parametrize("word", ["word0", "WORD100", "word199"])
def test_the_first_term_that_stands_in_the_text_is_shown(word: str) -> None:
    shown = snippet(LONG, ["'missing'", f"'{word.lower()}' <-> 'x'", "'word50'"])
    assert word.lower() in shown.split()
    assert len(shown) <= LENGTH + 4
    assert shown.startswith("… ") == (word != "word0")
    assert shown.endswith(" …") == (word != "word199")


def test_without_a_term_the_beginning_is_shown() -> None:
    assert snippet(LONG, []).startswith("word0 word1 ")


@given(st.text(min_size=LENGTH, max_size=3 * LENGTH), st.integers(0, 700))
def test_any_text_is_shown_in_its_own_characters(text: str, place: int) -> None:
    word = text[place : place + 9].replace("'", "''").replace("\\", "\\\\")
    shown = snippet(text, [f"'{word}'"])
    assert len(shown) <= LENGTH + 4
    assert shown.removeprefix("… ").removesuffix(" …") in " ".join(text.split())
