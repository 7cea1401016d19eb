"""Pairs of a success and a failure of the same task, worth training on: found in one pass over the runs."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trajectory_pipeline.exports.pairs import Preference, preference
from trajectory_pipeline.exports.source import JsonObject
from trajectory_pipeline.pipeline.export_duplicates import WrittenTexts
from trajectory_pipeline.pipeline.export_encoder import EncodedRun
from trajectory_pipeline.storage.scratch.pair_sides import PairSides

NO_PARTNER = "no run of the same task with the other outcome"
NO_DECISION = "they part at no decision of the agent"
_UNSURE = 0.5


@dataclass(frozen=True, slots=True)
class PairSide:
    """A run that can be one side of a pair.

    Attributes:
        number: of its record.
        score: how surely it is a success, 0–1: calibrated by people's labels where there are enough, else the judge's
            confidence; 0.5 where no judge said.
    """

    number: int
    score: float
    run: EncodedRun


@dataclass(frozen=True, slots=True)
class Pair:
    """A success and a failure that were asked the same."""

    chosen: PairSide
    rejected: PairSide
    preference: Preference


@dataclass
class FamilyPairs:
    """What there is to pair in one task family; ``family_id`` is None for runs without one.

    Attributes:
        tasks: that were asked in the same words, with a success and a failure.
        pairs: that part at a decision of the agent, at most so many a task as were asked for.
        parted_at: mean number of the message at which these part; None without pairs.
    """

    family_id: str | None
    successes: int = 0
    failures: int = 0
    tasks: int = 0
    pairs: int = 0
    parted_at: float | None = None


class PairFinder:
    """Takes runs one by one and keeps them in a file, so that each is read once."""

    def __init__(self, folder: Path, pairs_per_task: int, texts: WrittenTexts) -> None:
        """Keep runs in a file in this folder, which has no name and goes with the process.

        ``texts`` are of the runs in pairs: what one says is in one pair only.
        """
        self._texts = texts
        self.left_out: Counter[str] = Counter()
        self._most = pairs_per_task
        # By what was asked. Families do not divide them: they are of runs, by what came of a task too.
        self._sides = PairSides(folder)

    def add(self, run: EncodedRun) -> None:
        """Take a run, encoded as one side of a pair."""
        asked, succeeded, record = run.encoded
        kept = run.without_content()
        self._sides.add(asked, _score(run), run.selected.run_id, kept, record, succeeded=succeeded)

    def pairs(self) -> Iterator[Pair]:
        """Yield the surest success of each task with its surest failure, then the next two, and so on.

        A run that says what one in a pair says is left out; of several that say the same, the surest comes first.
        """
        for asked in self._sides.tasks():
            yield from self._pairs_of(asked)

    def families(self) -> list[FamilyPairs]:
        """Return what there is to pair by task family, the most pairs first.

        Runs that were asked the same may be in several families; they count in that of the surest success among them,
        or else of the surest failure, so that a family's pairs are of its successes and failures.
        """
        families: dict[str | None, FamilyPairs] = {}
        for asked in self._sides.tasks():
            first, successes = _first_and_texts(self._successes(asked))
            first_failure, failures = _first_and_texts(self._failures(asked))
            first = first or first_failure
            family_id = first.selected.family_id if first else None
            family = families.setdefault(family_id, FamilyPairs(family_id))
            family.successes += len(successes)
            family.failures += len(failures)
            family.tasks += bool(successes and failures)
            for pair in self._pairs_of(asked):
                family.parted_at = (family.parted_at or 0.0) + pair.preference.parted_at
                family.pairs += 1
        for family in families.values():
            if family.parted_at is not None:
                family.parted_at /= family.pairs
        return sorted(families.values(), key=lambda one: (-one.pairs, -one.tasks, one.family_id or ""))

    def close(self) -> None:
        """Remove the runs."""
        self._sides.close()

    def _successes(self, asked: str) -> Iterator[PairSide]:
        return (PairSide(*side) for side in self._sides.successes(asked))

    def _failures(self, asked: str) -> Iterator[PairSide]:
        return (PairSide(*side) for side in self._sides.failures(asked))

    def _pairs_of(self, asked: str) -> Iterator[Pair]:
        successes, failures = self._successes(asked), self._failures(asked)
        for _ in range(self._most):
            chosen, rejected = self._next(successes), self._next(failures)
            if chosen is None or rejected is None:
                self.left_out[NO_PARTNER] += (chosen is not None) + (rejected is not None)
                break
            found = preference(self._record(chosen), self._record(rejected))
            if found is None:
                self.left_out[NO_DECISION] += 2
                continue
            for side in (chosen, rejected):
                self._texts.add(side.run)
            yield Pair(chosen, rejected, found)
        for others in (successes, failures):
            while self._next(others) is not None:
                self.left_out[NO_PARTNER] += 1

    def _next(self, sides: Iterator[PairSide]) -> PairSide | None:
        """Take the next run that says what none in a pair says; those before it are counted."""
        for side in sides:
            duplicate = self._texts.find(side.run)
            if duplicate is None:
                return side
            self.left_out[duplicate.reason] += 1
        return None

    def _record(self, side: PairSide) -> JsonObject:
        record: JsonObject = json.loads(self._sides.record(side.number))
        return record


def _first_and_texts(sides: Iterator[PairSide]) -> tuple[EncodedRun | None, set[str]]:
    """Return the first run, and the digests of what all say."""
    first, texts = None, set()
    for side in sides:
        first = first or side.run
        texts.add(side.run.text_digest)
    return first, texts


def _score(run: EncodedRun) -> float:
    if run.probability_success is not None:
        return run.probability_success
    if run.confidence is None:
        return _UNSURE
    return run.confidence if run.outcome == "success" else 1 - run.confidence
