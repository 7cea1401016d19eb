"""Corrected rates: weighted by design, and with intervals that hold the truth as often as they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.corrected_rates import KINDS, measure
from trajectory_pipeline.quality.corrected_rates import MIN_LABELS, JudgedRun, corrected_rate, effective_counts

JUDGED = st.sampled_from(["success", "failure", None])
RUN = st.builds(
    lambda judged, labelled, probability: JudgedRun(judged, labelled, None if labelled is None else probability),
    JUDGED,
    st.none() | st.booleans(),
    st.floats(0.01, 1.0) | st.none(),
)


def test_corrected_rate_without_labels_is_not_given() -> None:
    rate = corrected_rate([JudgedRun("success")] * 50)
    assert (rate.runs, rate.labels, rate.rate, rate.low, rate.high) == (50, 0, None, None, None)


def test_corrected_rate_of_fewer_labels_than_needed_is_not_given() -> None:
    runs = [JudgedRun("success", True, 0.1)] * (MIN_LABELS - 1) + [JudgedRun("success")] * 50
    assert corrected_rate(runs).rate is None


def test_corrected_rate_leaves_out_labels_that_no_design_drew() -> None:
    assert corrected_rate([JudgedRun("success", True)] * 50).labels == 0


def test_corrected_rate_of_labelled_runs_is_exact() -> None:
    runs = [JudgedRun("success", True, 1.0)] * 60 + [JudgedRun("success", False, 1.0)] * 40
    rate = corrected_rate(runs)
    assert (rate.rate, rate.low, rate.high) == (0.6, 0.6, 0.6)


def test_corrected_rate_subtracts_the_judges_leniency() -> None:
    """The judge calls all runs a success; by their labels, half of those are not."""
    runs = [JudgedRun("success", at % 2 == 0, 0.1) for at in range(100)] + [JudgedRun("success")] * 900
    rate = corrected_rate(runs)
    assert rate.rate == pytest.approx(0.5)
    assert rate.low is not None
    assert rate.high is not None
    assert 0.38 < rate.low < 0.42
    assert 0.58 < rate.high < 0.62


def test_corrected_rate_weighs_labels_by_inclusion_probability() -> None:
    """Ten of 1,000 ordinary runs were drawn, all successes, and all 50 suspicious ones, no success."""
    runs = (
        [JudgedRun("success", True, 0.01)] * 10 + [JudgedRun("success")] * 990 + [JudgedRun("success", False, 1.0)] * 50
    )
    rate = corrected_rate(runs)
    assert rate.rate == pytest.approx(1000 / 1050)


def test_corrected_rate_of_runs_that_nobody_drew_is_wide() -> None:
    """A census was labelled, and as many runs came since: nothing is known of these."""
    rate = corrected_rate([JudgedRun("success", True, 1.0)] * 50 + [JudgedRun("success")] * 50)
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < 0.52
    assert rate.high > 0.98


def test_corrected_rate_equals_difference_estimator() -> None:
    """With equal weights, it is the mean prediction plus the mean error of the strata's fitted predictions."""
    labelled = (
        [("success", True)] * 30 + [("success", False)] * 10 + [("failure", True)] * 5 + [("failure", False)] * 15
    )
    runs = [JudgedRun(judged, value, 0.2) for judged, value in labelled]
    runs += [JudgedRun("success")] * 160 + [JudgedRun("failure")] * 80
    fitted = {"success": 30 / 40, "failure": 5 / 20}
    predictions = sum(fitted[str(run.judged)] for run in runs) / len(runs)
    rectifier = sum(value - fitted[judged] for judged, value in labelled) / len(labelled)
    assert corrected_rate(runs).rate == pytest.approx(predictions + rectifier)


@given(st.lists(RUN, min_size=1, max_size=60))
def test_corrected_rate_is_within_its_interval(runs: list[JudgedRun]) -> None:
    rate = corrected_rate(runs)
    if rate.rate is None:
        assert rate.labels < MIN_LABELS
    else:
        assert rate.low is not None
        assert rate.high is not None
        assert 0 <= rate.low <= rate.rate <= rate.high <= 1 + 1e-12


@given(st.lists(RUN, min_size=1, max_size=60), st.randoms())
def test_corrected_rate_does_not_depend_on_the_order(runs: list[JudgedRun], random: object) -> None:
    shuffled = sorted(runs, key=lambda run: (str(run.judged), str(run.labelled), str(run.inclusion_probability)))
    first, second = corrected_rate(runs), corrected_rate(shuffled)
    assert (first.rate, first.low, first.high) == pytest.approx((second.rate, second.low, second.high))


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 100.0)), max_size=50))
def test_effective_counts_never_exceed_the_sample(sample: list[tuple[bool, float]]) -> None:
    counts = effective_counts([value for value, _ in sample], [weight for _, weight in sample])
    assert 0 <= counts.share <= 1
    assert 0 <= counts.size <= sum(weight > 0 for _, weight in sample) + 1e-9


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "perfect judge"])
def test_corrected_rate_interval_holds_the_truth(kind: str) -> None:
    """Of 150 worlds; the benchmark takes 1,000. Three standard errors of 95 % in 150 are 5.3 %."""
    assert measure(kind, 150, seed=1).corrected > 0.95 - 0.053


def test_corrected_rate_interval_of_a_perfect_judge_is_careful() -> None:
    """No sample shows that a judge never errs, so that its interval holds the truth more often than 95 %."""
    coverage = measure("perfect judge", 50, seed=1)
    assert coverage.corrected == 1.0
    assert coverage.width < 0.1
