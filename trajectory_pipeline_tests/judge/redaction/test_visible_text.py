"""Visible text: what a reader does not see is left out, and each character leads back to where it stood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.judge.redaction.visible_text import visible_text

HIDDEN = ["\x1b[1;32m", "\x1b[0m", "\x1b]0;title\x07", "\u200b", "\u00ad", "\ufeff", "\\u001b[31m", "\\x1b[0m", "&shy;"]
ENCODED = {"&quot;": '"', "%3D": "=", "%253D": "=", "\\u0026": "&", "\uff1a": ":", "\u00a0": " "}
PLAIN = st.text("abcXYZ019 .\n", min_size=1, max_size=8)


@given(st.lists(st.one_of(PLAIN, st.sampled_from(HIDDEN), st.sampled_from(sorted(ENCODED))), max_size=12))
def test_visible_text_leads_back_to_the_original(pieces: list[str]) -> None:
    shown = [ENCODED.get(piece, "" if piece in HIDDEN else piece) for piece in pieces]
    text = "".join(pieces)
    visible = visible_text(text)
    assert visible.text == "".join(shown)
    at = 0
    for start, piece in enumerate(visible.text):
        begin, end = visible.original(start, start + 1)
        assert begin >= at
        assert text[begin:end] in (piece, *(encoded for encoded, plain in ENCODED.items() if plain == piece))
        at = end


@pytest.mark.parametrize("hidden", HIDDEN)
def test_value_with_hidden_characters_is_replaced_alone(hidden: str) -> None:
    redacted = Redactor(key=b"a key of tests")(f"{hidden}password{hidden}: tiger{hidden}lily7{hidden} and more")
    assert redacted.startswith(f"{hidden}password{hidden}: [secret:password:")
    assert redacted.endswith(f"]{hidden} and more")
