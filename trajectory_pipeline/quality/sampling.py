"""Which runs to label: drawn by a stated design, with the probability that each had, and weights over several draws."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trajectory_pipeline.schema.enums import SamplingDesign

PREFERRED_SHARE: Final = 0.6
"""Share of a draw that comes from the strata that its design prefers, as far as they have runs."""
LOW_CONFIDENCE, HIGH_CONFIDENCE = 0.5, 0.8
"""A verdict with less is uncertain, and one with at least the latter is certain."""

_PREFERRED: Final = {
    SamplingDesign.RANDOM: (),
    SamplingDesign.DISAGREEMENT: ("disagrees",),
    SamplingDesign.SIGNAL: ("signal",),
    SamplingDesign.UNCERTAINTY: ("uncertain", "undecided"),
}
DESIGNS: Final = tuple(_PREFERRED)
"""Designs that runs are drawn by: all but a census."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that may be drawn.

    Attributes:
        disagrees: whether verdict and heuristic, or verdicts of two policies, differ; None without a verdict.
        signal: whether a signal speaks of trouble.
        confidence: of the verdict; None without a decided one.
        judged: whether it has a verdict.
    """

    run_id: str
    disagrees: bool | None
    signal: bool
    confidence: float | None
    judged: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """A run that was drawn, from which stratum, and the probability that this draw had of taking it."""

    run_id: str
    stratum: str
    inclusion_probability: float


@dataclass(frozen=True, slots=True)
class DrawnRun:
    """A run of an earlier draw, and whether it was labelled since; ``draw`` counts draws in their order."""

    run_id: str
    draw: int
    stratum: str
    inclusion_probability: float
    labelled: bool


def draw(candidates: Sequence[Candidate], design: SamplingDesign, count: int, seed: int) -> list[Drawn]:
    """Draw runs without replacement, in random order: the same seed draws the same of the same candidates.

    Every candidate can be drawn: each stratum gives at least one run.

    Raises:
        ValueError: there are fewer candidates than are to be drawn, or more strata than runs to draw.
    """
    strata: dict[str, list[str]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda one: one.run_id):
        strata[stratum_of(candidate, design)].append(candidate.run_id)
    if count > len(candidates):
        raise ValueError(f"{count} runs cannot be drawn from {len(candidates)}")
    if count < len(strata):
        raise ValueError(f"{count} runs cannot stand for {len(strata)} strata ({', '.join(sorted(strata))}): draw more")
    rng = random.Random(seed)  # noqa: S311 - to be repeatable, not secret
    sizes = _allocate({name: len(run_ids) for name, run_ids in strata.items()}, _PREFERRED[design], count)
    drawn = [
        Drawn(run_id, name, sizes[name] / len(run_ids))
        for name, run_ids in sorted(strata.items())
        for run_id in rng.sample(run_ids, sizes[name])
    ]
    rng.shuffle(drawn)
    return drawn


def stratum_of(candidate: Candidate, design: SamplingDesign) -> str:
    """Return the stratum of a run under a design."""
    if design is SamplingDesign.DISAGREEMENT:
        return {True: "disagrees", False: "agrees", None: "not judged"}[candidate.disagrees]
    if design is SamplingDesign.SIGNAL:
        return "signal" if candidate.signal else "no signal"
    if design is SamplingDesign.UNCERTAINTY:
        if not candidate.judged:
            return "not judged"
        if candidate.confidence is None:
            return "undecided"
        if candidate.confidence < LOW_CONFIDENCE:
            return "uncertain"
        return "certain" if candidate.confidence >= HIGH_CONFIDENCE else "middling"
    return "all"


def weights(runs: Sequence[DrawnRun]) -> dict[str, float]:
    """Return, by labelled run, how many runs of the population it stands for, over all draws.

    A draw takes from what earlier draws left. So each draw, together with all that were drawn before it, estimates the
    whole: the earlier ones count once, its own by the inverse of their probability. The draws are averaged by the
    number of their labels. Labels that are still missing are taken to be missing by chance within their stratum: a
    sample is in random order.
    """
    labelled: dict[int, int] = defaultdict(int)
    drawn_of: dict[tuple[int, str], int] = defaultdict(int)
    labelled_of: dict[tuple[int, str], int] = defaultdict(int)
    for run in runs:
        labelled[run.draw] += run.labelled
        drawn_of[run.draw, run.stratum] += 1
        labelled_of[run.draw, run.stratum] += run.labelled
    total = sum(labelled.values())
    shares = {number: count / total for number, count in labelled.items()} if total else {}
    later = {number: sum(share for other, share in shares.items() if other > number) for number in shares}
    return {
        run.run_id: (shares[run.draw] / run.inclusion_probability + later[run.draw])
        * drawn_of[run.draw, run.stratum]
        / labelled_of[run.draw, run.stratum]
        for run in runs
        if run.labelled
    }


def _allocate(sizes: Mapping[str, int], preferred: Sequence[str], count: int) -> dict[str, int]:
    """Share out a draw: the preferred strata get their part, as far as they have runs, and the others the rest."""
    favored = {name: size for name, size in sizes.items() if name in preferred}
    others = {name: size for name, size in sizes.items() if name not in preferred}
    wanted = min(sum(favored.values()), round(count * PREFERRED_SHARE)) if favored else 0
    wanted = max(wanted, count - sum(others.values()), len(favored))
    wanted = min(wanted, count - len(others))
    return {**_proportional(favored, wanted), **_proportional(others, count - wanted)}


def _proportional(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Share a number out by size: at least one of each, at most all, and the largest remainders first."""
    total = sum(sizes.values())
    shares = {name: min(size, max(1, count * size // total)) for name, size in sizes.items()}
    while (missing := count - sum(shares.values())) != 0:
        sign = 1 if missing > 0 else -1
        open_names = [name for name in sizes if (shares[name] < sizes[name] if sign > 0 else shares[name] > 1)]
        furthest = max(open_names, key=lambda name: (sign * (count * sizes[name] / total - shares[name]), name))
        shares[furthest] += sign
    return shares
