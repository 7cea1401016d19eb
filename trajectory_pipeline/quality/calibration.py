"""Calibration: a map, learnt on labels alone, from what a verdict says to a probability, and how good that map is.

Two probabilities are learnt: that the verdict's outcome is right, and that the run is a success. The map is measured on
labels that it was not learnt on: on those of the split ``test`` where there are some, else by cross-fitting, where runs
of one conversation or chain stand together.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from trajectory_pipeline.schema.enums import CalibrationMethod, Outcome

MIN_LABELS = 50
"""Fewest labels that a map is learnt on: with fewer, five parts for cross-fitting have less than ten each."""
MIN_OF_EACH = 5
"""Fewest labels of each of the two values, right and wrong."""
ISOTONIC_LABELS = 1000
"""Fewest labels for an isotonic map: with fewer it fits their noise (Niculescu-Mizil and Caruana 2005)."""
TEST_SPLIT = "test"
"""Split of the labels that no map is ever learnt on."""
FOLDS = 5
MOST_BINS, LABELS_PER_BIN = 10, 40
_GRID = 101
_ROUNDING = 1e-12

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LabelledScore:
    """One verdict with a label.

    Attributes:
        score: what the map takes, see ``success_score``; or the confidence.
        holds: whether what the map predicts is so, by the label.
        group: conversation or chain of the run.
        weight: number of runs that the label stands for: 1 divided by its inclusion probability.
        split: of the label.
    """

    score: float
    holds: bool
    group: str
    weight: float = 1.0
    split: str | None = None


@dataclass(frozen=True, slots=True)
class CalibrationMap:
    """A map from scores to probabilities: straight lines between knots, level outside of them."""

    method: CalibrationMethod
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of its knots."""
        return hashlib.sha256(json.dumps([self.scores, self.probabilities]).encode()).hexdigest()[:16]

    def __call__(self, scores: Sequence[float] | Numbers) -> Numbers:
        """Return the probability of each score."""
        probabilities: Numbers = np.interp(np.asarray(scores, float), self.scores, self.probabilities)
        return probabilities


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Labels with a similar predicted probability: how often what was predicted is so."""

    labels: int
    predicted: float
    observed: float


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """The expected calibration error (ECE) with its 95 % interval, and the reliability curve that it sums up."""

    value: float
    low: float
    high: float
    curve: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A map and its measure.

    Attributes:
        map: learnt on all labels that are not of the split ``test``.
        labels: number of these.
        measured_labels: number of labels that it was measured on.
        cross_fitted: whether it was measured by cross-fitting; else on the split ``test``.
        before: calibration error of the raw score, on the same labels; None where the score is no probability.
        after: calibration error of the map.
    """

    map: CalibrationMap
    labels: int
    measured_labels: int
    cross_fitted: bool
    before: CalibrationError | None
    after: CalibrationError


@dataclass(frozen=True, slots=True)
class TooFewLabels:
    """Why no map was learnt, as a sentence."""

    reason: str


def success_score(outcome: str, confidence: float) -> float:
    """Return the score of a verdict for P(success), −1 to 1: its confidence, below 0 unless the outcome is success."""
    return confidence if outcome == Outcome.SUCCESS else -confidence


def calibrate(labelled: Sequence[LabelledScore], *, score_is_probability: bool) -> Calibration | TooFewLabels:
    """Learn a map on labels, and measure it on labels that it was not learnt on."""
    test = [one for one in labelled if one.split == TEST_SPLIT]
    train = [one for one in labelled if one.split != TEST_SPLIT]
    problem = _too_few(train)
    if problem:
        return TooFewLabels(problem)
    learnt = fit_map(train)
    measured = test if len(test) >= MIN_LABELS else train
    cross_fitted = measured is train
    predicted = cross_fit(train) if cross_fitted else learnt([one.score for one in test])
    raw = np.clip([one.score for one in measured], 0, 1)
    return Calibration(
        learnt,
        len(train),
        len(measured),
        cross_fitted,
        calibration_error(raw, measured) if score_is_probability else None,
        calibration_error(predicted, measured),
    )


