"""That a worker pauses at every pause point, in whichever of its threads: before, during and after."""

import inspect
import random
from pathlib import Path

import pytest

from trajectory_pipeline.maintenance.retention import prune_partition
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.simulation.conftest import empty_tables
from trajectory_pipeline_tests.simulation.pausable_threads import START, PausableThread
from trajectory_pipeline_tests.simulation.random_source import HOURS, SOURCE_TABLES, RandomSource
from trajectory_pipeline_tests.simulation.scheduler import PAUSE_POINTS, Action, Scheduler


def test_scheduler_pauses_workers_at_every_pause_point(
    databases: dict[str, str], sink_tables: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = RandomSource(empty_tables(databases["letta"], SOURCE_TABLES), random.Random(1))
    sink = Pipeline(source.url, empty_tables(databases["sink"], sink_tables), folder)
    scheduler = Scheduler(sink.database_url, random.Random(1))
    paused_at: set[str] = set()

    def record(thread: PausableThread) -> Action:
        paused_at.add(thread.paused_at)
        return Action.CONTINUE

    def job() -> None:
        sink.capture(*HOURS)
        source.delete_run()
        for hour in HOURS:
            sink.read(hour)
            # By itself: a range has its own way to small partitions.
            sink.convert(hour)
        prune_partition("trajectories", HOURS[0], sink.storage)

    for _ in range(5):
        source.end_run()
    with scheduler.pause_points(monkeypatch):
        scheduler.run([job], event=lambda: None, choose_action=record)
    source.close()
    expected = {START} | {f"{when} {name}" for name in PAUSE_POINTS for when in ("before", "after")}
    generators = [
        name
        for name, (owner, function) in PAUSE_POINTS.items()
        if inspect.isgeneratorfunction(getattr(owner, function))
    ]
    assert paused_at == expected | {f"during {name}" for name in generators}


def test_page_of_the_simulation_lists_every_pause_point() -> None:
    page = (Path(__file__).parent / "README.md").read_text()
    assert [name for name in PAUSE_POINTS if f"| {name} |" not in page] == []
