"""The sinks converge, whatever happens: a property test over random histories.

In a history, the source changes at random, while ticks, backfills, ranges and (in some histories) prunes run at once,
step by step, and fail or are killed at random points; ledger rows are lost, temporary files are left behind, the source
hides rows or is a restored clone, an account stalls while workers judge. Then the
source stays as it is, pruned partitions are materialized again, and a few ticks must bring both sinks, the ledger and
the quarantine to exactly what a fresh build gives. Captured runs that the source no longer has are there once, marked
as deleted, unless anything was pruned. Verdicts stay attached, and none is paid for twice. A further materialization
changes nothing.

``make simulate SEEDS=1000`` runs more histories; README.md says more. A failing seed prints how to run it again.
"""

import os
import random
from collections import Counter
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.letta import range_snapshot, snapshot
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline import capture, former_rows
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.source_protocol import EMPTY
from trajectory_pipeline.storage.parquet import io
from trajectory_pipeline.storage.postgres import run_locations
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.simulation.conftest import empty_tables
from trajectory_pipeline_tests.simulation.connection_pools import ConnectionPools
from trajectory_pipeline_tests.simulation.random_source import HOURS, SOURCE_TABLES, RandomSource
from trajectory_pipeline_tests.simulation.random_work import ConfirmingPipeline, RandomWork
from trajectory_pipeline_tests.simulation.scheduler import Scheduler

FIRST_SEED = int(os.environ.get("SIMULATION_FIRST_SEED", "1"))
SEEDS = int(os.environ.get("SIMULATION_SEEDS", "3"))
STEPS = 10
TICKS_TO_CONVERGE = 4

Row = dict[str, Any]


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_sinks_after_a_random_history_equal_a_fresh_build(
    seed: int,
    databases: dict[str, str],
    sink_tables: str,
    pools: ConnectionPools,
    judge: SimulatedJudge,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools.install(monkeypatch)
    rng = random.Random(seed)
    shared_seconds = rng.choice([0.05, 0.5, 30.0])
    monkeypatch.setattr(snapshot, "RUNS_PER_BATCH", rng.choice([2, 500]))
    for module in (capture, range_snapshot):
        # A shared snapshot is used for so long, and only where nobody captured the partition for twice as long.
        monkeypatch.setattr(module, "SHARED_SECONDS", shared_seconds)
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 1)
    monkeypatch.setattr(io, "_ROWS_AT_ONCE", rng.choice([2, 250]))
    monkeypatch.setattr(run_locations, "_IDS_AT_ONCE", rng.choice([1, 2, 10_000]))
    # Read what changed alone, or always all.
    monkeypatch.setattr(former_rows, "_FEW_RUNS", rng.choice([1, 1, 100]))
    monkeypatch.setattr(former_rows, "_CONTROL_RUNS", rng.choice([1, 2]))
    source = RandomSource(empty_tables(databases["letta"], SOURCE_TABLES), rng)
    sink = ConfirmingPipeline(source.url, empty_tables(databases["sink"], sink_tables), folder / "sink", judge.base_url)
    scheduler = Scheduler(sink.database_url, rng)
    must_remain: set[str] = set()

    def change_source() -> str:
        before = source.terminal_run_ids()
        captured = {row["run_id"] for row in sink.ask("SELECT * FROM trajectory.run_locations") if row["partition_key"]}
        event = source.change()
        must_remain.update((before - source.run_ids()) & captured)
        return event

    def tick_unconfirmed(shown: AbstractContextManager[str]) -> str:
        """The source shows less for a while, and nobody confirms: nothing may be taken for deleted."""
        before = deleted(sink)
        sink.confirms = False
        with shown as happened:
            work.tick_one_by_one()
        sink.confirms = True
        assert not (deleted(sink) - before) & source.run_ids(), happened
        return happened

    def hide_source() -> str:
        return tick_unconfirmed(source.hidden())

    def restore_clone() -> str:
        work.change_source_identity()
        return tick_unconfirmed(source.restored_clone())

    work = RandomWork(sink, rng, scheduler, change_source)
    steps = [
        *[change_source] * 6,
        *[work.run_workers] * 4,
        *[work.damage_state] * 2,
        hide_source,
        restore_clone,
        work.judge_while_account_stalls,
    ]
    history = [source.end_run() for _ in range(3)]
    try:
        with scheduler.pause_points(monkeypatch):
            for _ in range(STEPS):
                step = rng.choice(steps)
                history.append(step())
        history.append(f"restored {[HOURS.index(hour) for hour in work.restore_pruned()]}")
        for _ in range(TICKS_TO_CONVERGE):
            history.append(f"tick {[HOURS.index(hour) for hour in work.tick()]}")
        assert work.stale() == []
        history.append(f"published {[HOURS.index(hour) for hour in work.unpublished()]}")
        work.publish(work.unpublished())
        check_publication(sink)
        scratch = Pipeline(source.url, empty_tables(databases["scratch"], sink_tables), folder / "scratch")
        scratch.capture(*HOURS)
        remaining = set() if work.prunes else must_remain - source.run_ids() - source.restarted
        check_sinks(sink, scratch, source.terminal_run_ids(), remaining)
        if not work.prunes:
            check_verdicts(sink, work.verdicts)
        check_spending(sink, judge)
        if seed % 3 == 0:
            check_idempotence(sink)
        # The next materialization of a partition removes what a killed one left in its folders.
        sink.capture(*work.with_leftovers)
        assert not leftovers(folder / "sink")
    except BaseException:
        events = "\n  ".join(history)
        print(
            f"The history of seed {seed}:\n  {events}\nRun it again:\n  make simulate SEEDS=1 FIRST_SEED={seed}",
        )
        raise
    finally:
        source.close()


