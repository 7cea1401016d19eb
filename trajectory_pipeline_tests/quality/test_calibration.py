"""Calibration: learnt on labels, measured on other labels, and the same map in Python and SQL."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajectory_pipeline.quality.calibration import (
    FOLDS,
    ISOTONIC_LABELS,
    MIN_LABELS,
    Calibration,
    LabelledScore,
    TooFewLabels,
    calibrate,
    calibration_error,
    cross_fit,
    fit_map,
    success_score,
)
from trajectory_pipeline.schema.enums import CalibrationMethod, Outcome


def planted(count: int, seed: int, *, spread: float = 0.4, split: str | None = None) -> list[LabelledScore]:
    """Return verdicts whose confidence of 0 to 1 means a probability of 0.5 to 0.5 + ``spread``."""
    draw = random.Random(seed)
    scores = [draw.random() for _ in range(count)]
    return [
        LabelledScore(score, draw.random() < 0.5 + spread * score, f"conversation-{at // 2}", split=split)
        for at, score in enumerate(scores)
    ]


def calibrated(labelled: list[LabelledScore]) -> Calibration:
    result = calibrate(labelled, score_is_probability=True)
    assert isinstance(result, Calibration)
    return result


@pytest.mark.parametrize("count", [300, ISOTONIC_LABELS + 500])
def test_calibrate_lowers_the_calibration_error(count: int) -> None:
    result = calibrated(planted(count, seed=1))
    assert result.before is not None
    assert result.after.value < result.before.value / 2
    assert result.before.low > result.after.value


@pytest.mark.parametrize(
    ("count", "method"),
    [(ISOTONIC_LABELS - 1, CalibrationMethod.LOGISTIC), (ISOTONIC_LABELS, CalibrationMethod.ISOTONIC)],
)
def test_calibrate_is_isotonic_from_a_number_of_labels_on(count: int, method: CalibrationMethod) -> None:
    assert calibrated(planted(count, seed=2)).map.method is method


@pytest.mark.parametrize(
    ("labelled", "reason"),
    [
        (planted(MIN_LABELS - 1, seed=3), "49 labels"),
        ([replace(one, holds=True) for one in planted(200, seed=3)], "0 labels of the rarer kind"),
        ([replace(one, group="one") for one in planted(200, seed=3)], "the labels are of 1 conversation"),
        (planted(200, seed=3, split="test"), "0 labels of judged runs outside of the split test"),
        ([], "0 labels"),
    ],
)
def test_calibrate_with_too_few_labels_says_what_is_missing(labelled: list[LabelledScore], reason: str) -> None:
    result = calibrate(labelled, score_is_probability=True)
    assert isinstance(result, TooFewLabels)
    assert reason in result.reason


def test_calibrate_never_learns_on_the_split_test() -> None:
    train, test = planted(200, seed=4), planted(200, seed=5, split="test")
    flipped = [replace(one, holds=not one.holds) for one in test]
    first, second = calibrated(train + test), calibrated(train + flipped)
    assert first.map == second.map
    assert (first.cross_fitted, first.measured_labels, first.labels) == (False, 200, 200)
    assert first.after.high < second.after.low


def test_calibrate_with_a_small_split_test_cross_fits() -> None:
    result = calibrated(planted(200, seed=4) + planted(10, seed=5, split="test"))
    assert (result.cross_fitted, result.labels, result.measured_labels) == (True, 200, 200)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_cross_fit_ignores_the_labels_of_the_same_group(group: int) -> None:
    """Other labels of one conversation change no prediction of its runs, nor of those of its part."""
    labelled = planted(200, seed=6)
    name = f"conversation-{group}"
    changed = [replace(one, holds=not one.holds) if one.group == name else one for one in labelled]
    before, after = cross_fit(labelled), cross_fit(changed)
    own = [at for at, one in enumerate(labelled) if one.group == name]
    assert list(before[own]) == list(after[own])
    assert (before != after).sum() >= len(labelled) - len(labelled) / FOLDS - 2


@pytest.mark.parametrize("count", [MIN_LABELS, 300, ISOTONIC_LABELS])
def test_fit_map_gives_probabilities_everywhere(count: int) -> None:
    learnt = fit_map(planted(count, seed=7))
    probabilities = learnt(np.linspace(-2, 2, 101))
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    assert list(learnt.scores) == sorted(set(learnt.scores))


def test_fit_map_of_equal_labels_is_never_certain() -> None:
    learnt = fit_map([replace(one, holds=True) for one in planted(60, seed=8)])
    assert list(learnt([0.0, 1.0])) == pytest.approx([61 / 62, 61 / 62])


def test_fit_map_is_the_same_for_the_same_labels() -> None:
    assert fit_map(planted(300, seed=9)).digest == fit_map(planted(300, seed=9)).digest
    assert fit_map(planted(300, seed=9)).digest != fit_map(planted(300, seed=10)).digest


def test_fit_map_weighs_labels() -> None:
    """Labels of wrong verdicts were drawn ten times as often as others."""
    draw = random.Random(12)
    population = [replace(one, holds=draw.random() < 0.9) for one in planted(4000, seed=11)]
    sample = [
        replace(one, weight=10.0 if one.holds else 1.0)
        for one in population
        if draw.random() < (0.05 if one.holds else 0.5)
    ]
    assert float(fit_map(sample)([0.5])[0]) == pytest.approx(0.9, abs=0.04)


def test_success_score_is_below_zero_unless_success() -> None:
    assert success_score(Outcome.SUCCESS, 0.7) == 0.7
    assert {success_score(outcome, 0.7) for outcome in Outcome if outcome is not Outcome.SUCCESS} == {-0.7}


@pytest.mark.parametrize("gap", [0.0, 0.08, 0.2])
@pytest.mark.parametrize("count", [60, 300])
def test_calibration_error_interval_holds_the_truth(gap: float, count: int) -> None:
    """The confidence says the same amount too much everywhere."""
    held = 0
    for seed in range(100):
        draw = random.Random(seed)
        scores = np.array([draw.uniform(0.3, 0.9) for _ in range(count)])
        labelled = [LabelledScore(s, draw.random() < s - gap, str(at)) for at, s in enumerate(scores)]
        error = calibration_error(scores, labelled)
        held += error.low <= gap <= error.high
    assert held >= 95


def test_calibration_error_curve_counts_every_label_once() -> None:
    labelled = planted(237, seed=12)
    error = calibration_error(np.array([one.score for one in labelled]), labelled)
    assert sum(one.labels for one in error.curve) == 237
    assert [one.predicted for one in error.curve] == sorted(one.predicted for one in error.curve)
    assert error.low <= error.value <= error.high


def test_calibration_error_of_equal_predictions_is_one_bin() -> None:
    labelled = [LabelledScore(1.0, at % 4 > 0, str(at)) for at in range(80)]
    error = calibration_error(np.ones(80), labelled)
    assert [(one.labels, one.predicted, one.observed) for one in error.curve] == [(80, 1.0, 0.75)]
    assert error.value == pytest.approx(0.25)
