"""The contract of splits: what belongs together is never apart, and a group stays where it is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.exports.splits import SPLITS, SplitShares, groups_of, split_of

KEYS = st.dictionaries(st.text("rstuv", min_size=1, max_size=3), st.sets(st.sampled_from("abcdefgh"), max_size=3))
SHARES = SplitShares(0.6, 0.2, 0.2)


@given(KEYS)
def test_runs_that_share_a_key_are_in_one_group(keys: dict[str, set[str]]) -> None:
    groups = groups_of(keys)
    assert groups.keys() == keys.keys()
    for one in keys:
        for other in keys:
            if keys[one] & keys[other]:
                assert groups[one] == groups[other]


@given(KEYS)
def test_runs_that_nothing_connects_are_apart(keys: dict[str, set[str]]) -> None:
    groups = groups_of(keys)
    for one in keys:
        connected, keys_seen = {one}, set(keys[one])
        while grown := {run for run in keys if run not in connected and keys[run] & keys_seen}:
            connected |= grown
            keys_seen |= {key for run in grown for key in keys[run]}
        assert {run for run in keys if groups[run] == groups[one]} == connected


@given(st.text(max_size=20), st.integers(0, 5))
def test_split_of_a_group_depends_on_nothing_else(group: str, seed: int) -> None:
    assert split_of(group, SHARES, seed) == split_of(group, SHARES, seed)
    assert split_of(group, SHARES, seed) in SPLITS


def test_shares_hold_over_many_groups() -> None:
    splits = [split_of(f"chain {number}", SHARES, 1) for number in range(10_000)]
    assert abs(splits.count("train") / 10_000 - 0.6) < 0.02
    assert {split_of(f"chain {number}", SplitShares(1, 0, 0), 1) for number in range(1_000)} == {"train"}


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (-0.1, 1, 0.1), (0, 0, 0), (math.nan, 0.5, 0.5), (math.inf, 0, 0)])
def test_shares_that_are_none_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        SplitShares(*shares)
