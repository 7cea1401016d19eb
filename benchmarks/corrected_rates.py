"""Measures how often the intervals of corrected rates hold the truth: `python -m benchmarks.corrected_rates`.

A world is a group of runs whose true outcomes are known, a judge that errs at known rates, and people who label some.
"""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

from trajectory_pipeline.quality.corrected_rates import JudgedRun, corrected_rate
from trajectory_pipeline.quality.intervals import wilson_interval

WORLDS = 1000


@dataclass(frozen=True)
class World:
    """The parameters of one world.

    Attributes:
        runs: in the group.
        rate: probability that a run is a success.
        hit: probability that the judge calls a success one, in the first and in the last run; between them it drifts.
        alarm: the same, of calling another run a success.
        silent: probability that the judge says nothing.
        labels: expected number of labels.
        odds: how much likelier a run is labelled where judge and heuristic differ.
        heuristic: probability that the heuristic is right.
    """

    runs: int
    rate: float
    labels: int
    hit: tuple[float, float] = (0.9, 0.9)
    alarm: tuple[float, float] = (0.2, 0.2)
    silent: float = 0.05
    odds: float = 1.0
    heuristic: float = 0.7


def _plain(draw: random.Random) -> World:
    hit, alarm = draw.uniform(0.7, 0.98), draw.uniform(0.02, 0.4)
    rate, labels = draw.uniform(0.2, 0.9), draw.randint(40, 300)
    return World(draw.randint(400, 2000), rate, labels, (hit, hit), (alarm, alarm))


def _few_labels(draw: random.Random) -> World:
    hit, alarm = draw.uniform(0.7, 0.95), draw.uniform(0.1, 0.4)
    return World(draw.randint(100, 600), draw.uniform(0.2, 0.9), draw.randint(6, 20), (hit, hit), (alarm, alarm))


def _near_zero(draw: random.Random) -> World:
    hit, alarm = draw.uniform(0.6, 0.9), draw.uniform(0.02, 0.2)
    return World(draw.randint(400, 2000), draw.uniform(0.01, 0.08), draw.randint(60, 300), (hit, hit), (alarm, alarm))


def _near_one(draw: random.Random) -> World:
    hit, alarm = draw.uniform(0.8, 0.98), draw.uniform(0.1, 0.4)
    return World(draw.randint(400, 2000), draw.uniform(0.92, 0.99), draw.randint(60, 300), (hit, hit), (alarm, alarm))


def _biased_sample(draw: random.Random) -> World:
    hit, alarm = draw.uniform(0.7, 0.95), draw.uniform(0.05, 0.4)
    return World(
        draw.randint(400, 2000),
        draw.uniform(0.2, 0.9),
        draw.randint(60, 300),
        (hit, hit),
        (alarm, alarm),
        odds=draw.uniform(3, 12),
        heuristic=draw.uniform(0.55, 0.85),
    )


def _drifting(draw: random.Random) -> World:
    rate, labels = draw.uniform(0.2, 0.9), draw.randint(40, 300)
    hit = (draw.uniform(0.85, 0.98), draw.uniform(0.3, 0.6))
    return World(draw.randint(400, 2000), rate, labels, hit, (draw.uniform(0.02, 0.1), draw.uniform(0.3, 0.6)))


def _lenient(draw: random.Random) -> World:
    alarm = draw.uniform(0.5, 0.8)
    return World(draw.randint(400, 2000), draw.uniform(0.2, 0.9), draw.randint(40, 300), (0.97, 0.97), (alarm, alarm))


def _random_judge(draw: random.Random) -> World:
    return World(draw.randint(400, 2000), draw.uniform(0.2, 0.9), draw.randint(40, 300), (0.5, 0.5), (0.5, 0.5))


def _perfect(draw: random.Random) -> World:
    rate, labels = draw.uniform(0.2, 0.9), draw.randint(40, 300)
    return World(draw.randint(400, 2000), rate, labels, (1.0, 1.0), (0.0, 0.0), silent=0.0)


KINDS: dict[str, Callable[[random.Random], World]] = {
    "judge of middling quality": _plain,
    "6 to 20 labels": _few_labels,
    "rate of 1 to 8 %": _near_zero,
    "rate of 92 to 99 %": _near_one,
    "sample biased to disagreement": _biased_sample,
    "judge that drifts": _drifting,
    "judge biased to success": _lenient,
    "random judge": _random_judge,
    "perfect judge": _perfect,
}


def runs_of(world: World, draw: random.Random) -> tuple[list[JudgedRun], float]:
    """Return the runs of a world as the pipeline sees them, and the true share of successes."""
    truths = [draw.random() < world.rate for _ in range(world.runs)]
    judged: list[str | None] = []
    for at, truth in enumerate(truths):
        first, last = world.hit if truth else world.alarm
        share = first + (last - first) * at / world.runs
        judged.append(
            None if draw.random() < world.silent else "success" if draw.random() < share else "failure",
        )
    differs = [
        (said == "success") != (truth if draw.random() < world.heuristic else not truth)
        for said, truth in zip(judged, truths, strict=True)
    ]
    weight = [world.odds if one else 1.0 for one in differs]
    scale = world.labels / sum(weight)
    runs = []
    for said, truth, of_run in zip(judged, truths, weight, strict=True):
        probability = min(1.0, scale * of_run)
        labelled = draw.random() < probability
        runs.append(JudgedRun(said, truth if labelled else None, probability if labelled else None))
    return runs, sum(truths) / len(truths)


@dataclass(frozen=True)
class Coverage:
    """How often intervals held the truth.

    Attributes:
        given: worlds with enough labels for a corrected rate.
        corrected: share of these whose interval held the truth.
        raw: the same of Wilson's interval of the judge's own rate.
        width: mean width of the corrected intervals.
    """

    given: int
    corrected: float
    raw: float
    width: float


def measure(kind: str, worlds: int, seed: int) -> Coverage:
    """Return the coverage in worlds of one kind."""
    draw = random.Random(f"{kind} {seed}")
    given = held = raw_held = 0
    width = 0.0
    for _ in range(worlds):
        runs, truth = runs_of(KINDS[kind](draw), draw)
        rate = corrected_rate(runs)
        if rate.low is None or rate.high is None:
            continue
        given += 1
        held += rate.low <= truth <= rate.high
        width += rate.high - rate.low
        said = [run.judged for run in runs if run.judged is not None]
        raw = wilson_interval(said.count("success"), len(said))
        raw_held += raw is not None and raw[0] <= truth <= raw[1]
    return Coverage(given, held / given, raw_held / given, width / given)


def main() -> None:
    """Print a table."""
    worlds = int(sys.argv[1]) if len(sys.argv) > 1 else WORLDS
    print(f"| worlds | with a rate, of {worlds} | interval holds the truth | raw interval does | mean width |")
    print("|---|---|---|---|---|")
    measured = {kind: measure(kind, worlds, seed=15) for kind in KINDS}
    for kind, one in measured.items():
        print(f"| {kind} | {one.given} | {one.corrected:.1%} | {one.raw:.1%} | {one.width:.2f} |")
    given = sum(one.given for one in measured.values())
    held = sum(one.corrected * one.given for one in measured.values())
    print(f"| all | {given} | {held / given:.1%} | | |")


if __name__ == "__main__":
    main()
