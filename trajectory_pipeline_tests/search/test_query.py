"""The text of a ``tsquery`` is taken apart into words, required phrases and exclusions."""

import pytest

from trajectory_pipeline.search.query import WordQuery, check_query, quoted_phrases, word_query


@pytest.mark.parametrize(
    ("tsquery", "phrases", "expected"),
    [
        ("", [], WordQuery((), (), ())),
        ("'a' & 'b' & 'a'", [], WordQuery(("'a'", "'b'"), (), ())),
        ("'late' <-> 'parcel' & !'x'", ["'late' <-> 'parcel'"], WordQuery(
            ("'late' <-> 'parcel'",), ("'late' <-> 'parcel'",), ("'x'",)
        )),
        ("'a' | 'b' <2> 'c' & !( 'd' <-> 'e' )", ["'b' <2> 'c'"], WordQuery(
            ("'a'", "'b' <2> 'c'"), (), ("'d' <-> 'e'",)
        )),
        ("'o''neil & !' & 'back\\\\slash'", [""], WordQuery(("'o''neil & !'", "'back\\\\slash'"), (), ())),
    ],
)  # fmt: skip
def test_words_phrases_and_exclusions(tsquery: str, phrases: list[str], expected: WordQuery) -> None:
    assert word_query(tsquery, phrases) == expected


def test_what_is_quoted_is_found_unless_it_has_a_minus() -> None:
    assert quoted_phrases('a "late parcel" -"not this" " " "open end') == ["late parcel", "open end"]


def test_a_word_that_postgres_cannot_search_for_is_left_out() -> None:
    assert check_query(f"refund {'退' * 700} late") == "refund late"