# ---- properties ----------------------------------------------------------------------------------------------------


def check_sinks(sink: Pipeline, scratch: Pipeline, in_source: set[str], must_remain: set[str]) -> None:
    """Rows of runs that the source has equal those of a fresh build; the others are marked as deleted."""
    for name, rows in (
        ("raw rows", lambda pipeline: parquet_rows(pipeline, TERMINAL_RUNS)),
        ("trajectories in Parquet", lambda pipeline: parquet_rows(pipeline, TRAJECTORIES)),
        ("trajectories in Postgres", lambda pipeline: postgres_rows(pipeline, "trajectories")),
        ("quarantine", lambda pipeline: postgres_rows(pipeline, "quarantine")),
    ):
        expected, found = rows(scratch), rows(sink)
        assert {run_id: row for run_id, row in found.items() if run_id in in_source} == expected, name
        marks = {run_id: row.get("deleted_at", True) for run_id, row in found.items() if run_id not in in_source}
        assert all(marks.values()), (name, marks)
    raw, parquet = parquet_rows(sink, TERMINAL_RUNS), parquet_rows(sink, TRAJECTORIES)
    assert must_remain <= raw.keys()
    assert postgres_rows(sink, "trajectories").keys() == parquet.keys()
    assert raw.keys() == parquet.keys() | postgres_rows(sink, "quarantine").keys()
    assert ledger(sink) == ledger(scratch)
    located = {row["run_id"]: row["partition_key"] for row in sink.ask("SELECT * FROM trajectory.run_locations")}
    assert {run_id: row["partition_key"] for run_id, row in parquet.items()}.items() <= located.items()


def check_verdicts(sink: Pipeline, verdicts: dict[str, str]) -> None:
    """Verdicts remain, and ``outcomes`` shows each with its trajectory, in whichever partition that now is."""
    stored = {(row["run_id"], row["content_digest"]) for row in sink.ask("SELECT * FROM trajectory.verdicts")}
    assert set(verdicts.items()) <= stored
    rows = sink.ask("SELECT run_id, content_digest FROM trajectory.trajectories WHERE deleted_at IS NULL")
    judged = {row["run_id"] for row in sink.ask("SELECT * FROM trajectory.outcomes") if row["verdict_status"]}
    assert {row["run_id"] for row in rows if verdicts.get(row["run_id"]) == row["content_digest"]} <= judged


