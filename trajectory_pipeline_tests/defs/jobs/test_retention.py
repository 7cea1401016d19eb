"""The contract of the retention job: it prunes what is old enough, the UI shows it, and no sensor brings it back."""

from datetime import datetime, timedelta

import dagster as dg
import pytest

from trajectory_pipeline.defs.jobs.retention import JOB_NAME, pruned_observations
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.maintenance import retention
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.parquet.cleanup import FileTotals
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline_tests.conftest import change_settings, with_judge
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import (
    execute,
    materializations,
    query,
    requested_hours,
    run,
    run_job,
    step_failure,
)
from trajectory_pipeline_tests.defs.sensors.test_capture_requests import tick as capture_tick
from trajectory_pipeline_tests.defs.sensors.test_reconciliation import tick as reconciliation_tick
from trajectory_pipeline_tests.defs.sensors.test_refinement import tick as refinement_tick

OLD = BUSY[:3]


@pytest.fixture
def aged(captured: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The captured day, of which the first three hours are a day old."""
    monkeypatch.setattr("trajectory_pipeline.defs.jobs.retention.utc_now", lambda: OLD[-1] + HOUR + timedelta(days=1))
    return change_settings(captured, retention__trajectory_days=1, retention__raw_days=1)


def prune(settings: Settings, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return run_job(settings, instance, JOB_NAME)


def remaining_keys(settings: Settings) -> list[str]:
    rows = query(
        str(settings.storage.database_url), "SELECT DISTINCT partition_key FROM trajectory.trajectories ORDER BY 1"
    )
    return [row[0] for row in rows]


def observed(instance: dg.DagsterInstance, asset: str) -> set[str]:
    records = instance.fetch_observations(dg.AssetKey(asset), limit=100).records
    return {
        str(record.partition_key)
        for record in records
        if (observation := record.event_log_entry.asset_observation) and observation.metadata["pruned"].value is True
    }


def test_retention_job_prunes_and_sensors_request_nothing_pruned(
    aged: Settings, instance: dg.DagsterInstance, judge: SimulatedJudge
) -> None:
    assert prune(aged, instance).success
    old = {partition_key(hour) for hour in OLD}
    assert remaining_keys(aged) == [partition_key(hour) for hour in BUSY[3:]]
    for asset in ("terminal_runs", "trajectories", "refined_outcomes"):
        assert observed(instance, asset) == old
    execute(str(aged.source.postgres_url), "UPDATE runs SET status = status")
    assert requested_hours(capture_tick(aged, instance)) == BUSY[3:]
    judged: list[datetime] = requested_hours(refinement_tick(with_judge(aged, judge), instance, NOW))
    assert judged == BUSY[3:]
    reconciliation_tick(aged, instance)
    reported = materializations(instance, "trajectories")
    assert {key for key, metadata in reported.items() if metadata.get("pruned")} == old
    assert run(aged, instance, OLD[0], assets=("terminal_runs", "trajectories")).success
    assert remaining_keys(aged) == [partition_key(OLD[0]), *(partition_key(hour) for hour in BUSY[3:])]


def test_retention_job_without_age_fails(captured: Settings, instance: dg.DagsterInstance) -> None:
    result = prune(captured, instance)
    assert not result.success
    assert "Neither TRAJECTORY_RETENTION_DAYS nor" in str(
        step_failure(instance, result.run_id, "prune_partitions").description
    )
    assert len(remaining_keys(captured)) == len(BUSY)


def test_retention_job_with_failing_partition_prunes_the_others(
    aged: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = retention.remove_rows

    def refuses(partition: PartitionTransaction) -> int:
        if partition.partition_key == partition_key(OLD[1]):
            raise SinkError("the disk is gone")
        return real(partition)

    monkeypatch.setattr(retention, "remove_rows", refuses)
    result = prune(aged, instance)
    assert not result.success
    assert remaining_keys(aged) == [partition_key(OLD[1]), *(partition_key(hour) for hour in BUSY[3:])]
    assert "; the others are. First, trajectories" in str(
        step_failure(instance, result.run_id, "prune_partitions").description
    )


def test_partition_of_another_source_is_observed_as_its_asset() -> None:
    key = "2026-11-21-09:00~laptop"
    expired = retention.ExpiredPartition("trajectories", key, 1, FileTotals(1, 1))
    found = {(observation.asset_key, observation.partition) for observation in pruned_observations(expired)}
    assert found == {(dg.AssetKey(["laptop", asset]), key) for asset in ("trajectories", "refined_outcomes")}
