"""Instances of Dagster in memory, a simulated judge, and one day of the sample that is materialized once."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.defs_state.base import set_defs_state_storage

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings, with_judge
from trajectory_pipeline_tests.defs.dagster_runs import CAPTURE, execute, hours_from, run
from trajectory_pipeline_tests.letta_sample import sample_partitions


@pytest.fixture(autouse=True)
def _no_instance_of_another_test() -> Iterator[None]:
    """Forget the instance that Dagster holds as the current one: it may be gone."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def judged(settings: Settings, judge: SimulatedJudge) -> Settings:
    """The test's settings, with a judge."""
    return with_judge(settings, judge)


@pytest.fixture(scope="session")
def busy_hours() -> list[datetime]:
    """The sample's partitions, those with runs, in order."""
    return list(sample_partitions())


@dataclass(frozen=True)
class Day:
    """A day of the sample, materialized in one run over its range."""

    settings: Settings
    instance: dg.DagsterInstance
    run_id: str
    hours: list[datetime]


@pytest.fixture(scope="session")
def day(
    make_own_settings: Callable[[], Settings], running_judge: SimulatedJudge, busy_hours: list[datetime]
) -> Iterator[Day]:
    """The sample's first day with its verdicts; a test must leave it as it is."""
    settings = with_judge(make_own_settings(), running_judge)
    hours = hours_from(busy_hours[0], 24)
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(settings, instance, hours[0], hours[-1])
        assert result.success
        yield Day(settings, instance, result.run_id, hours)


BUSY = [datetime(2026, 11, 20, hour, tzinfo=UTC) for hour in range(10, 18)]
"""Eight hours of the sample that all have runs, and after which there are none for a while."""
NOW = datetime(2026, 11, 20, 19, 30, tzinfo=UTC)
"""The current time of a sensor: the open hour is 19."""


@pytest.fixture(scope="session")
def _captured(make_own_settings: Callable[[], Settings]) -> Settings:
    settings = change_settings(make_own_settings(), capture__start=BUSY[0])
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(settings, instance, BUSY[0], NOW.replace(minute=0), assets=CAPTURE).success
    # As old as the current time of the sensors.
    execute(
        str(settings.storage.database_url),
        f"UPDATE trajectory.trajectories SET updated_at = '{NOW - timedelta(hours=1)}'",
    )
    return settings


@pytest.fixture
def captured(_captured: Settings, make_database: Callable[[str | None], str], tmp_path: Path) -> Settings:
    """Settings whose history is the ten hours up to ``NOW``, all captured, none judged; the test may change it all."""
    letta, database = (
        make_database(str(url).rpartition("/")[2])
        for url in (_captured.source.postgres_url, _captured.storage.database_url)
    )
    folder = tmp_path / "captured"
    shutil.copytree(_captured.storage.data_folder, folder)
    return change_settings(
        _captured, source__postgres_url=letta, storage__database_url=database, storage__data_folder=folder
    )
