"""Agreement: the numbers are those of scikit-learn and krippendorff, and the intervals cover what was planted."""

import math
import random
from collections.abc import Sequence

import krippendorff
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, precision_score, recall_score

from trajectory_pipeline.demo.letta_sample.labels import FIRST_ANNOTATOR, SECOND_ANNOTATOR, label_records
from trajectory_pipeline.quality.agreement import (
    Estimate,
    Pair,
    agreement,
    agreement_on,
    alpha,
    confusion,
    kappa,
    precision,
    recall,
    share,
)

VALUES = ("success", "partial_success", "failure", "unknown")
_PAIRS = st.lists(
    st.builds(
        Pair,
        st.sampled_from(VALUES),
        st.sampled_from(VALUES),
        st.floats(0.1, 20),
        st.sampled_from(("", "a", "b", "c")),
    ),
    min_size=1,
    max_size=60,
)


def firsts(pairs: Sequence[Pair]) -> list[str]:
    return [pair.first for pair in pairs]


def seconds(pairs: Sequence[Pair]) -> list[str]:
    return [pair.second for pair in pairs]


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


@given(_PAIRS)
def test_kappa_equals_scikit_learn(pairs: list[Pair]) -> None:
    assume(len({*firsts(pairs), *seconds(pairs)}) > 1)
    weights = [pair.weight for pair in pairs]
    expected = cohen_kappa_score(firsts(pairs), seconds(pairs), sample_weight=weights)
    assert value(kappa(pairs)) == pytest.approx(expected, abs=1e-9)


@given(_PAIRS)
def test_quadratic_kappa_equals_scikit_learn(pairs: list[Pair]) -> None:
    ranks = [VALUES.index(word) for word in (*firsts(pairs), *seconds(pairs))]
    assume(len(set(ranks)) > 1)
    count = len(pairs)
    expected = cohen_kappa_score(
        ranks[:count],
        ranks[count:],
        labels=range(4),
        weights="quadratic",
        sample_weight=[pair.weight for pair in pairs],
    )
    assert value(kappa(pairs, VALUES)) == pytest.approx(expected, abs=1e-9)


@given(_PAIRS)
def test_precision_and_recall_equal_scikit_learn(pairs: list[Pair]) -> None:
    options = {
        "labels": ["failure"],
        "average": "micro",
        "sample_weight": [pair.weight for pair in pairs],
        "zero_division": np.nan,
    }
    for ours, theirs in ((precision, precision_score), (recall, recall_score)):
        found, expected = ours("failure", pairs), theirs(firsts(pairs), seconds(pairs), **options)
        assert (found is None) == math.isnan(expected)
        assert found is None or found.value == pytest.approx(expected)


@given(_PAIRS)
def test_alpha_of_two_raters_equals_krippendorff(pairs: list[Pair]) -> None:
    words = sorted({*firsts(pairs), *seconds(pairs)})
    assume(len(words) > 1)
    ratings = [[words.index(word) for word in side] for side in (firsts(pairs), seconds(pairs))]
    expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement="nominal")
    unweighted = [Pair(pair.first, pair.second) for pair in pairs]
    assert value(alpha(unweighted)) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.lists(st.sampled_from(VALUES), min_size=2, max_size=5), min_size=1, max_size=20))
def test_alpha_of_many_raters_equals_krippendorff(units: list[list[str]]) -> None:
    words = sorted({word for unit in units for word in unit})
    assume(len(words) > 1)
    ratings = [[words.index(unit[rater]) if rater < len(unit) else np.nan for unit in units] for rater in range(5)]
    expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement="nominal")
    pairs = [
        Pair(unit[one], unit[two], 1 / (len(unit) - 1))
        for unit in units
        for two in range(len(unit))
        for one in range(two)
    ]
    assert value(alpha(pairs, sum(map(len, units)))) == pytest.approx(expected, abs=1e-9)


@given(_PAIRS, st.floats(0.01, 100))
def test_scale_of_the_weights_does_not_matter(pairs: list[Pair], factor: float) -> None:
    scaled = [Pair(pair.first, pair.second, pair.weight * factor, pair.cluster) for pair in pairs]
    for statistic in (agreement, kappa, alpha):
        found, again = statistic(pairs), statistic(scaled)
        assert (found is None) == (again is None)
        if found is not None and again is not None:
            for name in ("value", "low", "high"):
                assert getattr(again, name) == pytest.approx(getattr(found, name), abs=1e-6)


@given(_PAIRS)
def test_interval_contains_the_value_and_is_a_share(pairs: list[Pair]) -> None:
    for found in (agreement(pairs), agreement_on("success", pairs), recall("failure", pairs)):
        if found is not None:
            assert found.low is not None
            assert found.high is not None
            assert 0 <= found.low <= found.value + 1e-9
            assert found.value - 1e-9 <= found.high <= 1


def test_statistics_of_nothing_are_undefined() -> None:
    assert [statistic([]) for statistic in (agreement, kappa, alpha)] == [None] * 3
    one_value = [Pair("success", "success")] * 5
    assert (kappa(one_value), alpha(one_value)) == (None, None)
    assert value(agreement(one_value)) == 1
    assert precision("failure", one_value) is None


def test_two_annotators_of_the_sample_agree_as_measured() -> None:
    first, second = label_records(FIRST_ANNOTATOR), label_records(SECOND_ANNOTATOR)
    pairs = [Pair(first[run_id]["outcome"], record["outcome"], cluster=run_id) for run_id, record in second.items()]
    assert len(pairs) == 40
    assert value(agreement(pairs)) == pytest.approx(0.90)
    assert value(kappa(pairs)) == pytest.approx(0.82, abs=0.005)
    assert value(alpha(pairs)) == pytest.approx(value(kappa(pairs)), abs=0.01)


