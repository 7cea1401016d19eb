"""One simulated judge for the session, and a captured pipeline for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trajectory_pipeline.simulated_judge import SimulatedJudge
from trajectory_pipeline_tests.stages.pipeline import Pipeline


@pytest.fixture(scope="session")
def running_judge() -> Iterator[SimulatedJudge]:
    with SimulatedJudge.start() as judge:
        yield judge


@pytest.fixture
def judge(running_judge: SimulatedJudge) -> SimulatedJudge:
    running_judge.clear_faults()
    running_judge.reset_calls()
    return running_judge


@pytest.fixture
def pipeline(letta_database: str, trajectory_database: str, tmp_path: Path, judge: SimulatedJudge) -> Pipeline:
    return Pipeline(letta_database, trajectory_database, tmp_path / "parquet", judge.base_url)
