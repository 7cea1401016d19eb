"""A captured pipeline for each test."""

from pathlib import Path

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline_tests.pipeline.materializing import Pipeline


@pytest.fixture
def pipeline(letta_database: str, trajectory_database: str, tmp_path: Path, judge: SimulatedJudge) -> Pipeline:
    return Pipeline(letta_database, trajectory_database, tmp_path / "parquet", judge.base_url)