def test_clusters_widen_the_interval() -> None:
    alike = [Pair("success", "success" if group % 2 else "failure", cluster=f"{group}") for group in range(20)]
    independent = [Pair(pair.first, pair.second) for pair in alike for _ in range(5)]
    clustered = [pair for pair in alike for _ in range(5)]
    narrow, wide = agreement(independent), agreement(clustered)
    assert narrow is not None
    assert wide is not None
    assert narrow.value == wide.value
    assert (wide.high or 0) - (wide.low or 0) > 1.8 * ((narrow.high or 0) - (narrow.low or 0))


def test_confusion_counts_pairs_and_weights() -> None:
    pairs = [Pair("failure", "success", 2.0), Pair("failure", "success", 3.0), Pair("success", "success")]
    assert confusion(pairs) == {("failure", "success"): (2, 5.0), ("success", "success"): (1, 1.0)}


# ---- planted judges -------------------------------------------------------------------------------------------------

SHARES = (0.6, 0.15, 0.2, 0.05)


def judged(rng: random.Random, truth: str, right: float, otherwise: Sequence[str] = VALUES) -> str:
    """What a judge says that is right with a probability, and else says one of the other words."""
    return truth if rng.random() < right else rng.choice([word for word in otherwise if word != truth] or [truth])


def world(rng: random.Random, runs: int, right: float, otherwise: Sequence[str] = VALUES) -> list[Pair]:
    """Runs in conversations of one to three, with truth and judgement."""
    pairs: list[Pair] = []
    while len(pairs) < runs:
        conversation = f"c{len(pairs)}"
        for truth in rng.choices(VALUES, SHARES, k=rng.randint(1, 3)):
            pairs.append(Pair(truth, judged(rng, truth, right, otherwise), cluster=conversation))
    return pairs[:runs]


def chance_corrected(right: float) -> float:
    """Kappa of a judge that errs evenly among the other three words, in a world without end."""
    judge = [share * right + (1 - share) * (1 - right) / 3 for share in SHARES]
    chance = sum(one * two for one, two in zip(SHARES, judge, strict=True))
    return (right - chance) / (1 - chance)


@pytest.mark.slow
@pytest.mark.parametrize("right", [0.25, 0.8, 0.97])
@pytest.mark.heavy
def test_intervals_cover_the_planted_agreement(right: float) -> None:
    rng = random.Random(right)
    covered = {"agreement": 0, "kappa": 0}
    worlds = 300
    for _ in range(worlds):
        pairs = world(rng, 150, right)
        for name, statistic, truth in (("agreement", agreement, right), ("kappa", kappa, chance_corrected(right))):
            found = statistic(pairs)
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            covered[name] += found.low <= truth <= found.high
    assert {name: count / worlds for name, count in covered.items()} == {
        "agreement": pytest.approx(0.95, abs=0.04),
        "kappa": pytest.approx(0.95, abs=0.05),
    }


@pytest.mark.slow
def test_weights_undo_a_sample_that_prefers_failures() -> None:
    """A judge that misses failures looks worse than it is where failures are sampled more often, unless weighted."""
    rng = random.Random(7)
    population = [
        Pair(truth, judged(rng, truth, 0.95 if truth == "success" else 0.5))
        for truth in rng.choices(VALUES, SHARES, k=20_000)
    ]
    truth = value(agreement(population))
    covered, worlds = 0, 200
    for _ in range(worlds):
        drawn = [
            Pair(pair.first, pair.second, 1 / probability)
            for pair in population
            if rng.random() < (probability := 0.04 if pair.first != "success" else 0.005)
        ]
        found = agreement(drawn)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
        assert value(agreement([Pair(pair.first, pair.second) for pair in drawn])) < truth - 0.1
    assert covered / worlds == pytest.approx(0.95, abs=0.05)


def test_planted_judges_are_told_apart() -> None:
    rng = random.Random(1)
    perfect, random_judge, good = world(rng, 200, 1.0), world(rng, 200, 0.25), world(rng, 200, 0.8)
    biased = world(rng, 200, 0.6, ("success", "success"))
    assert value(kappa(perfect)) == 1
    assert value(agreement(perfect)) == 1
    assert -0.15 < value(kappa(random_judge)) < 0.15
    found = kappa(good)
    assert found is not None
    assert found.low is not None
    assert found.low > 0.4
    # Biased to success: what it calls a failure is one, and it misses many.
    assert value(precision("failure", biased)) == 1
    missed = recall("failure", biased)
    assert missed is not None
    assert missed.high is not None
    assert missed.high < 0.85


@settings(max_examples=20)
@given(st.integers(2, 200))
def test_perfect_agreement_has_a_lower_bound_below_one(runs: int) -> None:
    pairs = [Pair(VALUES[number % 2], VALUES[number % 2]) for number in range(runs)]
    for statistic in (agreement, kappa, alpha):
        found = statistic(pairs)
        assert found is not None
        assert found.value == pytest.approx(1)
        assert found.low is not None
        assert found.low < 1


def test_share_of_unequal_weights_is_less_certain() -> None:
    even = share([(number % 2 == 0, Pair("", "")) for number in range(100)])
    uneven = share([(number % 2 == 0, Pair("", "", 50.0 if number < 4 else 1.0)) for number in range(100)])
    assert even is not None
    assert uneven is not None
    assert (uneven.high or 0) - (uneven.low or 0) > 1.5 * ((even.high or 0) - (even.low or 0))
