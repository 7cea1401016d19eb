"""Task families: runs put into groups whose ids stay.

Clustering is by leaders. A run joins the family whose representative, at first the run that founded it, it is most
like, if it is like enough; else it founds one. Families are never merged, split or renumbered.

How like is enough depends on the model, and on how much alike all runs of an organization are. So the bar is measured
once, on some of its runs: half way between two estimates of where other tasks end. One is the median similarity of all
pairs, plus twice the deviation of those below it, because pairs of one task are above it. The other is half way between
the mean of all pairs and the median of nearest pairs: where tasks differ clearly, the first is too low.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HIGHEST_BAR = 0.95
"""Runs that are all alike are of one family, however little they differ."""
FEWEST_RUNS = 50
"""So many runs must be there before the bar is measured, and families begin."""

_DIGITS = 6
Vectors = NDArray[np.float32]
"""One vector of length 1 a row."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What was measured on so many runs, and the similarity that follows.

    Attributes:
        median: of all pairs; ``mean`` likewise.
        deviation: root mean square of what the pairs below the median lack.
        nearest: median similarity of a run to the one that it is most like.
    """

    similarity: float
    median: float
    deviation: float
    mean: float
    nearest: float
    runs: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """The family of one run; ``similarity`` to its representative is None where the run founds it."""

    family_id: str
    similarity: float | None


def family_id(run_id: str) -> str:
    """Return the id of the family that a run founds."""
    return f"family-{hashlib.sha256(run_id.encode()).hexdigest()[:16]}"


def measure_bar(vectors: Vectors) -> Bar:
    """Return the bar for runs like these.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(vectors) < 2:
        raise ValueError("similarity is between two")
    similarities = (vectors @ vectors.T).astype(np.float64)
    pairs = similarities[np.triu_indices(len(vectors), 1)]
    median, mean = float(np.median(pairs)), float(pairs.mean())
    deviation = float(np.sqrt(np.mean((median - pairs[pairs <= median]) ** 2)))
    np.fill_diagonal(similarities, -np.inf)
    nearest = float(np.median(similarities.max(axis=1)))
    bar = (median + 2 * deviation + (mean + nearest) / 2) / 2
    return Bar(min(bar, HIGHEST_BAR), median, deviation, mean, nearest, len(vectors))


def assign_families(
    run_ids: Sequence[str],
    vectors: Vectors,
    representatives: Iterable[tuple[Sequence[str], Vectors]],
    bar: float,
) -> list[Assignment]:
    """Return the family of each run.

    Args:
        run_ids: in the order in which they may found families: the earliest first.
        vectors: of the runs.
        representatives: ids and representatives' vectors of the families that there are, in portions, oldest first.
        bar: smallest similarity at which a run joins a family.
    """
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(run_ids)
    for family_ids, portion in representatives:
        similarities = _similarities(vectors, portion)
        for at, place in enumerate(similarities.argmax(axis=1)):
            # Among equals the oldest.
            if similarities[at, place] > best[at][0]:
                best[at] = (float(similarities[at, place]), family_ids[place])
    founders: list[int] = []
    assigned: list[Assignment] = []
    among = _similarities(vectors, vectors)
    for at, run_id in enumerate(run_ids):
        similarity, family = best[at]
        if founders:
            founder = founders[int(among[at, founders].argmax())]
            if among[at, founder] > similarity:
                similarity, family = float(among[at, founder]), family_id(run_ids[founder])
        if similarity >= bar:
            assigned.append(Assignment(family, similarity))
        else:
            founders.append(at)
            assigned.append(Assignment(family_id(run_id), None))
    return assigned


def _similarities(vectors: Vectors, others: Vectors) -> Vectors:
    """Return cosine similarities without their last digits, which depend on how many are computed at once."""
    return np.round(vectors @ others.T, _DIGITS)
