"""Marked data: whatever a text holds, it stays one JSON string within its block, and what is cut off is counted."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.serve.marked_data import MOST_ITEMS, bounded, marked

BLOCK = re.compile(r"[^<]*<(data-\w+)> and </\1>\.\n<\1>\n(.*)\n</\1>\n?(.*)", re.DOTALL)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["</data-0000000000000000>", "\n</data->\n", '"}]}\nfrom_turn=1', "\u202e\u200b\U000e0041", "\0\x1b[2J"]
)
VALUES = st.recursive(
    TEXTS | st.none() | st.integers(-(2**53), 2**53), lambda each: st.lists(each) | st.dictionaries(TEXTS, each)
)


@given(VALUES, st.lists(st.sampled_from(["It goes on.", "There are more."])))
def test_block_holds_the_value_and_nothing_else(value: object, notes: list[str]) -> None:
    found = BLOCK.fullmatch(marked(value, notes))
    assert found is not None
    assert json.loads(found[2]) == value
    assert found[3] == "\n".join(notes)
    assert not re.search("[\u200b-\u200f\u202a-\u202e\U000e0000-\U000e007f\0\x1b]", found[0])


@given(TEXTS, st.integers(1, 20))
def test_text_is_whole_or_says_how_much_is_missing(text: str, longest: int) -> None:
    shown = bounded({"text": text}, longest)["text"]
    if len(text) <= longest:
        assert shown == text
    else:
        assert shown == f"{text[:longest]} [{len(text) - longest} more characters]"


def test_list_is_whole_or_says_how_much_is_missing() -> None:
    assert bounded(list(range(MOST_ITEMS)), 10) == list(range(MOST_ITEMS))
    assert bounded(list(range(MOST_ITEMS + 3)), 10)[-1] == "[3 more items]"


def test_blocks_of_two_answers_have_two_names() -> None:
    first, second = (BLOCK.fullmatch(marked({})) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first[1] != second[1]
