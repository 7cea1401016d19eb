"""A search that found no word says so: what is nearest by meaning may be far."""

from dataclasses import dataclass

import pytest

from trajectory_pipeline.search.found_by_meaning import found_by_meaning_alone


@dataclass(frozen=True)
class Hit:
    words_rank: int | None
    similarity: float | None


NEAR, FAR, BY_WORDS = Hit(None, 0.31), Hit(None, 0.174), Hit(1, None)


def test_nearest_similarity_is_reported_where_no_word_matches() -> None:
    said = found_by_meaning_alone([FAR, NEAR], "hybrid")
    assert said is not None
    assert "No run that was found has a word of the query" in said
    assert "at most 0.31" in said


@pytest.mark.parametrize(
    ("hits", "mode"), [([NEAR, BY_WORDS], "hybrid"), ([], "hybrid"), ([NEAR], "meaning"), ([BY_WORDS], "words")]
)
def test_nothing_is_reported_where_a_word_matches_or_none_was_searched(hits: list[Hit], mode: str) -> None:
    assert found_by_meaning_alone(hits, mode) is None
