"""The contract of the completeness check in Dagster: green means equal, and what differs is named."""

from pathlib import Path

import dagster as dg
import pytest

from trajectory_pipeline.defs.jobs.completeness import JOB_NAME
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import check_evaluations, execute, run_job


@pytest.fixture
def whole(captured: Settings) -> Settings:
    """A source whose whole history, from the first partition on, is captured."""
    execute(
        str(captured.source.postgres_url),
        f"DELETE FROM runs WHERE completed_at IS NULL OR completed_at >= '{NOW:%Y-%m-%d %H:%M}'",
    )
    return captured


def compared(settings: Settings, instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation:
    result = run_job(settings, instance, JOB_NAME)
    assert result.success
    evaluation: dg.AssetCheckEvaluation = check_evaluations(instance, result.run_id)["completeness"]
    return evaluation


def test_completeness_of_captured_history_passes(whole: Settings, instance: dg.DagsterInstance) -> None:
    check = compared(whole, instance)
    assert check.passed, check.metadata
    assert str(check.description).endswith(" equal in source, ledger, Postgres and Parquet")
    assert check.metadata["runs_in_source"].value == 44


@pytest.mark.parametrize(
    "change",
    [
        f"DELETE FROM trajectory.trajectories WHERE partition_key = '{partition_key(BUSY[3])}'",
        f"DELETE FROM trajectory.partitions WHERE partition_key = '{partition_key(BUSY[3])}'",
    ],
)
def test_completeness_names_a_partition_missing_in_a_sink(
    whole: Settings, instance: dg.DagsterInstance, change: str
) -> None:
    execute(str(whole.storage.database_url), change)
    check = compared(whole, instance)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert partition_key(BUSY[3]) in str(check.description)


def test_completeness_with_unreachable_source_hides_the_password(
    whole: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    away = change_settings(whole, source__postgres_url="postgresql://letta:hunter2@127.0.0.1:1/letta")
    result = run_job(away, instance, JOB_NAME)
    assert not result.success
    [event] = result.get_step_failure_events()
    message = event.step_failure_data.error_display_string
    assert "Connecting failed at the source 127.0.0.1:1/letta: " in message
    assert "hunter2" not in message
