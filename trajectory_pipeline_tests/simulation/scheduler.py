"""Runs several workers at once, step by step; a seed decides who continues, who fails and who is killed, and where.

One thread runs at a time, until it pauses at the next point, ends, or waits in Postgres for another worker's lock. So
real locks decide what excludes what, and a seed still gives one history. README.md of this folder says how to use it.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.errors import PipelineError, SinkError
from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.maintenance import retention
from trajectory_pipeline.runtime import threads
from trajectory_pipeline.storage.parquet.store import ParquetStore, StagedFile
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline_tests.server_databases import count_lock_waits
from trajectory_pipeline_tests.simulation.pausable_threads import (
    Killed,
    PausableExecutor,
    PausableThread,
    State,
    ThreadRegistry,
    Worker,
)

_LOCK_POLL_SECONDS = 0.01
_EVENT_PROBABILITY = 0.08
_KILL_OR_FAIL_PROBABILITY = 0.03

PAUSE_POINTS: dict[str, tuple[Any, str]] = {
    "the source's rows": (Snapshot, "tables_of_runs"),
    "the search for runs that left": (Snapshot, "run_locations"),
    "a file's rows": (ParquetStore, "read"),
    "the raw rows of a small partition": (ParquetStore, "read_small"),
    "the count of raw rows": (ParquetStore, "rows"),
    "the locations of runs": (PartitionTransaction, "set_run_locations"),
    "the merge": (PartitionTransaction, "merge"),
    "the ledger": (PartitionTransaction, "record"),
    "the publication": (PartitionTransaction, "publish"),
    "the rename": (StagedFile, "publish"),
    "the commit": (psycopg.Connection, "commit"),
    "the removal of rows": (retention, "remove_rows"),
    "the removal of files": (retention, "remove_files"),
}
"""By name: class or module, and function. A worker pauses before and after it, and at each item of a generator."""


class Action(StrEnum):
    """What happens to a paused thread."""

    CONTINUE = "continue"
    FAIL = "fail"
    KILL = "kill"


class Scheduler:
    """Resumes the threads of workers one at a time.

    Args:
        database_url: whose locks the workers wait for.
        rng: the only source of chance.
    """

    def __init__(self, database_url: str, rng: random.Random) -> None:
        self._url = database_url
        self._rng = rng
        self._registry = ThreadRegistry()

    def run(
        self,
        jobs: Sequence[Callable[[], object]],
        event: Callable[[], object],
        choose_action: Callable[[PausableThread], Action],
    ) -> list[str]:
        """Run all jobs to their ends, with an event now and then in between; returns what happened.

        Args:
            jobs: what each worker does.
            event: called now and then while all workers are paused.
            choose_action: what happens to a paused thread; a kill ends all threads of its worker.
        """
        workers = [Worker(f"worker {number}", self._registry) for number in range(len(jobs))]
        main_threads = [PausableThread(job, worker) for job, worker in zip(jobs, workers, strict=True)]
        history: list[str] = []
        while not all(worker.ended for worker in workers):
            paused = self._wait_until_paused(workers)
            if not paused:
                continue
            if self._rng.random() < _EVENT_PROBABILITY:
                history.append(f"meanwhile: {event()}")
            thread = self._rng.choice(paused)
            where = f"at {thread.paused_at}"
            match choose_action(thread):
                case Action.KILL:
                    history.append(f"{thread.worker.name} killed {where}")
                    thread.worker.kill(thread)
                case Action.FAIL:
                    history.append(f"{thread.worker.name} fails {where}")
                    thread.resume(SinkError("A fault of the simulation."))
                case Action.CONTINUE:
                    thread.resume()
        for thread in main_threads:
            thread.join()
            if isinstance(thread.error, PipelineError):
                history.append(f"{thread.worker.name}: {thread.error}")
            elif thread.error is not None and not isinstance(thread.error, Killed):
                raise thread.error
        return history

    def random_actions(self, kills: int, failures: int) -> Callable[[PausableThread], Action]:
        """Return a choice of actions with at most so many kills and failures, at random points."""
        remaining = {Action.KILL: kills, Action.FAIL: failures}

        def choose(_: PausableThread) -> Action:
            for action in remaining:
                if remaining[action] and self._rng.random() < _KILL_OR_FAIL_PROBABILITY:
                    remaining[action] -= 1
                    return action
            return Action.CONTINUE

        return choose

    def _wait_until_paused(self, workers: Sequence[Worker]) -> list[PausableThread]:
        """Wait until no thread runs, but for those that wait for a lock; returns those that are paused."""
        changed = self._registry.changed
        with changed:
            while True:
                every = [thread for worker in workers for thread in worker.threads]
                paused = [thread for thread in every if thread.state is State.PAUSED]
                running = [thread for thread in every if thread.state is State.RUNNING]
                if not running:
                    return paused
                if not changed.wait(_LOCK_POLL_SECONDS) and paused and count_lock_waits(self._url) >= len(running):
                    return paused

    @contextmanager
    def pause_points(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Make the package pause at the points, in threads of this scheduler's workers."""
        with monkeypatch.context() as patch:
            patch.setattr(threads, "ThreadPoolExecutor", self._executor)
            for name, (owner, function) in PAUSE_POINTS.items():
                original = getattr(owner, function)
                wrap = self._pausing_generator if inspect.isgeneratorfunction(original) else self._pausing_call
                patch.setattr(owner, function, wrap(name, original))
            yield

    def _executor(self, **settings: Any) -> PausableExecutor | ThreadPoolExecutor:
        thread = self._registry.current
        return ThreadPoolExecutor(**settings) if thread is None else PausableExecutor(thread.worker)

    def _pausing_call(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._pause(f"before {name}")
            value = original(*args, **kwargs)
            self._pause(f"after {name}")
            return value

        return wrapped

    def _pausing_generator(self, name: str, original: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def wrapped(*args: Any, **kwargs: Any) -> Iterator[Any]:
            self._pause(f"before {name}")
            for item in original(*args, **kwargs):
                self._pause(f"during {name}")
                yield item
            self._pause(f"after {name}")

        return wrapped

    def _pause(self, point: str) -> None:
        # Looked up at each pause: the thread that asks for the next item of a generator may not be its creator.
        thread = self._registry.current
        if thread is not None:
            thread.pause_at(point)
