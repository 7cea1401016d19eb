"""Reconciliation of the ledger with the record of Dagster: each learns what the other has, once, in bounded ticks."""

from datetime import timedelta

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from trajectory_pipeline.defs.jobs.dagster_retention import delete_old_runs
from trajectory_pipeline.defs.sensors.reconciliation import (
    ROUND_START,
    WRITTEN_BY,
    build_reconciliation_sensor,
)
from trajectory_pipeline.defs.sensors.run_requests import utc_now
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import (
    add_run,
    execute,
    materializations,
    query,
    requested_hours,
    run,
    tick_sensor,
)
from trajectory_pipeline_tests.defs.sensors.test_capture_requests import tick as capture_tick


def tick(settings: Settings, instance: dg.DagsterInstance, cursor: str | None = None) -> SensorExecutionData:
    return tick_sensor(build_reconciliation_sensor(settings, lambda: NOW), settings, instance, cursor)


def written_by(settings: Settings, run_id: str) -> None:
    execute(str(settings.storage.database_url), f"UPDATE trajectory.partitions SET dagster_run_id = '{run_id}'")


def test_reconciliation_after_killed_worker_reports_once(captured: Settings, instance: dg.DagsterInstance) -> None:
    """The run is over, and Dagster has no event of what it wrote."""
    add_run(instance, dg.DagsterRunStatus.FAILURE, {})
    [killed] = instance.get_runs()
    written_by(captured, killed.run_id)
    entries = query(str(captured.storage.database_url), "SELECT count(*)::int FROM trajectory.partitions")[0][0]
    result = tick(captured, instance)
    assert result.skip_message == f"{entries} ledger entries compared, {entries} reported to Dagster."
    for asset in ("terminal_runs", "trajectories"):
        events = materializations(instance, asset)
        assert set(events) >= {partition_key(hour) for hour in BUSY}
        assert {event[WRITTEN_BY] for event in events.values()} == {killed.run_id}
    asked = dg.AssetKey("trajectories")
    assert instance.get_materialized_partitions(asked) == set(materializations(instance, "trajectories"))
    assert tick(captured, instance).skip_message == f"{entries} ledger entries compared, 0 reported to Dagster."


def test_reconciliation_skips_a_run_in_progress(captured: Settings, instance: dg.DagsterInstance) -> None:
    add_run(instance, dg.DagsterRunStatus.STARTED, {})
    written_by(captured, instance.get_runs()[0].run_id)
    assert str(tick(captured, instance).skip_message).endswith(" 0 reported to Dagster.")


def test_reconciliation_skips_recorded_materializations(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    assert run(captured, instance, BUSY[0], BUSY[1], assets=["terminal_runs", "trajectories"]).success
    assert tick(captured, instance).skip_message == "4 ledger entries compared, 0 reported to Dagster."


def test_reconciliation_reports_writes_outside_dagster_once(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(str(captured.storage.database_url), "UPDATE trajectory.partitions SET dagster_run_id = NULL")
    assert not str(tick(captured, instance).skip_message).endswith(" 0 reported to Dagster.")
    assert str(tick(captured, instance).skip_message).endswith(" 0 reported to Dagster.")


def test_reconciliation_after_deleted_run_reports_again(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    result = run(captured, instance, BUSY[0], assets=["terminal_runs", "trajectories"])
    instance.delete_run(result.run_id)
    assert materializations(instance, "trajectories") == {}
    assert tick(captured, instance).skip_message == "2 ledger entries compared, 2 reported to Dagster."
    assert set(materializations(instance, "trajectories")) == {partition_key(BUSY[0])}


def test_reconciliation_compares_the_whole_ledger_in_pages(
    captured: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajectory_pipeline.defs.sensors.reconciliation.ENTRIES_PER_TICK", 7)
    execute(str(captured.storage.database_url), "UPDATE trajectory.partitions SET materialized_at = '2026-11-01'")
    written_by(captured, "0" * 32)
    cursor, ticks = None, 0
    while cursor != ROUND_START:
        cursor = tick(captured, instance, cursor).cursor
        ticks += 1
    entries = query(str(captured.storage.database_url), "SELECT asset, partition_key FROM trajectory.partitions")
    assert ticks == len(entries) // 7 + 1
    assert {(a, k) for a in ("terminal_runs", "trajectories") for k in materializations(instance, a)} == set(entries)


def test_capture_requests_what_only_dagster_records(captured: Settings, instance: dg.DagsterInstance) -> None:
    """As after a restore of the trajectory database from an older backup."""
    assert run(captured, instance, BUSY[2], assets=["terminal_runs", "trajectories"]).success
    execute(
        str(captured.storage.database_url),
        f"DELETE FROM trajectory.partitions WHERE partition_key = '{partition_key(BUSY[2])}'",
        f"DELETE FROM trajectory.trajectories WHERE partition_key = '{partition_key(BUSY[2])}'",
    )
    assert partition_key(BUSY[2]) in instance.get_materialized_partitions(dg.AssetKey("trajectories"))
    assert requested_hours(capture_tick(captured, instance)) == [BUSY[2]]


def test_delete_old_runs_keeps_their_partitions_materialized(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    old = run(captured, instance, BUSY[0], BUSY[1], assets=["terminal_runs", "trajectories"])
    add_run(instance, dg.DagsterRunStatus.STARTED, {})
    database, later = TrajectoryDatabase(str(captured.storage.database_url)), utc_now() + timedelta(days=31)
    assert delete_old_runs(instance, database, older_than=timedelta(days=31)) == 0
    assert delete_old_runs(instance, database, older_than=timedelta(days=30), clock=lambda: later) == 1
    assert instance.get_run_by_id(old.run_id) is None
    assert [stored.status for stored in instance.get_runs()] == [dg.DagsterRunStatus.STARTED]
    for asset in ("terminal_runs", "trajectories"):
        assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {partition_key(hour) for hour in BUSY[:2]}
    assert tick(captured, instance).skip_message == "4 ledger entries compared, 0 reported to Dagster."
