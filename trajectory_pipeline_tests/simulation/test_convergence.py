"""The promise of the sinks, under random histories.

A source changes at random (runs end, flip, run again, move over an hour's edge, get late rows, are deleted and brought
back; agents vanish; a restore rewrites all; clocks are put), while ticks, backfills, ranges and, in some histories,
prunes work at once, step by step, and fail or are killed at random points, in whichever of their threads; ledger rows
are lost, files are left behind. Then the source is left alone, what is pruned is brought back, and a bounded number of
ticks must bring both sinks, the ledger and the quarantine to exactly what a build from scratch gives; runs that were
captured and are gone from the source are kept once, and marked, unless anything was pruned; verdicts stay attached; and
whatever is materialised then changes nothing.

``make simulate SEEDS=1000`` runs more histories. A seed that fails says how to run it again.
"""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trajectory_pipeline.letta import snapshot as reading
from trajectory_pipeline.letta.fingerprint import EMPTY
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet import io
from trajectory_pipeline.storage.postgres import run_locations
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.simulation.conftest import emptied
from trajectory_pipeline_tests.simulation.interleaving import Crew
from trajectory_pipeline_tests.simulation.pooled import Pools
from trajectory_pipeline_tests.simulation.source import HOURS, SOURCE_TABLES, Source
from trajectory_pipeline_tests.simulation.work import Work

FIRST_SEED = int(os.environ.get("SIMULATION_FIRST_SEED", "1"))
SEEDS = int(os.environ.get("SIMULATION_SEEDS", "40"))
STEPS = 10
TICKS_TO_CONVERGE = 4

Row = dict[str, Any]


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_the_sinks_come_to_what_a_build_from_scratch_gives(
    seed: int,
    databases: dict[str, str],
    sink_tables: str,
    pools: Pools,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools.install(monkeypatch)
    chance = random.Random(seed)
    monkeypatch.setattr(reading, "RUNS_PER_BATCH", chance.choice([2, 500]))
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 1)
    monkeypatch.setattr(io, "_ROWS_AT_ONCE", chance.choice([2, 250]))
    monkeypatch.setattr(run_locations, "_IDS_AT_ONCE", chance.choice([1, 2, 10_000]))
    source = Source(emptied(databases["letta"], SOURCE_TABLES), chance)
    sink = Pipeline(source.url, emptied(databases["sink"], sink_tables), folder / "sink")
    crew = Crew(sink.database_url, chance)
    must_be_kept: set[str] = set()

    def change() -> str:
        before = source.terminal_run_ids()
        held = {row["run_id"] for row in sink.ask("SELECT * FROM trajectory.run_locations") if row["partition_key"]}
        told = source.change()
        must_be_kept.update((before - source.run_ids()) & held)
        return told

    work = Work(sink, chance, crew, change)
    history = [source.end_run() for _ in range(3)]
    try:
        with crew.stopping(monkeypatch):
            for _ in range(STEPS):
                step = chance.choice([change, change, change, work.act, work.act, work.disturb])
                history.append(step())
        history.append(f"brought back {[HOURS.index(hour) for hour in work.bring_back()]}")
        for _ in range(TICKS_TO_CONVERGE):
            history.append(f"tick {[HOURS.index(hour) for hour in work.tick()]}")
        assert work.stale() == []
        scratch = Pipeline(source.url, emptied(databases["scratch"], sink_tables), folder / "scratch")
        scratch.capture(*HOURS)
        kept = set() if work.prunes else must_be_kept - source.run_ids() - source.ran_again
        check_sinks(sink, scratch, source.terminal_run_ids(), kept)
        if not work.prunes:
            check_verdicts(sink, work.verdicts)
        if seed % 3 == 0:
            check_that_nothing_changes(sink)
        # The next materialisation of a partition removes what a killed one left in its folders.
        sink.capture(*work.untidy)
        assert not leftovers(folder / "sink")
    except BaseException:
        told = "\n  ".join(history)
        print(
            f"The history of seed {seed}:\n  {told}\nRun it again:\n  make simulate SEEDS=1 FIRST_SEED={seed}",
        )
        raise
    finally:
        source.close()