def check_spending(sink: Pipeline, judge: SimulatedJudge) -> None:
    """Each call that the judge received is booked, and nothing was asked twice."""
    calls = sink.ask("SELECT verdict_key FROM trajectory.verdict_attempts")
    assert len(calls) == len({row["verdict_key"] for row in calls}) == judge.calls()["received"]
    assert sink.ask("SELECT * FROM trajectory.verdict_locks") == []


def check_publication(sink: Pipeline) -> None:
    """The files hold each verdict once, in the partition of its run, and no side differs from another."""
    rows = sink.ask("SELECT run_id, partition_key FROM trajectory.outcomes WHERE verdict_status IS NOT NULL")
    held = {row["run_id"]: partition_key(hour) for hour in HOURS for row in sink.parquet(REFINED_OUTCOMES, hour)}
    assert held == {row["run_id"]: row["partition_key"] for row in rows}
    scope = CompletenessScope(HOURS[0], timedelta(days=1000))
    assert check_completeness(LettaSource(sink.letta_url), sink.storage, scope).differences == ()


def check_idempotence(sink: Pipeline) -> None:
    """Materializing everything that was captured once more writes no row and no file."""

    def state() -> tuple[list[Row], dict[Path, tuple[int, int]]]:
        files = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sink.folder.rglob("*.parquet")}
        return sink.ask("SELECT run_id, xmin::text AS version FROM trajectory.trajectories ORDER BY 1"), files

    before = state()
    captured = sink.database.ledger(TRAJECTORIES.name)
    for hour in HOURS:
        if partition_key(hour) in captured:
            sink.read(hour)
            sink.convert(hour)
    assert state() == before


# ---- state of a sink -----------------------------------------------------------------------------------------------


def postgres_rows(pipeline: Pipeline, table: str) -> dict[str, Row]:
    times = ("first_captured_at", "updated_at", "first_seen_at", "last_seen_at")
    rows = pipeline.ask(f"SELECT * FROM trajectory.{table}")
    return {row["run_id"]: {name: value for name, value in row.items() if name not in times} for row in rows}


def parquet_rows(pipeline: Pipeline, table: Table) -> dict[str, Row]:
    rows = [row for hour in HOURS for batch in pipeline.store.read(table, hour) for row in batch.to_pylist()]
    duplicates = [run_id for run_id, number in Counter(row["run_id"] for row in rows).items() if number > 1]
    assert not duplicates, f"in more than one partition's file: {duplicates}"
    return {row["run_id"]: row for row in rows}


def ledger(pipeline: Pipeline) -> dict[str, tuple[str | None, int, int]]:
    """Return fingerprint, runs and messages of each partition that has runs in the source."""
    entries = pipeline.database.ledger(TERMINAL_RUNS.name)
    converted = pipeline.database.ledger(TRAJECTORIES.name)
    assert entries.keys() == converted.keys()
    assert entries.keys() <= {partition_key(hour) for hour in HOURS}
    return {
        key: (entry.fingerprint, entry.counts["runs"], entry.counts["messages"])
        for key, entry in entries.items()
        if entry.fingerprint != EMPTY
    }


def deleted(pipeline: Pipeline) -> set[str]:
    """Return the runs of which a raw row or a trajectory is marked as deleted."""
    # A run that moved is in two files until the hour that it left is read again.
    raw = {row["run_id"] for hour in HOURS for row in pipeline.parquet(TERMINAL_RUNS, hour) if row["deleted_at"]}
    rows = pipeline.ask("SELECT run_id FROM trajectory.trajectories WHERE deleted_at IS NOT NULL")
    return raw | {row["run_id"] for row in rows}


def leftovers(folder: Path) -> list[Path]:
    """Return the files that are no partition's file."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "part-0.parquet"]
