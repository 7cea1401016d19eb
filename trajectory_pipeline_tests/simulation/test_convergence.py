"""The promise of the sinks, under random histories.

A source changes at random (runs end, flip, move, get late rows, are deleted; agents vanish; a restore rewrites all),
while the pipeline ticks, backfills and crashes at random points. Then the source is left alone, and a bounded number of
ticks must bring both sinks to exactly what a build from scratch gives: every run once, in one partition; nothing half
done left over; runs that were captured and are gone from the source kept, and marked.

``make simulate SEEDS=1000`` runs more histories; a failing seed reproduces with ``SIMULATION_SEEDS=1`` and
``SIMULATION_FIRST_SEED``.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.schema.letta import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectory import TRAJECTORIES
from trajectory_pipeline_tests.simulation.world import HOURS, SINK_TABLES, SOURCE_TABLES, Source, Worker
from trajectory_pipeline_tests.stages.pipeline import Pipeline

FIRST_SEED = int(os.environ.get("SIMULATION_FIRST_SEED", "1"))
SEEDS = int(os.environ.get("SIMULATION_SEEDS", "20"))
STEPS = 24
TICKS_TO_CONVERGE = 3

Row = dict[str, Any]


@pytest.fixture(scope="module")
def databases(_templates: Any) -> Iterator[dict[str, str]]:
    """Three databases for all histories: the source, the sink, and the sink of the build from scratch."""
    names = {"letta": "template_letta", "sink": "template_trajectory", "scratch": "template_trajectory"}
    for name, template in names.items():
        _templates.create_database(f"simulation_{name}", template)
    yield {name: _templates.url(f"simulation_{name}") for name in names}
    for name in names:
        _templates.drop_database(f"simulation_{name}", force=True)


def emptied(url: str, tables: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {tables} CASCADE".encode())
    return url


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_the_sinks_come_to_what_a_build_from_scratch_gives(
    seed: int, databases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    source = Source(emptied(databases["letta"], SOURCE_TABLES), chance)
    sink = Pipeline(source.url, emptied(databases["sink"], prefixed(SINK_TABLES)), tmp_path / "sink")
    worker = Worker(sink, chance, monkeypatch)
    history = ", ".join(chance.choice([source.change, source.change, worker.act])() for _ in range(STEPS))
    for _ in range(TICKS_TO_CONVERGE):
        worker.tick()
    assert worker.stale() == [], history

    scratch = Pipeline(source.url, emptied(databases["scratch"], prefixed(SINK_TABLES)), tmp_path / "scratch")
    scratch.capture(*HOURS)
    there = source.run_ids()
    source.close()
    for name, rows in (("Postgres", postgres_rows), ("Parquet", parquet_rows)):
        expected, found = rows(scratch), rows(sink)
        assert {run_id: row for run_id, row in found.items() if run_id in there} == expected, (name, history)
        unmarked = [row["run_id"] for row in found.values() if row["run_id"] not in there and row["deleted_at"] is None]
        assert not unmarked, (name, unmarked, history)
    assert postgres_rows(sink).keys() == parquet_rows(sink).keys(), history
    assert not leftovers(tmp_path / "sink"), history


def prefixed(tables: str) -> str:
    return ", ".join(f"trajectory.{table}" for table in tables.split(", "))


def postgres_rows(pipeline: Pipeline) -> dict[str, Row]:
    ours = ("first_captured_at", "updated_at")
    rows = pipeline.ask("SELECT * FROM trajectory.trajectories")
    return {row["run_id"]: {name: value for name, value in row.items() if name not in ours} for row in rows}


def parquet_rows(pipeline: Pipeline) -> dict[str, Row]:
    rows = [row for hour in HOURS for batch in pipeline.store.read(TRAJECTORIES, hour) for row in batch.to_pylist()]
    twice = [run_id for run_id, number in Counter(row["run_id"] for row in rows).items() if number > 1]
    assert not twice, f"in more than one partition's file: {twice}"
    return {row["run_id"]: row for row in rows}


def leftovers(folder: Path) -> list[Path]:
    """Files that are not a partition's; the next writer of a folder removes what a killed one left there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    stray = [path for path in files if path.name != "part-0.parquet"]
    assets = {TERMINAL_RUNS.name, TRAJECTORIES.name}
    return [path for path in stray if path.parent.parent.name in assets]
