"""Fusion by reciprocal rank: only ranks count, what is in both lists comes first, ties are by id."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.search.fusion import fuse_ranks

_lists = st.lists(st.lists(st.text("abcdef", min_size=1, max_size=1), unique=True), max_size=3).map(
    lambda lists: [{one: rank for rank, one in enumerate(ids, start=1)} for ids in lists]
)


@given(_lists)
def test_all_is_fused_in_order_of_score_and_id(lists: list[dict[str, int]]) -> None:
    fused = fuse_ranks(lists)
    assert {one for one, _ in fused} == set(itertools.chain.from_iterable(lists))
    assert fused == sorted(fused, key=lambda scored: (-scored[1], scored[0]))
    for one, score in fused:
        assert score == pytest.approx(sum(1 / (60 + ranks[one]) for ranks in lists if one in ranks))


@given(_lists)
def test_the_order_of_the_lists_does_not_count(lists: list[dict[str, int]]) -> None:
    assert [one for one, _ in fuse_ranks(lists)] == [one for one, _ in fuse_ranks(lists[::-1])]


def test_what_is_in_both_lists_comes_before_what_is_first_in_one() -> None:
    assert [one for one, _ in fuse_ranks([{"a": 1, "c": 9}, {"b": 1, "c": 9}])] == ["c", "a", "b"]
