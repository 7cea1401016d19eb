"""A backfill and judging on Celery workers, of which some are killed at random: the end equals a build from scratch.

``DISTRIBUTED_PARTITIONS`` is how many (2,000 at full size), ``DISTRIBUTED_WORKERS`` by how many workers,
``DISTRIBUTED_KILLS`` how many processes are killed, ``DISTRIBUTED_SEED`` which ones and when. A failing run prints its
seed.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.distributed.conftest import Deployment
from trajectory_pipeline_tests.distributed.equality import check_equal_to_scratch, check_verdicts
from trajectory_pipeline_tests.distributed.system import Process, running
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

PARTITIONS = int(os.environ.get("DISTRIBUTED_PARTITIONS", "48"))
KILLS = int(os.environ.get("DISTRIBUTED_KILLS", "6"))
WORKERS = int(os.environ.get("DISTRIBUTED_WORKERS", "2"))
SEED = int(os.environ.get("DISTRIBUTED_SEED", "0")) or random.randrange(1, 1_000_000)
TABLES = (TERMINAL_RUNS, TRAJECTORIES, REFINED_OUTCOMES)
PATIENCE_SECONDS = 900 + 4 * PARTITIONS
IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class Killer:
    """Kills a process now and then, and starts it again a moment later, as its supervisor would."""

    def __init__(self, deployment: Deployment, rng: random.Random) -> None:
        self._rng = rng
        self._down: list[tuple[float, Process]] = []
        self._next = time.monotonic() + 25
        self.killed: Counter[str] = Counter()
        system = deployment.system
        self._choices = [*system.workers, *system.workers, system.redis, system.daemon]

    def act(self) -> None:
        """Do what is due now."""
        now = time.monotonic()
        for at, process in list(self._down):
            if now >= at:
                process.start()
                self._down.remove((at, process))
        if now < self._next or self.killed.total() >= KILLS:
            return
        process = self._rng.choice(self._choices)
        if any(process is other for _, other in self._down):
            return
        if process.name.startswith("worker") and self._rng.random() < 0.3:
            if process.kill_one_child():
                self.killed[f"child of {process.name}"] += 1
        else:
            process.kill()
            self.killed[process.name] += 1
            self._down.append((now + self._rng.uniform(0.5, 5), process))
        self._next = now + self._rng.uniform(5, 25)

    @property
    def done(self) -> bool:
        return self.killed.total() >= KILLS and not self._down


@pytest.mark.timeout(PATIENCE_SECONDS + 600)
def test_killed_workers_broker_and_daemon_change_nothing(
    deploy: Callable[..., Deployment],
    make_database: Callable[[str | None], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    print(f"DISTRIBUTED_SEED={SEED}")
    deployment = deploy(PARTITIONS, workers=WORKERS, batch=max(4, PARTITIONS // 80), ENABLE_TRAJECTORY_CAPTURE="true")
    system, hours, sink = deployment.system, deployment.hours, deployment.sink
    killer = Killer(deployment, random.Random(SEED))
    with running(system):
        for name in ("DAGSTER_HOME", "DAGSTER_PG_URL", "DAGSTER_CELERY_BROKER_URL", "DAGSTER_CELERY_BACKEND_URL"):
            monkeypatch.setenv(name, system.environment[name])
        with dg.DagsterInstance.get() as instance:
            backfill = system.launch_backfill(["terminal_runs", "trajectories"], hours)
            started = time.monotonic()
            until = started + PATIENCE_SECONDS
            is_told = False
            most_memory, tell = 0, time.monotonic() + 30
            while not (killer.done and is_over(sink, hours, instance, backfill)):
                assert time.monotonic() < until, f"{progress(sink, instance)}; killed: {dict(killer.killed)}"
                killer.act()
                system.check_alive()
                if time.monotonic() > tell:
                    print(progress(sink, instance), f"killed: {dict(killer.killed)}", flush=True)
                    tell += 30
                if not is_told and is_backfilled(sink, hours):
                    print(f"backfilled by {WORKERS} workers after {time.monotonic() - started:.0f} s", flush=True)
                    is_told = True
                most_memory = max(most_memory, *(worker.memory_bytes() for worker in system.workers))
                time.sleep(1)
            runs = Counter(str(run.status) for run in instance.get_runs())
            print(waits(instance), flush=True)
            print(f"judged, and nothing queued, after {time.monotonic() - started:.0f} s", flush=True)
        for process in (system.daemon, system.code_server, *system.workers):
            process.kill()
        print(f"killed: {dict(killer.killed)}; runs: {dict(runs)}; most memory: {most_memory / 1e6:.0f} MB")
        scratch = Pipeline(sink.letta_url, make_database("template_trajectory"), tmp_path / "scratch")
        scratch.capture(*hours)
        check_equal_to_scratch(sink, scratch, hours)
        check_verdicts(sink, hours)
        assert most_memory <= 700e6


def is_backfilled(sink: Pipeline, hours: list[datetime]) -> bool:
    """Whether every partition is in the ledger, of both assets of the backfill."""
    captured = {partition_key(hour) for hour in hours}
    return all(captured <= sink.database.ledger(table.name).keys() for table in (TERMINAL_RUNS, TRAJECTORIES))


def is_over(sink: Pipeline, hours: list[datetime], instance: dg.DagsterInstance, backfill: str) -> bool:
    """Whether every partition is in the ledger, the backfill has ended, and no run is in progress."""
    # An hour without runs has nothing to judge.
    judged = {row["partition_key"] for row in sink.ask("SELECT DISTINCT partition_key FROM trajectory.trajectories")}
    if not is_backfilled(sink, hours) or not judged <= sink.database.ledger(REFINED_OUTCOMES.name).keys():
        return False
    found = instance.get_backfill(backfill)
    if found is None or found.status in (BulkActionStatus.REQUESTED,):
        return False
    return (
        not instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS), limit=1)
        and sink.ask("SELECT 1 FROM trajectory.outcomes WHERE verdict_status IS NULL LIMIT 1") == []
    )


def waits(instance: dg.DagsterInstance) -> str:
    """Return in words how long runs waited in the queue, and from their launch to their start on a worker."""
    queued: list[float] = []
    launched: list[float] = []
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])):
        stats = instance.get_run_stats(run.run_id)
        if stats.enqueued_time and stats.launch_time and stats.start_time:
            queued.append(stats.launch_time - stats.enqueued_time)
            launched.append(stats.start_time - stats.launch_time)
    return (
        f"median wait of {len(queued)} runs: {median(queued or [0]):.1f} s in the queue,"
        f" {median(launched or [0]):.1f} s from launch to start on a worker"
    )


def progress(sink: Pipeline, instance: dg.DagsterInstance) -> str:
    """Return in words how far it is."""
    held = {table.name: len(sink.database.ledger(table.name)) for table in TABLES}
    [left] = sink.ask("SELECT count(*) AS runs FROM trajectory.outcomes WHERE verdict_status IS NULL")
    runs = dict(Counter(str(run.status) for run in instance.get_runs()))
    return f"in the ledger: {held}; {left['runs']} without a verdict; runs: {runs}"
