"""How far two raters agree: shares, Cohen's kappa, Krippendorff's alpha, precision and recall, each with an interval.

All of them follow from one table, how often the raters gave each pair of values. So a table of weights gives weighted
numbers, and a bootstrap is one multiplication of matrices. Runs of one conversation or chain are drawn together.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trajectory_pipeline.quality.intervals import wilson_interval

RESAMPLES = 1000
SEED = 20_261_129
"""Of every bootstrap: the same labels give the same intervals."""
_LOW, _HIGH = 2.5, 97.5

Table = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """What two raters said of one thing; of people and a judge, the first is the person.

    Attributes:
        weight: how many things of the population this one stands for; 1 where all do alike.
        cluster: pairs of the same cluster are not independent.
    """

    first: str
    second: str
    weight: float = 1.0
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval; the interval is None where there are too few things for one."""

    value: float
    low: float | None
    high: float | None


def agreement(pairs: Sequence[Pair]) -> Estimate | None:
    """Return the share of pairs with the same value."""
    return share([(pair.first == pair.second, pair) for pair in pairs])


def agreement_on(value: str, pairs: Sequence[Pair]) -> Estimate | None:
    """Return the share of pairs in which both or none of the raters gave this value."""
    return share([((pair.first == value) == (pair.second == value), pair) for pair in pairs])


def precision(value: str, pairs: Sequence[Pair]) -> Estimate | None:
    """Return the share of the first rater's agreement among things to which the second gave this value."""
    return share([(pair.first == value, pair) for pair in pairs if pair.second == value])


def recall(value: str, pairs: Sequence[Pair]) -> Estimate | None:
    """Return the share of the second rater's agreement among things to which the first gave this value."""
    return share([(pair.second == value, pair) for pair in pairs if pair.first == value])


def share(hits: Sequence[tuple[bool, Pair]]) -> Estimate | None:
    """Return the weighted share of hits; None where there is nothing.

    The interval is Wilson's for as many independent things as would be as uncertain as these clusters with these
    weights. Where all are hits, or none, their number is that of the clusters, less what unequal weights cost.
    """
    if not hits:
        return None
    total = sum(pair.weight for _, pair in hits)
    value = sum(pair.weight for hit, pair in hits if hit) / total
    clusters: dict[object, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for number, (hit, pair) in enumerate(hits):
        sums = clusters[pair.cluster or number]
        sums[0] += pair.weight
        sums[1] += pair.weight * (hit - value)
    count = len(clusters)
    effective = total * total / sum(weight * weight for weight, _ in clusters.values())
    variance = sum(residual * residual for _, residual in clusters.values()) / (total * total)
    if variance > 0 and count > 1:
        # Never more than the pairs themselves: by chance a few clusters can look as if they varied too little.
        effective = min(value * (1 - value) / (variance * count / (count - 1)), len(hits))
    interval = wilson_interval(value * effective, effective)
    low, high = interval or (None, None)
    return Estimate(value, low, high)


def kappa(pairs: Sequence[Pair], scale: Sequence[str] | None = None) -> Estimate | None:
    """Return Cohen's kappa; None where it is not defined, because both raters gave the same one value throughout.

    With a ``scale``, values are ranks on it, and a difference counts by its square.
    """
    values = list(scale or sorted({value for pair in pairs for value in (pair.first, pair.second)}))
    ranks = np.arange(len(values), dtype=float)
    cost = (ranks[:, None] - ranks) ** 2 if scale else 1.0 - np.eye(len(values))
    return _estimate(pairs, values, lambda tables: kappa_of_tables(tables, cost))


def alpha(pairs: Sequence[Pair], ratings: int | None = None) -> Estimate | None:
    """Return Krippendorff's alpha for names; None where it is not defined, because there is only one value.

    Of a thing with m > 2 raters, give each of its pairs of raters the weight 1 / (m - 1), and say how many ratings
    there are in all.
    """
    values = sorted({value for pair in pairs for value in (pair.first, pair.second)})
    # Weights say how much a thing counts, not how many there are.
    scale = (ratings or 2 * len(pairs)) / (2 * sum(pair.weight for pair in pairs)) if pairs else 1.0
    return _estimate(pairs, values, lambda tables: _alpha(tables * scale))


def confusion(pairs: Sequence[Pair]) -> dict[tuple[str, str], tuple[int, float]]:
    """Return, for each two values that were given, how many pairs there are, and their weight."""
    counts: dict[tuple[str, str], tuple[int, float]] = {}
    for pair in pairs:
        number, weight = counts.get((pair.first, pair.second), (0, 0.0))
        counts[pair.first, pair.second] = (number + 1, weight + pair.weight)
    return dict(sorted(counts.items()))


def kappa_of_tables(tables: Table, cost: Table) -> Table:
    """Return Cohen's kappa of each table (…, n, n); not finite where it is not defined.

    ``cost``: what each pair of values counts as a difference, 0 where they are the same.
    """
    total = tables.sum(axis=(1, 2))
    observed = (tables * cost).sum(axis=(1, 2)) / total
    chance = tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :] / (total * total)[:, None, None]
    disagreement: Table = observed / (chance * cost).sum(axis=(1, 2))
    return 1 - disagreement


