"""Whether two samples have the same mix of categories: Pearson's chi-square test of homogeneity."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

ALPHA = 0.0001
"""Of one look. One is taken each day: benchmarks/drift.py measures the false alarms of a year."""
MIN_RUNS = 50
"""Smallest sample that is compared."""
MIN_SHIFT = 0.05
"""Smallest change of the mix that matters: in large samples the test finds changes of no interest."""
_MIN_EXPECTED = 5.0


@dataclass(frozen=True)
class Drift:
    """The result of a comparison.

    Attributes:
        p_value: probability of a difference this large without drift; None where the samples are too small.
        shift: share of runs whose category changed (total variation distance).
        grown: the category whose share grew most.
    """

    p_value: float | None
    shift: float
    grown: str

    @property
    def found(self) -> bool:
        """Whether the mix changed, by the test and by a share that matters."""
        return self.p_value is not None and self.p_value < ALPHA and self.shift >= MIN_SHIFT


def find_drift(recent: Mapping[str, int], earlier: Mapping[str, int]) -> Drift:
    """Compare two samples, given as counts by category.

    Categories that are too rare for the test are counted as one.
    """
    totals = (sum(recent.values()), sum(earlier.values()))
    if min(totals) < MIN_RUNS:
        return Drift(None, 0.0, "")
    names = sorted(recent.keys() | earlier.keys())
    pairs = {name: (recent.get(name, 0), earlier.get(name, 0)) for name in names}
    growth = {name: pair[0] / totals[0] - pair[1] / totals[1] for name, pair in pairs.items()}
    p_value = homogeneity_p_value(_pool_rare(list(pairs.values()), totals))
    return Drift(p_value, sum(map(abs, growth.values())) / 2, max(names, key=growth.__getitem__))


def homogeneity_p_value(pairs: list[tuple[int, int]]) -> float:
    """Return the p-value of the test for the counts of each category in two samples, each with an expectation."""
    if len(pairs) < 2:
        return 1.0
    first, second = (sum(pair[side] for pair in pairs) for side in (0, 1))
    statistic = 0.0
    for pair in pairs:
        for observed, total in zip(pair, (first, second), strict=True):
            expected = sum(pair) * total / (first + second)
            statistic += (observed - expected) ** 2 / expected
    return chi_square_tail(statistic, len(pairs) - 1)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Return the probability that a chi-square variable of these degrees of freedom is at least this large."""
    half = statistic / 2
    if half <= 0:
        return 1.0
    # Abramowitz and Stegun 26.4.4 and 26.4.5: a finite sum for whole degrees.
    power, tail = (1.0, math.exp(-half)) if degrees % 2 == 0 else (0.5, math.erfc(math.sqrt(half)))
    while power < degrees / 2:
        tail += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
        power += 1
    return min(1.0, tail)


def _pool_rare(pairs: list[tuple[int, int]], totals: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the categories, those with a small expectation in one sample together with the next rare ones."""
    smaller_share = min(totals) / sum(totals)
    ordered = sorted(pairs, key=sum)
    pooled: list[tuple[int, int]] = []
    waiting = (0, 0)
    for pair in ordered:
        waiting = (waiting[0] + pair[0], waiting[1] + pair[1])
        if sum(waiting) * smaller_share >= _MIN_EXPECTED:
            pooled.append(waiting)
            waiting = (0, 0)
    if sum(waiting):
        last = pooled.pop() if pooled else (0, 0)
        pooled.append((last[0] + waiting[0], last[1] + waiting[1]))
    return pooled