def fit_map(labelled: Sequence[LabelledScore]) -> CalibrationMap:
    """Learn a map: isotonic with enough labels, else logistic; where all labels are equal, a level one."""
    # Imported late: it takes a second, and whoever only asks whether the gates are passed learns nothing.
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    scores = np.array([one.score for one in labelled])
    holds = np.array([one.holds for one in labelled], float)
    weights = np.array([one.weight for one in labelled])
    weights = weights / weights.mean()
    if len(labelled) >= ISOTONIC_LABELS:
        isotonic = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, holds, weights)
        return _map(CalibrationMethod.ISOTONIC, isotonic.X_thresholds_, isotonic.y_thresholds_)
    grid = np.linspace(min(0.0, float(scores.min())), 1.0, _GRID)
    if holds.min() == holds.max():
        # As Laplace's rule: no number of labels shows that it always or never holds.
        share = (holds.sum() + 1) / (len(holds) + 2)
        return _map(CalibrationMethod.LOGISTIC, grid, np.full(len(grid), share))
    # The penalty keeps the slope finite where the scores separate the labels.
    logistic = LogisticRegression(C=10.0).fit(scores[:, None], holds, weights)
    return _map(CalibrationMethod.LOGISTIC, grid, logistic.predict_proba(grid[:, None])[:, 1])


def cross_fit(labelled: Sequence[LabelledScore]) -> Numbers:
    """Return the probability of each score by a map that was learnt without its group."""
    from sklearn.model_selection import GroupKFold

    groups = [one.group for one in labelled]
    predicted = np.zeros(len(labelled))
    folds = min(FOLDS, len(set(groups)))
    for rest, part in GroupKFold(folds).split(np.zeros(len(groups)), groups=groups):
        predicted[part] = fit_map([labelled[at] for at in rest])([labelled[at].score for at in part])
    return predicted


def calibration_error(predicted: Numbers, labelled: Sequence[LabelledScore]) -> CalibrationError:
    """Return the expected calibration error over bins of equal weight.

    The interval holds the truth in at least 95 %: it is Scheffe's over the gaps of all bins, whose variances count
    runs of one conversation together. A bootstrap does not, because the error of few labels is too large on average.
    """
    holds = np.array([one.holds for one in labelled], float)
    weights = np.array([one.weight for one in labelled])
    weights = weights / weights.sum()
    _, groups = np.unique([one.group for one in labelled], return_inverse=True)
    value = variance = 0.0
    curve = []
    bins = _bins(predicted, weights)
    chosen_bins = np.unique(bins)
    for chosen in (bins == one for one in chosen_bins):
        weight = weights[chosen].sum()
        mean = float(np.average(predicted[chosen], weights=weights[chosen]))
        observed = float(np.average(holds[chosen], weights=weights[chosen]))
        curve.append(ReliabilityBin(int(chosen.sum()), mean, observed))
        value += weight * abs(mean - observed)
        off = weights * (holds - observed - predicted + mean) * chosen
        # Of a bin whose labels are all equal, the variance is that of half a label more of each value.
        count = weight**2 / (weights[chosen] ** 2).sum()
        share = (count * observed + 0.5) / (count + 1)
        variance += max(float((np.bincount(groups, off) ** 2).sum()), weight**2 * share * (1 - share) / (count + 1))
    half = float(np.sqrt(chi2.ppf(0.95, len(chosen_bins)) * variance))
    return CalibrationError(float(value), max(0.0, float(value) - half), min(1.0, float(value) + half), tuple(curve))


def _bins(predicted: Numbers, weights: Numbers) -> npt.NDArray[np.int_]:
    """Return the bin of each prediction, by quantiles; equal predictions share one."""
    count = max(2, min(MOST_BINS, len(predicted) // LABELS_PER_BIN))
    order = np.argsort(predicted, kind="stable")
    bins = np.empty(len(predicted), int)
    bins[order] = np.minimum((np.cumsum(weights[order]) - _ROUNDING) * count, count - 1).astype(int)
    _, inverse = np.unique(predicted, return_inverse=True)
    first = np.full(inverse.max() + 1, count)
    np.minimum.at(first, inverse, bins)
    return first[inverse]


def _map(method: CalibrationMethod, scores: Numbers, probabilities: Numbers) -> CalibrationMap:
    return CalibrationMap(method, tuple(map(float, scores)), tuple(map(float, probabilities)))


def _too_few(train: Sequence[LabelledScore]) -> str:
    holding = sum(one.holds for one in train)
    rarer = min(holding, len(train) - holding)
    if len(train) < MIN_LABELS:
        return f"{len(train)} labels of judged runs outside of the split {TEST_SPLIT}, where {MIN_LABELS} are needed"
    if rarer < MIN_OF_EACH:
        return f"{rarer} labels of the rarer kind (right or wrong), where {MIN_OF_EACH} are needed"
    if len({one.group for one in train}) < FOLDS:
        return f"the labels are of {len({one.group for one in train})} conversations, where {FOLDS} are needed"
    return ""