def _alpha(tables: Table) -> Table:
    both = tables + tables.transpose(0, 2, 1)
    marginals = both.sum(axis=2)
    total = marginals.sum(axis=1)
    observed = 1 - np.trace(both, axis1=1, axis2=2) / total
    expected = 1 - (marginals * (marginals - 1)).sum(axis=1) / (total * (total - 1))
    disagreement: Table = observed / expected
    return 1 - disagreement


def _estimate(pairs: Sequence[Pair], values: Sequence[str], statistic: Callable[[Table], Table]) -> Estimate | None:
    if len(values) < 2:
        return None
    tables = tables_by_cluster(pairs, values)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(tables.sum(axis=0)[None])[0])
        if not math.isfinite(value):
            return None
        if len(tables) < 2:
            return Estimate(value, None, None)
        if all(pair.first == pair.second for pair in pairs):
            return Estimate(value, _low_if_perfect(pairs, value), value)
        drawn = statistic(resampled(tables))
    return percentile_estimate(value, drawn)


def resampled(tables: Table) -> Table:
    """Return the sum over clusters for each resample of them: (clusters, …) becomes (``RESAMPLES``, …).

    The same number of clusters is always drawn alike, so that two raters of the same things are compared in pairs.
    """
    count = len(tables)
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return (draws @ tables.reshape(count, -1)).reshape(-1, *tables.shape[1:])


def percentile_estimate(value: float, drawn: Table) -> Estimate:
    """Return a number with the middle 95 % of what resamples gave; one that is not finite says nothing."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, None, None)
    low, high = np.percentile(drawn, [_LOW, _HIGH])
    return Estimate(value, float(low), float(high))


def _low_if_perfect(pairs: Sequence[Pair], value: float) -> float:
    """Return a lower bound where no pair differs, so that no resample does: that of the raw agreement, above chance."""
    total = sum(pair.weight for pair in pairs)
    shares: dict[str, float] = defaultdict(float)
    for pair in pairs:
        shares[pair.first] += pair.weight / total
    chance = sum(part * part for part in shares.values())
    raw = agreement(pairs)
    low = raw.low if raw is not None and raw.low is not None else value
    return (low - chance) / (1 - chance)


def tables_by_cluster(pairs: Sequence[Pair], values: Sequence[str]) -> Table:
    """Return, for each cluster in order of first appearance, the weight of each pair of values: (clusters, n, n)."""
    places = {value: place for place, value in enumerate(values)}
    clusters: dict[object, int] = {}
    numbers = [clusters.setdefault(pair.cluster or index, len(clusters)) for index, pair in enumerate(pairs)]
    tables = np.zeros((len(clusters), len(values), len(values)))
    for number, pair in zip(numbers, pairs, strict=True):
        tables[number, places[pair.first], places[pair.second]] += pair.weight
    return tables
