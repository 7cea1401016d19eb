"""A pipeline of a test's own over a fresh copy of the sample, workers to kill, and the hours that they work on."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from trajectory_pipeline.sample.load import sample_partitions
from trajectory_pipeline_tests.crashes.processes import Workers, workers
from trajectory_pipeline_tests.stages.pipeline import Pipeline


@pytest.fixture
def pipeline(letta_database: str, trajectory_database: str, tmp_path: Path) -> Pipeline:
    return Pipeline(letta_database, trajectory_database, tmp_path / "parquet")


@pytest.fixture(scope="session")
def crew() -> Iterator[Workers]:
    with workers() as crew:
        yield crew


@pytest.fixture
def hours() -> list[datetime]:
    """Five partitions with runs in them, one after the other."""
    return sorted(sample_partitions())[-5:]
