"""Workers in processes of their own, waiting for what can be seen of them, and what must hold after all of it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import psycopg

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline_tests.crashes.worker import Stored
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

PATIENCE_SECONDS = 60.0


class Workers:
    """The process that forks workers, and what they say."""

    def __init__(self, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trajectory_pipeline_tests.crashes.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._said: dict[int, queue.Queue[dict[str, Any]]] = defaultdict(queue.Queue)
        self._started: queue.Queue[int] = queue.Queue()
        self._alive: set[int] = set()
        assert json.loads(self._process.stdout.readline()) == {"ready": True}  # type: ignore[union-attr]  # its output is a pipe
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self,
        pipeline: Pipeline,
        hours: list[datetime],
        *,
        rounds: int = 1,
        marked: str | None = None,
        storage: str | None = None,
    ) -> int:
        """Start a worker on these hours; returns its process id."""
        order = {
            "letta": pipeline.letta_url,
            "database": pipeline.database_url,
            "storage": storage or (pipeline.uri if isinstance(pipeline, Stored) else str(pipeline.folder)),
            "hours": [partition_key(hour) for hour in hours],
            "rounds": rounds,
            "marked": marked,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = self._started.get(timeout=PATIENCE_SECONDS)
        self._alive.add(pid)
        return pid

    def result(self, pid: int, *, patience: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait for a worker's end; returns what it said of it."""
        said = self._said[pid].get(timeout=patience)
        self._alive.discard(pid)
        return said

    def ended(self, pid: int) -> bool:
        return not self._said[pid].empty()

    def kill(self, pid: int) -> None:
        """Kill a worker and wait until it is gone."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _lives(pid), f"the end of {pid}")
        self._alive.discard(pid)

    def close(self) -> None:
        for pid in list(self._alive):
            self.kill(pid)
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = json.loads(line)
            if "started" in words:
                self._started.put(words["pid"])
            else:
                self._said[words["pid"]].put(words)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"in vain: waited for {what}"
        time.sleep(0.002)


@contextmanager
def workers(**environment: str) -> Iterator[Workers]:
    crew = Workers(**environment)
    try:
        yield crew
    finally:
        crew.close()


def locks_and_sessions(url: str) -> tuple[int, int]:
    """Advisory locks that are held in a database, and other sessions that are in the middle of something."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())),"
            " (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state <> 'idle')"
        ).fetchone()
    assert row is not None
    return row[0], row[1]
