"""A pipeline with the simulated judge, over a fresh copy of the sample, and its partition with the most runs."""

from pathlib import Path

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, only

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
"""The partition with the most runs."""


@pytest.fixture
def pipeline(letta_database: str, trajectory_database: str, tmp_path: Path, judge: SimulatedJudge) -> Pipeline:
    return Pipeline(letta_database, trajectory_database, tmp_path / "parquet", judge.base_url)


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    """The pipeline after ``HOUR`` is captured and converted."""
    pipeline.capture(HOUR)
    return pipeline


def eligible(pipeline: Pipeline) -> int:
    """The number of trajectories that a judge can be asked about."""
    return int(only(pipeline.ask("SELECT count(*) AS n FROM trajectory.trajectories WHERE message_count > 0"))["n"])
