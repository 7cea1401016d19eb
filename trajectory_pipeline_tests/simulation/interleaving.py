"""Several workers at once, step by step: who goes on, and who fails or is killed where, is a seed's choice.

A worker stops at every named point that it passes, in whichever of its threads. One is let go on at a time, until it
stops again, ends, or waits in Postgres for another one's lock; so real locks decide what excludes what, and a seed is
still one history. A worker that is killed stops where it stands, in all its threads: nothing of the package runs to
mend it but what the end of its connections does by itself.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
import pytest

from trajectory_pipeline.errors import PipelineError, SinkError
from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.maintenance import retention
from trajectory_pipeline.runtime import threads
from trajectory_pipeline.storage.parquet.store import ParquetStore, StagedFile
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline_tests.simulation.scheduler import Band, Killed, OneThread, Scene, State, Strand

_LOOK_AGAIN_SECONDS = 0.01

POINTS: dict[str, tuple[Any, str]] = {
    "the source's rows": (Snapshot, "tables_of_runs"),
    "the search for runs that left": (Snapshot, "run_locations"),
    "a file's rows": (ParquetStore, "read"),
    "the look at the raw rows": (ParquetStore, "rows"),
    "the locations of runs": (PartitionTransaction, "set_run_locations"),
    "the merge": (PartitionTransaction, "merge"),
    "the ledger": (PartitionTransaction, "record"),
    "the publication": (PartitionTransaction, "publish"),
    "the rename": (StagedFile, "publish"),
    "the commit": (psycopg.Connection, "commit"),
    "the removal of rows": (retention, "remove_rows"),
    "the removal of files": (retention, "remove_files"),
}
"""By name: class or module, and method; a worker stops before and after it, and at each item of one that yields."""

Fate = Literal["go on", "fail", "be killed"]


class Crew:
    """Workers whose threads are let go on one at a time."""

    def __init__(self, database_url: str, chance: random.Random) -> None:
        self._url = database_url
        self._chance = chance
        self._scene = Scene()

    def run(
        self, works: Sequence[Callable[[], object]], between: Callable[[], object], fate: Callable[[Strand], Fate]
    ) -> list[str]:
        """Run all of them to their ends, with something else done now and then between; returns what happened.

        Args:
            works: what each worker does.
            between: done at times while all of them stand still.
            fate: what becomes of a thread that stands somewhere; with it, its worker is killed.
        """
        bands = [Band(f"worker {number}", self._scene) for number in range(len(works))]
        workers = [Strand(work, band) for work, band in zip(works, bands, strict=True)]
        told: list[str] = []
        while not all(band.ended for band in bands):
            standing = self._wait_until_still(bands)
            if not standing:
                continue
            if self._chance.random() < 0.08:
                told.append(f"between: {between()}")
            strand = self._chance.choice(standing)
            where = f"{strand.band.name} {{}} at {strand.standing_at}"
            match fate(strand):
                case "be killed":
                    told.append(where.format("killed"))
                    strand.band.kill(strand)
                case "fail":
                    told.append(where.format("fails"))
                    strand.let_go(SinkError("A fault of the simulation."))
                case "go on":
                    strand.let_go()
        for worker in workers:
            worker.join()
            if isinstance(worker.error, PipelineError):
                told.append(f"{worker.band.name}: {worker.error}")
            elif worker.error is not None and not isinstance(worker.error, Killed):
                raise worker.error
        return told

    def fates(self, kills: int, faults: int) -> Callable[[Strand], Fate]:
        """Return a choice by which at most so many workers are killed, and so many calls fail, at random points."""
        left: dict[Fate, int] = {"be killed": kills, "fail": faults}

        def fate(_: Strand) -> Fate:
            for one in left:
                if left[one] and self._chance.random() < 0.03:
                    left[one] -= 1
                    return one
            return "go on"

        return fate

    def _wait_until_still(self, bands: Sequence[Band]) -> list[Strand]:
        """Wait until every thread stands, ended or waits for a lock or a call; returns those that stand."""
        changed = self._scene.changed
        with changed:
            while True:
                strands = [strand for band in bands for strand in band.strands]
                standing = [strand for strand in strands if strand.state is State.STANDING]
                going = [strand for strand in strands if strand.state is State.GOING]
                if not going:
                    return standing
                if not changed.wait(_LOOK_AGAIN_SECONDS) and standing and self._waiting_for_locks() >= len(going):
                    return standing

    def _waiting_for_locks(self) -> int:
        # Its own connection, and not one that stops at points.
        with psycopg.connect(self._url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
        assert row is not None
        return int(row[0])

    @contextmanager
    def stopping(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Make the package's work stop at the points, where a worker of this crew does it."""
        with monkeypatch.context() as patch:
            patch.setattr(threads, "ThreadPoolExecutor", self._one_thread)
            for name, (owner, method) in POINTS.items():
                original = getattr(owner, method)
                wrap = self._stopping_amid if inspect.isgeneratorfunction(original) else self._stopping
                patch.setattr(owner, method, wrap(name, original))
            yield

    def _one_thread(self, **settings: Any) -> OneThread | ThreadPoolExecutor:
        strand = self._scene.strand
        return ThreadPoolExecutor(**settings) if strand is None else OneThread(strand.band)

    def _stopping(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            self._stop(f"before {name}")
            value = original(*args, **more)
            self._stop(f"after {name}")
            return value

        return wrapped

    def _stopping_amid(self, name: str, original: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def wrapped(*args: Any, **more: Any) -> Iterator[Any]:
            self._stop(f"before {name}")
            for item in original(*args, **more):
                self._stop(f"amid {name}")
                yield item
            self._stop(f"after {name}")

        return wrapped

    def _stop(self, point: str) -> None:
        # Whoever asks for the next item of a generator is not always the thread that made it.
        strand = self._scene.strand
        if strand is not None:
            strand.stop_at(point)
