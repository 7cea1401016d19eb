"""Pairs of a success and a failure of the same task, worth training on: found in one pass over the runs."""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trajectory_pipeline.exports.pairs import Preference, preference
from trajectory_pipeline.exports.source import JsonObject
from trajectory_pipeline.pipeline.export_encoder import EncodedRun

NO_PARTNER = "no run of the same task with the other outcome"
NO_DECISION = "they part at no decision of the agent"
_UNSURE = 0.5


@dataclass(frozen=True, slots=True)
class PairSide:
    """A run that can be one side of a pair.

    Attributes:
        score: how surely it is a success, 0–1: calibrated by people's labels where there are enough, else the judge's
            confidence; 0.5 where no judge said.
    """

    run: EncodedRun
    score: float
    _place: tuple[int, int]

    @property
    def rank(self) -> tuple[float, str]:
        """Order among successes: the surest first; among failures its reverse."""
        return -self.score, self.run.selected.run_id


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
    """Takes runs one by one and keeps their records in a file, so that each is read once."""

    def __init__(self, folder: Path, pairs_per_task: int) -> None:
        """Keep records in a file in this folder, which has no name and goes with the process."""
        self.left_out: Counter[str] = Counter()
        self._most = pairs_per_task
        self._records: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by ``close``
        # By what was asked. Families do not divide them: they are of runs, by what came of a task too.
        self._tasks: dict[str, dict[bool, list[PairSide]]] = defaultdict(lambda: {True: [], False: []})

    def add(self, run: EncodedRun) -> None:
        """Take a run, encoded as one side of a pair."""
        asked, succeeded, record = run.encoded
        place = self._records.tell(), len(record)
        self._records.write(record)
        kept = run.without_content()
        self._tasks[asked][succeeded].append(PairSide(kept, _score(run), place))

    def pairs(self) -> Iterator[Pair]:
        """Yield the surest success of each task with its surest failure, then the next two, and so on."""
        for sides in self._tasks.values():
            yield from self._pairs_of(sides)

    def families(self) -> list[FamilyPairs]:
        """Return what there is to pair by task family, the most pairs first.

        Runs that were asked the same may be in several families; they count in that of the surest success among them,
        or else of the first failure, so that a family's pairs are of its successes and failures.
        """
        families: dict[str | None, FamilyPairs] = {}
        for sides in self._tasks.values():
            successes, failures = sorted(sides[True], key=lambda side: side.rank), sides[False]
            family_id = (successes or failures)[0].run.selected.family_id
            family = families.setdefault(family_id, FamilyPairs(family_id))
            family.successes += len(successes)
            family.failures += len(failures)
            family.tasks += bool(successes and failures)
            for pair in self._pairs_of(sides):
                family.parted_at = (family.parted_at or 0.0) + pair.preference.parted_at
                family.pairs += 1
        for family in families.values():
            if family.parted_at is not None:
                family.parted_at /= family.pairs
        return sorted(families.values(), key=lambda one: (-one.pairs, -one.tasks, one.family_id or ""))

    def close(self) -> None:
        """Remove the records."""
        self._records.close()

    def _pairs_of(self, sides: dict[bool, list[PairSide]]) -> Iterator[Pair]:
        best = sorted(sides[True], key=lambda side: side.rank)[: self._most]
        worst = sorted(sides[False], key=lambda side: (side.score, side.run.selected.run_id))[: self._most]
        matched = min(len(best), len(worst))
        self.left_out[NO_PARTNER] += len(sides[True]) + len(sides[False]) - 2 * matched
        for chosen, rejected in zip(best[:matched], worst[:matched], strict=True):
            found = preference(self._record(chosen), self._record(rejected))
            if found is None:
                self.left_out[NO_DECISION] += 2
            else:
                yield Pair(chosen, rejected, found)

    def _record(self, side: PairSide) -> JsonObject:
        start, length = side._place
        self._records.seek(start)
        record: JsonObject = json.loads(self._records.read(length))
        return record


def _score(run: EncodedRun) -> float:
    if run.probability_success is not None:
        return run.probability_success
    if run.confidence is None:
        return _UNSURE
    return run.confidence if run.outcome == "success" else 1 - run.confidence
