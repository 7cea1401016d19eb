"""A source of many partitions, and a deployment over it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from benchmarks.letta_database.load import DatabaseSpec, generate
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE, SimulatedJudge
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour
from trajectory_pipeline.urls import sqlalchemy_url
from trajectory_pipeline_tests.crashes.worker import Stored
from trajectory_pipeline_tests.distributed.system import System, start_system

RUNS_AN_HOUR = 3


@dataclass(frozen=True)
class Deployment:
    """A running system, the hours that its source has runs in, and its sinks as a pipeline of this process."""

    system: System
    hours: list[datetime]
    sink: Stored


@pytest.fixture
def deploy(
    make_database: Callable[[str | None], str],
    _templates: object,
    judge: SimulatedJudge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Deployment]]:
    """A function that starts a deployment over so many partitions, with so many workers."""
    started: list[System] = []

    def make(partitions: int, *, workers: int, batch: int, **settings: str) -> Deployment:
        first = floor_to_hour(datetime.now(UTC)) - partitions * HOUR
        letta = make_database(None)
        generate(letta, DatabaseSpec(partitions * RUNS_AN_HOUR, partitions, first))
        database, dagster = make_database("template_trajectory"), make_database(None)
        system = start_system(
            letta,
            database,
            sqlalchemy_url(dagster, "psycopg2"),
            workers=workers,
            settings={
                "TRAJECTORY_START": f"{first:%Y-%m-%dT%H:00}",
                "TRAJECTORY_BACKFILL_BATCH": str(batch),
                "TRAJECTORY_JUDGE_MODEL": JUDGE_MODEL,
                "TRAJECTORY_PRICES": str(PRICE_TABLE),
                "TRAJECTORY_DAILY_BUDGET_USD": "10000",
                "TRAJECTORY_JUDGE_SETTLE_MINUTES": "0",
                "TRAJECTORY_JUDGE_LOOKBACK_DAYS": "36500",
                "OPENAI_BASE_URL": judge.base_url,
                **settings,
            },
        )
        started.append(system)
        for name, value in system.environment.items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        sink = Stored(letta, database, tmp_path, judge.base_url, uri=system.storage_uri)
        return Deployment(system, [first + number * HOUR for number in range(partitions)], sink)

    yield make
    for system in started:
        system.stop()
    S3FileSystem.clear_instance_cache()