# ---- what must hold ------------------------------------------------------------------------------------------------


def check_sinks(sink: Pipeline, scratch: Pipeline, there: set[str], must_be_kept: set[str]) -> None:
    """Rows of runs that the source holds are those of a build from scratch; the others are kept and marked."""
    for name, rows in (
        ("raw rows", lambda pipeline: parquet_rows(pipeline, TERMINAL_RUNS)),
        ("trajectories in Parquet", lambda pipeline: parquet_rows(pipeline, TRAJECTORIES)),
        ("trajectories in Postgres", lambda pipeline: postgres_rows(pipeline, "trajectories")),
        ("quarantine", lambda pipeline: postgres_rows(pipeline, "quarantine")),
    ):
        expected, found = rows(scratch), rows(sink)
        assert {run_id: row for run_id, row in found.items() if run_id in there} == expected, name
        marks = {run_id: row.get("deleted_at", True) for run_id, row in found.items() if run_id not in there}
        assert all(marks.values()), (name, marks)
    raw, parquet = parquet_rows(sink, TERMINAL_RUNS), parquet_rows(sink, TRAJECTORIES)
    assert must_be_kept <= raw.keys()
    assert postgres_rows(sink, "trajectories").keys() == parquet.keys()
    assert raw.keys() == parquet.keys() | postgres_rows(sink, "quarantine").keys()
    assert ledger(sink) == ledger(scratch)
    located = {row["run_id"]: row["partition_key"] for row in sink.ask("SELECT * FROM trajectory.run_locations")}
    assert {run_id: row["partition_key"] for run_id, row in parquet.items()}.items() <= located.items()


def check_verdicts(sink: Pipeline, verdicts: dict[str, str]) -> None:
    """What was judged stays, and is shown with the trajectory that it was said of, wherever that one is by now."""
    stored = {(row["run_id"], row["content_digest"]) for row in sink.ask("SELECT * FROM trajectory.verdicts")}
    assert set(verdicts.items()) <= stored
    rows = sink.ask("SELECT run_id, content_digest FROM trajectory.trajectories WHERE deleted_at IS NULL")
    judged = {row["run_id"] for row in sink.ask("SELECT * FROM trajectory.outcomes") if row["verdict_status"]}
    assert {row["run_id"] for row in rows if verdicts.get(row["run_id"]) == row["content_digest"]} <= judged


def check_that_nothing_changes(sink: Pipeline) -> None:
    """A materialisation of everything that was captured writes no row and no file."""

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


# ---- what is there -------------------------------------------------------------------------------------------------


def postgres_rows(pipeline: Pipeline, table: str) -> dict[str, Row]:
    times = ("first_captured_at", "updated_at", "first_seen_at", "last_seen_at")
    rows = pipeline.ask(f"SELECT * FROM trajectory.{table}")
    return {row["run_id"]: {name: value for name, value in row.items() if name not in times} for row in rows}


def parquet_rows(pipeline: Pipeline, table: Table) -> dict[str, Row]:
    rows = [row for hour in HOURS for batch in pipeline.store.read(table, hour) for row in batch.to_pylist()]
    twice = [run_id for run_id, number in Counter(row["run_id"] for row in rows).items() if number > 1]
    assert not twice, f"in more than one partition's file: {twice}"
    return {row["run_id"]: row for row in rows}


def ledger(pipeline: Pipeline) -> dict[str, tuple[str, int, int]]:
    """Of each hour with runs in the source: fingerprint, and runs and messages read."""
    entries = pipeline.database.ledger(TERMINAL_RUNS.name)
    converted = pipeline.database.ledger(TRAJECTORIES.name)
    assert entries.keys() == converted.keys()
    assert entries.keys() <= {partition_key(hour) for hour in HOURS}
    return {
        key: (entry["fingerprint"], entry["counts"]["runs"], entry["counts"]["messages"])
        for key, entry in entries.items()
        if entry["fingerprint"] != EMPTY
    }


def leftovers(folder: Path) -> list[Path]:
    """Files that are not a partition's."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "part-0.parquet"]
