"""Wilson's interval against published values, and what must hold of any interval of a share."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.quality.intervals import wilson_interval


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(count: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_holds_the_share_within_0_and_1(pair: tuple[int, int]) -> None:
    count, total = pair
    interval = wilson_interval(count, total)
    assert interval is not None
    low, high = interval
    assert 0 <= low <= count / total <= high <= 1
    other = wilson_interval(total - count, total)
    assert other is not None
    assert math.isclose(other[0], 1 - high, abs_tol=1e-12)


def test_wilson_interval_of_nothing_is_none() -> None:
    assert wilson_interval(0, 0) is None


@pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3)])
def test_wilson_interval_of_no_share_is_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(count, total)
