"""Several workers at once, step by step: who goes on, and who is killed where, is a seed's choice.

A worker runs in a thread and stops at every named point that it passes. One is let go on at a time, until it stops
again, ends, or waits in Postgres for another one's lock; so real locks decide what excludes what, and a seed is still
one history. A worker that is killed stops where it stands: nothing of the package runs to mend it but what the end of
its connections does by itself.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.letta.source import Snapshot
from trajectory_pipeline.sinks.database import PartitionTransaction
from trajectory_pipeline.sinks.parquet import ParquetStore, Prepared

_PATIENCE_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 0.01

POINTS: dict[str, tuple[type, str]] = {
    "the source's rows": (Snapshot, "terminal_runs"),
    "the search for runs that left": (Snapshot, "whereabouts"),
    "the look at the former file": (ParquetStore, "exists"),
    "the notes of where runs are": (PartitionTransaction, "place"),
    "the merge": (PartitionTransaction, "merge"),
    "the ledger": (PartitionTransaction, "record"),
    "the publication": (PartitionTransaction, "publish"),
    "the rename": (Prepared, "publish"),
    "the commit": (psycopg.Connection, "commit"),
}
"""By name: class and method; a worker stops before it and after it."""


class Killed(BaseException):
    """The worker ends here; no handler of the package may catch it."""


class Worker:
    """A thread that works on the pipeline, and stops at every point."""

    def __init__(self, name: str, work: Callable[[], object], crew: "Crew") -> None:
        self.name = name
        self.standing: str | None = "the start"
        self.ended = False
        self.killed_at: str | None = None
        self.refused: PipelineError | None = None
        self.failure: BaseException | None = None
        self._work = work
        self._crew = crew
        self._may_go = threading.Semaphore(0)
        self._doomed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def let_go(self, *, kill: bool = False) -> None:
        self._doomed = kill
        self.standing = None
        self._may_go.release()

    def stop_at(self, point: str) -> None:
        """Called in the worker's own thread."""
        if self.killed_at is not None:
            # Its connections are being closed behind it; it must not do anything more.
            raise Killed
        with self._crew.changed:
            self.standing = point
            self._crew.changed.notify_all()
        self._may_go.acquire()
        if self._doomed:
            self.killed_at = point
            raise Killed

    def join(self) -> None:
        self._thread.join(_PATIENCE_SECONDS)
        assert not self._thread.is_alive(), f"{self.name} does not end"

    def _run(self) -> None:
        self._crew.here.worker = self
        self._may_go.acquire()
        try:
            if not self._doomed:
                self._work()
        except Killed:
            pass
        except PipelineError as error:
            self.refused = error
        except BaseException as error:
            self.failure = error
        finally:
            with self._crew.changed:
                self.ended = True
                self._crew.changed.notify_all()


class Crew:
    """Workers that are let go on one at a time."""

    def __init__(self, database_url: str, chance: random.Random) -> None:
        self._url = database_url
        self._chance = chance
        self.changed = threading.Condition()
        self.here = threading.local()

    def run(self, works: Sequence[Callable[[], object]], between: Callable[[], object], kills: int) -> list[str]:
        """Run all of them to their ends, with something else done now and then between; returns what happened.

        Args:
            works: what each worker does.
            between: done at times while all of them stand still.
            kills: how many of them may be killed on their way.
        """
        workers = [Worker(f"worker {number}", work, self) for number, work in enumerate(works)]
        told: list[str] = []
        while any(not worker.ended for worker in workers):
            standing = self._wait_until_still(workers)
            if not standing:
                continue
            if self._chance.random() < 0.08:
                told.append(f"between: {between()}")
            worker = self._chance.choice(standing)
            kill = kills > 0 and self._chance.random() < 0.04
            kills -= kill
            if kill:
                told.append(f"{worker.name} killed at {worker.standing}")
            worker.let_go(kill=kill)
        for worker in workers:
            worker.join()
            if worker.failure is not None:
                raise worker.failure
            if worker.refused is not None:
                told.append(f"{worker.name}: {worker.refused}")
        return told

    def _wait_until_still(self, workers: Sequence[Worker]) -> list[Worker]:
        """Wait until every worker stands, ended or waits for a lock; returns those that stand."""
        with self.changed:
            while True:
                standing = [worker for worker in workers if not worker.ended and worker.standing is not None]
                going = [worker for worker in workers if not worker.ended and worker.standing is None]
                if not going:
                    return standing
                if not self.changed.wait(_LOOK_AGAIN_SECONDS) and standing and self._waiting_for_locks() >= len(going):
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
            for name, (owner, method) in POINTS.items():
                patch.setattr(owner, method, self._stopping(name, getattr(owner, method)))
            yield

    def _stopping(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            worker: Worker | None = getattr(self.here, "worker", None)
            if worker is None:
                return original(*args, **more)
            worker.stop_at(f"before {name}")
            value = original(*args, **more)
            worker.stop_at(f"after {name}")
            return value

        return wrapped
