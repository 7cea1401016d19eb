"""The contract with Dagster's daemon: what the sensors request, it accepts, queues and runs, ranges included.

One test, with real processes: the daemon with its code server, the run workers that it starts, Postgres, the judge.
Half of the hours are captured beforehand, so that both sensors have something to request at their first tick.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from trajectory_pipeline.cli.dagster_processes import start_code_servers, start_daemon
from trajectory_pipeline.cli.shared_workspace import shared_workspace
from trajectory_pipeline.cli.subprocesses import stop_all
from trajectory_pipeline.defs.partitions import range_tags
from trajectory_pipeline.defs.sensors.capture import CAPTURE_SENSOR
from trajectory_pipeline.defs.sensors.refinement import REFINEMENT_SENSOR
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline.urls import sqlalchemy_url
from trajectory_pipeline_tests.defs.conftest import BUSY
from trajectory_pipeline_tests.defs.dagster_runs import ASSETS, execute, materializations, query

pytestmark = [pytest.mark.process, pytest.mark.heavy]

CAPTURED, MISSING = BUSY[6:], BUSY[4:6]
PROJECT = Path(__file__).parents[2]


@contextmanager
def daemon(environment: dict[str, str], log: Path) -> Iterator[None]:
    with shared_workspace(PROJECT / "workspace.yaml") as workspace:
        processes = [*start_code_servers(environment, workspace, log), start_daemon(environment, workspace.file, log)]
        try:
            yield
        finally:
            stop_all(processes)


def wait_for_run(instance: dg.DagsterInstance, sensor: str, log: Path) -> dg.DagsterRun:
    """The first run that a sensor requested, once it is over."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        runs = instance.get_runs(dg.RunsFilter(tags={"dagster/sensor_name": sensor}), ascending=True)
        if runs and runs[0].is_finished:
            return runs[0]
        time.sleep(0.5)
    raise AssertionError(f"no run of {sensor} was over in time:\n{log.read_text()[-5000:]}")


@pytest.mark.timeout(300)
def test_daemon_queues_and_runs_what_the_sensors_request(
    judged: Settings, empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(
        str(judged.source.postgres_url),
        f"DELETE FROM runs WHERE completed_at IS NULL OR completed_at < '{MISSING[0]:%Y-%m-%d %H:%M}'"
        f" OR completed_at >= '{CAPTURED[-1]:%Y-%m-%d %H:59:59}'",
    )
    source = LettaSource(str(judged.source.postgres_url))
    storage = Storage.at(judged.storage.parquet_location, str(judged.storage.database_url))
    for hour in CAPTURED:
        materialize_terminal_runs(hour, source, storage)
        materialize_trajectories(hour, storage)
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(PROJECT / "dagster.yaml", home)
    variables = {
        "DAGSTER_HOME": str(home),
        "DAGSTER_PG_URL": sqlalchemy_url(empty_database, "psycopg2"),
        "LETTA_PG_URI": str(judged.source.postgres_url),
        "TRAJECTORY_DATABASE_URL": str(judged.storage.database_url),
        "TRAJECTORY_DATA_FOLDER": str(judged.storage.data_folder),
        "TRAJECTORY_START": "2026-11-20",
        "ENABLE_TRAJECTORY_CAPTURE": "true",
        "TRAJECTORY_JUDGE_MODEL": JUDGE_MODEL,
        "TRAJECTORY_PRICES": str(PRICE_TABLE),
        "OPENAI_BASE_URL": str(judged.judge.base_url),
        "TRAJECTORY_JUDGE_SETTLE_MINUTES": "0",
        "TRAJECTORY_JUDGE_LOOKBACK_DAYS": "36500",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "daemon.log"
    with dg.DagsterInstance.get() as instance:
        # Before several processes want the tables at once.
        instance.get_runs_count()
        with daemon({**os.environ}, log):
            captured = wait_for_run(instance, CAPTURE_SENSOR, log)
            refined = wait_for_run(instance, REFINEMENT_SENSOR, log)
        for run, hours, assets in ((captured, MISSING, ASSETS[:2]), (refined, CAPTURED, ASSETS[2:3])):
            assert run.status is dg.DagsterRunStatus.SUCCESS, run.run_id
            # A slow machine may have captured more hours when the refinement sensor looks: its run may hold these too.
            first, last = (run.tags.get(name, "") for name in range_tags(hours[0], hours[-1]))
            assert first <= partition_key(hours[0])
            assert last >= partition_key(hours[-1])
            for asset in assets:
                assert {partition_key(hour) for hour in hours} <= set(materializations(instance, asset))
    verdicts = dict(
        query(
            str(judged.storage.database_url),
            "SELECT verdict_status, count(*)::int FROM trajectory.outcomes WHERE partition_key = ANY(%s) GROUP BY 1",
            [[partition_key(hour) for hour in CAPTURED]],
        )
    )
    assert set(verdicts) <= {"judged", "insufficient_evidence", "not_eligible"}
    assert query(str(judged.storage.database_url), "SELECT count(*)::int FROM trajectory.trajectories") == query(
        str(judged.source.postgres_url), "SELECT count(*)::int FROM runs WHERE status <> 'running'"
    )
