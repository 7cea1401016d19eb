"""That the named points are real: each stops a worker in whichever of its threads, before, amid and after."""

import inspect
import random
from pathlib import Path

import pytest

from trajectory_pipeline.maintenance.retention import prune_partition
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.simulation.conftest import emptied
from trajectory_pipeline_tests.simulation.interleaving import POINTS, Crew, Fate
from trajectory_pipeline_tests.simulation.scheduler import BEGINNING, Strand
from trajectory_pipeline_tests.simulation.source import HOURS, SOURCE_TABLES, Source


def test_a_worker_stops_at_every_point(
    databases: dict[str, str], sink_tables: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(emptied(databases["letta"], SOURCE_TABLES), random.Random(1))
    sink = Pipeline(source.url, emptied(databases["sink"], sink_tables), folder)
    crew = Crew(sink.database_url, random.Random(1))
    stood: set[str] = set()

    def note(strand: Strand) -> Fate:
        stood.add(strand.standing_at)
        return "go on"

    def work() -> None:
        sink.capture(*HOURS)
        source.delete_run()
        sink.capture(*HOURS)
        prune_partition("trajectories", HOURS[0], sink.storage)

    for _ in range(5):
        source.end_run()
    with crew.stopping(monkeypatch):
        crew.run([work], between=lambda: None, fate=note)
    source.close()
    expected = {BEGINNING} | {f"{when} {name}" for name in POINTS for when in ("before", "after")}
    yielding = [name for name, (owner, method) in POINTS.items() if inspect.isgeneratorfunction(getattr(owner, method))]
    assert stood == expected | {f"amid {name}" for name in yielding}
