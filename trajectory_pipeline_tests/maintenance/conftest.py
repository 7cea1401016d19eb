"""A pipeline over a fresh copy of the sample."""

from pathlib import Path

import pytest

from trajectory_pipeline_tests.pipeline.materializing import Pipeline


@pytest.fixture
def pipeline(letta_database: str, trajectory_database: str, tmp_path: Path) -> Pipeline:
    return Pipeline(letta_database, trajectory_database, tmp_path / "parquet")
