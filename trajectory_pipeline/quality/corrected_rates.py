"""Rates corrected for the judge's errors: what share of runs people would give an outcome, and how sure that is.

The estimator is prediction-powered inference with a judge that says one of a few outcomes: runs are post-stratified by
what the judge said, each stratum's rate is estimated from its labels, weighted by inclusion probability, and the rates
are added up by the known sizes of the strata. It uses only the labels of the runs that it speaks of, so that it holds
whatever the judge does, also where its errors differ between agents or change with time.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve
from scipy.stats import betabinom

MIN_LABELS = 5
"""Fewest labels with a known inclusion probability that a corrected rate is given for."""
LEVEL = 0.95
"""Of the intervals."""
_PRIOR = 0.5
"""Jeffreys' prior for a share: Beta(1/2, 1/2)."""


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """One run of the group that a rate is about.

    Attributes:
        judged: what the judge said of it; None where it said nothing usable.
        labelled: whether people gave it the outcome in question; None where it has no label.
        inclusion_probability: of being labelled, above 0 and at most 1; None where there is no label, or it was not
            drawn by a design.
    """

    judged: Hashable
    labelled: bool | None = None
    inclusion_probability: float | None = None


@dataclass(frozen=True, slots=True)
class CorrectedRate:
    """The share of a group's runs that people would give the outcome.

    Attributes:
        runs: in the group.
        labels: that it rests on.
        rate: None where there are too few labels.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    runs: int
    labels: int
    rate: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class EffectiveCounts:
    """A weighted sample of yes and no, as a sample without weights that says as much."""

    share: float
    size: float

    @property
    def beta(self) -> tuple[float, float]:
        """Parameters of the posterior of the share, from Jeffreys' prior."""
        return self.size * self.share + _PRIOR, self.size * (1 - self.share) + _PRIOR


def corrected_rate(runs: Sequence[JudgedRun], min_labels: int = MIN_LABELS) -> CorrectedRate:
    """Return the corrected rate of a group of runs.

    A label whose inclusion probability is unknown is left out: nobody can say which runs it stands for.
    """
    drawn = [run for run in runs if run.labelled is not None and run.inclusion_probability is not None]
    if len(drawn) < min_labels:
        return CorrectedRate(len(runs), len(drawn))
    known = sum(bool(run.labelled) for run in drawn)
    expected, totals = float(known), np.ones(1)
    for judged in {run.judged: None for run in runs}:
        unknown = sum(run.judged == judged for run in runs) - sum(run.judged == judged for run in drawn)
        if not unknown:
            continue
        of_stratum = [run for run in drawn if run.judged == judged]
        # A label stands for itself and for 1/p - 1 runs without one.
        counts = effective_counts(
            [bool(run.labelled) for run in of_stratum],
            [1 / run.inclusion_probability - 1 for run in of_stratum if run.inclusion_probability],
        )
        expected += unknown * counts.share
        totals = _add(totals, betabinom.pmf(np.arange(unknown + 1), unknown, *counts.beta))
    low, high = _central(totals)
    rate = expected / len(runs)
    return CorrectedRate(
        len(runs), len(drawn), rate, min(rate, (known + low) / len(runs)), max(rate, (known + high) / len(runs))
    )


def effective_counts(values: Sequence[bool], weights: Sequence[float]) -> EffectiveCounts:
    """Return the weighted share, and the size of an unweighted sample with the same variance (Korn and Graubard 1998).

    Where all values are equal, that variance is 0, and the size is Kish's. Without any weight: share 1/2, size 0.
    """
    weight = np.asarray(weights, float)
    value = np.asarray(values, float)[weight > 0]
    weight = weight[weight > 0] / weight.max(initial=0.0)
    if not len(weight):
        return EffectiveCounts(0.5, 0.0)
    total = weight.sum()
    share = float(np.clip((weight * value).sum() / total, 0, 1))
    kish = float(min(total**2 / (weight**2).sum(), len(weight)))
    if len(weight) < 2 or value.min() == value.max():
        return EffectiveCounts(share, kish)
    if not np.ptp(weight):
        return EffectiveCounts(share, kish)
    # Heavy labels that agree by chance would hide the variance: half a label of each value, as heavy as the typical
    # run's, is added, as Jeffreys' prior does for a sample without weights.
    typical = (weight**2).sum() / total
    squares = (weight**2 * (value - share) ** 2).sum() + _PRIOR * typical**2 * (share**2 + (1 - share) ** 2)
    return EffectiveCounts(share, float(min(share * (1 - share) * total**2 / squares, len(weight))))


def _add(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the distribution of the sum of two independent counts."""
    total: np.ndarray = np.clip(fftconvolve(first, second), 0, None)
    return total


def _central(probabilities: np.ndarray) -> tuple[int, int]:
    """Return the ends of the central interval of a count."""
    below = np.cumsum(probabilities) / probabilities.sum()
    tail = (1 - LEVEL) / 2
    return int(np.searchsorted(below, tail)), int(np.searchsorted(below, 1 - tail))
