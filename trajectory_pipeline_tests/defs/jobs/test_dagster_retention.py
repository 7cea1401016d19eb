"""The Dagster retention job with Dagster's own storage in Postgres: nothing of an old run stays, nothing else goes."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import TickStatus

import trajectory_pipeline
from trajectory_pipeline.defs.asset_checks import checks_of, repeat_results
from trajectory_pipeline.defs.jobs.dagster_retention import delete_old_runs
from trajectory_pipeline.defs.sensors.run_requests import utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.urls import sqlalchemy_url
from trajectory_pipeline_tests.defs.conftest import BUSY
from trajectory_pipeline_tests.defs.dagster_runs import execute, query, run

PROJECT = Path(trajectory_pipeline.__path__[0]).parent
OURS = "__repository__@trajectory_pipeline"


@pytest.fixture
def stored(empty_database: str, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance with a home folder, and its storage in Postgres."""
    url = sqlalchemy_url(empty_database, "psycopg2")
    (tmp_path / "dagster.yaml").write_text(f"storage: {{postgres: {{postgres_url: '{url}'}}}}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def rows_of_run(url: str, run_id: str) -> dict[str, int]:
    """Return the number of rows with a run's id, by table, of all tables that have such a column."""
    tables = query(url, "SELECT table_name FROM information_schema.columns WHERE column_name = 'run_id'")
    counts = {name: query(url, f"SELECT count(*) FROM {name} WHERE run_id = %s", [run_id])[0][0] for (name,) in tables}
    return {name: count for name, count in counts.items() if count}


def delete(instance: dg.DagsterInstance, settings: Settings, location: str | None = None) -> int:
    later = utc_now() + timedelta(days=31)
    database = TrajectoryDatabase(str(settings.storage.database_url))
    return delete_old_runs(instance, database, older_than=timedelta(days=30), location=location, clock=lambda: later)


def test_delete_old_runs_leaves_no_row_and_no_file_of_them(
    captured: Settings, stored: dg.DagsterInstance, empty_database: str, tmp_path: Path
) -> None:
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    old = run(captured, stored, BUSY[0], BUSY[1], assets=["terminal_runs", "trajectories"])
    assert old.success
    files = [path for path in tmp_path.rglob("*") if old.run_id in str(path) and path.is_file()]
    assert len(files) >= 3
    assert {"runs", "event_logs", "run_tags", "asset_check_executions"} <= set(rows_of_run(empty_database, old.run_id))
    assert delete(stored, captured) == 1
    assert rows_of_run(empty_database, old.run_id) == {}
    assert [path for path in tmp_path.rglob("*") if old.run_id in str(path)] == []


def test_delete_old_runs_keeps_the_last_repeated_check_result(
    captured: Settings, stored: dg.DagsterInstance, empty_database: str
) -> None:
    assert run(captured, stored, BUSY[0], assets=["terminal_runs"]).success
    for _ in range(3):
        repeat_results(stored, [dg.AssetKey("terminal_runs")])
    repeated = "SELECT count(*) FROM asset_check_executions WHERE run_id = ''"
    assert query(empty_database, repeated) == [(6,)]
    delete(stored, captured)
    assert query(empty_database, repeated) == [(2,)]
    latest = stored.event_log_storage.get_latest_asset_check_execution_by_key(
        [spec.key for spec in checks_of("terminal_runs")]
    )
    assert [record.evaluation.passed for record in latest.values() if record.evaluation] == [True, True]


def test_delete_old_runs_leaves_the_runs_of_other_projects(captured: Settings, stored: dg.DagsterInstance) -> None:
    def add(job: str, location: str | None) -> str:
        repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(str(location)), "__repository__")
        origin = RemoteJobOrigin(repository, job) if location else None
        added = dg.DagsterRun(job, status=dg.DagsterRunStatus.SUCCESS, remote_job_origin=origin)
        return stored.add_run(added).run_id

    ours = [add("trajectory_job", "trajectory_pipeline"), add("__ASSET_JOB", "trajectory_pipeline")]
    ours.append(add("trajectory_job", None))
    others = [add("trajectory_job", "billing"), add("retention_job", "billing"), add("nightly", None)]
    assert delete(stored, captured, OURS) == len(ours)
    assert {each.run_id for each in stored.get_runs()} == set(others)


def test_delete_old_runs_keeps_a_run_whose_logs_stay(
    captured: Settings, stored: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError("read-only file system")

    kept = stored.add_run(dg.DagsterRun("trajectory_job", status=dg.DagsterRunStatus.FAILURE))
    monkeypatch.setattr(stored.compute_log_manager, "delete_logs", refuse)
    with pytest.raises(PipelineError, match=f"run {kept.run_id} cannot be deleted: read-only file system"):
        delete(stored, captured)
    assert stored.get_run_by_id(kept.run_id) is not None


def test_delete_old_runs_removes_void_bookkeeping_and_no_spending(
    captured: Settings, stored: dg.DagsterInstance
) -> None:
    url = str(captured.storage.database_url)
    old = stored.add_run(dg.DagsterRun("trajectory_job", status=dg.DagsterRunStatus.SUCCESS)).run_id
    going = stored.add_run(dg.DagsterRun("trajectory_job", status=dg.DagsterRunStatus.STARTED)).run_id
    totals = [
        ("day", "2026-11-20", 8),
        ("organization", "2026-11-20 o", 8),
        ("materialization", going, 8),
        ("materialization", "search 0e0f", 6),
        ("materialization", "panel 1a2b", 6),
    ]
    void = [("materialization", key, 8) for key in (old, "search 2c3d", "panel 3e4f")]
    for scope, key, days in (*totals, *void):
        changed = f"now() - interval '{days} days'"
        execute(url, f"INSERT INTO trajectory.spend_totals VALUES ('{scope}', '{key}', 1, 0, 1.5, 0, 9, {changed})")
    pruned, kept = partition_key(BUSY[0]), partition_key(BUSY[1])
    execute(
        url,
        f"UPDATE trajectory.partitions SET result = 'pruned' WHERE partition_key = '{pruned}'",
        "INSERT INTO trajectory.invalidations (invalidation_id, asset, partition_key, reason, invalidated_at) VALUES"
        f" ('1', 'trajectories', '{pruned}', 'void', now()), ('2', 'terminal_runs', '{kept}', 'pending', now())",
        "INSERT INTO trajectory.verdict_locks (verdict_key, worker, claimed_at, expires_at) VALUES"
        " ('killed', 'w', now() - interval '3 days', now() - interval '2 days'),"
        " ('late', 'w', now() - interval '2 hours', now() - interval '1 hour'), ('held', 'w', now(), now())",
    )
    assert delete(stored, captured) == 1
    spent = query(url, "SELECT scope, scope_key FROM trajectory.spend_totals ORDER BY 1, 2")
    assert set(spent) == {(scope, key) for scope, key, _ in totals}
    assert query(url, "SELECT reason FROM trajectory.invalidations") == [("pending",)]
    assert query(url, "SELECT verdict_key FROM trajectory.verdict_locks ORDER BY 1") == [("held",), ("late",)]


def test_ticks_of_every_kind_are_deleted_in_the_end(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_PG_URL", sqlalchemy_url(empty_database, "psycopg2"))
    shutil.copy(PROJECT / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        days = {
            (kind, status): instance.get_tick_retention_settings(kind)[status]
            for kind in (InstigatorType.SCHEDULE, InstigatorType.SENSOR)
            for status in TickStatus
        }
    assert {key: count for key, count in days.items() if not 1 <= count <= 90} == {}
