"""The chi-square test against published values, and how often it finds drift where there is none."""

import random

import pytest

from benchmarks.drift import MIXES, detected, simulated_year
from trajectory_pipeline.quality.drift import MIN_RUNS, chi_square_tail, find_drift, homogeneity_p_value


@pytest.mark.parametrize(
    ("statistic", "degrees", "tail"),
    # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4, upper critical values.
    [(3.841, 1, 0.05), (10.828, 1, 0.001), (5.991, 2, 0.05), (7.815, 3, 0.05), (16.266, 3, 0.001), (18.307, 10, 0.05)],
)
def test_chi_square_tail_equals_published_values(statistic: float, degrees: int, tail: float) -> None:
    assert chi_square_tail(statistic, degrees) == pytest.approx(tail, rel=0.002)


def test_homogeneity_of_equal_shares_is_certain() -> None:
    assert homogeneity_p_value([(10, 40), (30, 120)]) == 1.0


def test_find_drift_with_doubled_failures_names_the_category() -> None:
    drift = find_drift({"success": 60, "failure": 40}, {"success": 320, "failure": 80})
    assert drift.found
    assert (drift.grown, round(drift.shift, 2)) == ("failure", 0.2)


def test_find_drift_with_few_runs_says_nothing() -> None:
    drift = find_drift({"failure": MIN_RUNS - 1}, {"success": 1000})
    assert (drift.p_value, drift.found) == (None, False)


def test_find_drift_with_tiny_shift_in_many_runs_is_not_found() -> None:
    assert not find_drift({"a": 51_000, "b": 49_000}, {"a": 500_000, "b": 500_000}).found


def test_find_drift_pools_rare_categories() -> None:
    recent = {"success": 100, **{f"rare {number}": 1 for number in range(3)}}
    assert not find_drift(recent, {"success": 400}).found


@pytest.mark.parametrize("name", MIXES)
def test_find_drift_in_stationary_years_is_rarely_found(name: str) -> None:
    generator = random.Random(7)
    assert sum(bool(simulated_year(MIXES[name], 20, generator)) for _ in range(20)) <= 2


def test_find_drift_of_doubled_failures_is_mostly_found() -> None:
    generator = random.Random(7)
    assert sum(detected(MIXES["outcomes"], "failure", 40, generator) for _ in range(50)) >= 45
