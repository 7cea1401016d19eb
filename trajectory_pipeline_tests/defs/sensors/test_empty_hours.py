"""Hours without runs become materialized in Dagster, without a file, a ledger entry or a run; others never do."""

import asyncio
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.loader import LoadingContextForTest

from trajectory_pipeline.defs import asset_keys
from trajectory_pipeline.defs.asset_checks import checks_of
from trajectory_pipeline.defs.sensors import empty_hours
from trajectory_pipeline.defs.sensors.empty_hours import build_empty_hour_sensor
from trajectory_pipeline.partition_keys import HOUR, hours_between, partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.defs.conftest import NOW as CAPTURE_NOW
from trajectory_pipeline_tests.defs.dagster_runs import (
    execute,
    materializations,
    query,
    requested_hours,
    run,
    tick_sensor,
)
from trajectory_pipeline_tests.defs.sensors.test_capture_requests import tick as capture_tick
from trajectory_pipeline_tests.letta_sample import sample_partitions

START = datetime(2026, 11, 17, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 0, 30, tzinfo=UTC)
CLOSED = list(hours_between(START, NOW - timedelta(minutes=30)))
EMPTY = [hour for hour in CLOSED if hour not in sample_partitions()]
ASSETS = ("terminal_runs", "trajectories")


@pytest.fixture
def sample(settings: Settings) -> Settings:
    return change_settings(settings, capture__start=START)


def tick(settings: Settings, instance: dg.DagsterInstance, cursor: str | None = None) -> str:
    result = tick_sensor(build_empty_hour_sensor(settings, lambda: NOW), settings, instance, cursor)
    return str(result.skip_message)


def keys(hours: list[datetime]) -> set[str]:
    return {partition_key(hour) for hour in hours}


def test_empty_hours_are_reported_and_busy_ones_are_not(sample: Settings, instance: dg.DagsterInstance) -> None:
    message = tick(sample, instance)
    assert message == f"{len(CLOSED)} hours looked at, {len(EMPTY)} without runs reported to Dagster, 120 were unknown."
    for asset in ASSETS:
        assert set(materializations(instance, asset)) == keys(EMPTY)
    # Without a judge there is no refined_outcomes.
    assert materializations(instance, "refined_outcomes") == {}
    assert query(str(sample.storage.database_url), "SELECT count(*) FROM trajectory.partitions") == [(0,)]
    assert not (sample.storage.data_folder / "parquet").exists()
    assert instance.get_runs() == []


@pytest.mark.parametrize("batch_size", ["0", "1", "7", "1000"])
def test_empty_hours_are_reported_at_any_batch_size(
    judged: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, batch_size: str
) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", batch_size)
    tick(change_settings(judged, capture__start=START), instance)
    for asset in (*ASSETS, "refined_outcomes"):
        assert set(materializations(instance, asset)) == keys(EMPTY)
        assert instance.get_materialized_partitions(dg.AssetKey(asset)) == keys(EMPTY)


def test_empty_hours_are_reported_once(sample: Settings, instance: dg.DagsterInstance) -> None:
    tick(sample, instance)
    reported = len(instance.fetch_materializations(dg.AssetKey("terminal_runs"), limit=1000).records)
    assert tick(sample, instance).startswith("46 hours looked at, 0 without runs")
    assert len(instance.fetch_materializations(dg.AssetKey("terminal_runs"), limit=1000).records) == reported


def test_empty_hours_of_a_judged_asset_are_reported_too(judged: Settings, instance: dg.DagsterInstance) -> None:
    tick(change_settings(judged, capture__start=START), instance)
    assert set(materializations(instance, "refined_outcomes")) == keys(EMPTY)


def test_open_and_unclosed_hours_are_left_alone(sample: Settings, instance: dg.DagsterInstance) -> None:
    late = change_settings(sample, capture__closing_lag_minutes=60)
    tick(late, instance)
    assert set(materializations(instance, "terminal_runs")) == keys(EMPTY) - {partition_key(CLOSED[-1])}


def test_captured_hour_that_lost_its_runs_is_not_reported(sample: Settings, instance: dg.DagsterInstance) -> None:
    """Absence is not emptiness: what was captured stays with the capture sensor."""
    execute(
        str(sample.storage.database_url),
        "INSERT INTO trajectory.partitions (asset, partition_key, result, counts, content_digest, schema_version,"
        f" materialized_at) VALUES ('terminal_runs', '{partition_key(EMPTY[0])}', 'complete', '{{}}', '', '1', now())",
    )
    tick(sample, instance)
    assert set(materializations(instance, "terminal_runs")) == keys(EMPTY[1:])


@pytest.mark.parametrize(("trajectories", "reported"), [(0, 1), (2, 0)])
def test_of_a_captured_hour_without_trajectories_what_follows_is_reported(
    judged: Settings, instance: dg.DagsterInstance, trajectories: int, reported: int
) -> None:
    """Nobody requests embeddings or verdicts of nothing, so that the hour would stay missing."""
    for asset in ASSETS:
        execute(
            str(judged.storage.database_url),
            "INSERT INTO trajectory.partitions (asset, partition_key, result, counts, content_digest, schema_version,"
            f" materialized_at) VALUES ('{asset}', '{partition_key(EMPTY[0])}', 'complete',"
            f" '{{\"trajectories\": {trajectories}}}', '', '1', now())",
        )
    tick(change_settings(judged, capture__start=START), instance)
    assert set(materializations(instance, "trajectories")) == keys(EMPTY[1:])
    for asset in ("refined_outcomes", "trajectory_embeddings"):
        assert set(materializations(instance, asset)) == keys(EMPTY[1 - reported :])


def test_run_that_appears_later_makes_its_hour_stale(sample: Settings, instance: dg.DagsterInstance) -> None:
    tick(sample, instance)
    hour = max(hour for hour in EMPTY if hour < CAPTURE_NOW)
    moved = f"UPDATE runs SET completed_at = '{hour:%Y-%m-%d %H}:10' WHERE id = (SELECT min(id) FROM runs)"
    execute(str(sample.source.postgres_url), moved)
    assert hour in requested_hours(capture_tick(sample, instance))


def test_long_history_is_looked_at_in_turn(
    sample: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(empty_hours, "HOURS_PER_TICK", 50)
    cursor: str | None = None
    for _ in range(6):
        result = tick_sensor(build_empty_hour_sensor(sample, lambda: NOW), sample, instance, cursor)
        cursor = result.cursor or cursor
    assert set(materializations(instance, "terminal_runs")) == keys(EMPTY)


def test_unreachable_source_is_said(sample: Settings, instance: dg.DagsterInstance) -> None:
    lost = change_settings(sample, source__postgres_url="postgresql://nobody@127.0.0.1:1/letta?connect_timeout=1")
    assert "127.0.0.1:1" in tick(lost, instance)
    assert materializations(instance, "terminal_runs") == {}


def test_no_unknown_hour_is_said(sample: Settings, instance: dg.DagsterInstance) -> None:
    young = change_settings(sample, capture__start=NOW + HOUR)
    assert tick(young, instance) == "Dagster knows every closed hour."


def test_checks_stay_evaluated_after_empty_hours(judged: Settings, instance: dg.DagsterInstance) -> None:
    """Dagster shows a check as not evaluated where its asset has a newer materialization."""
    settings = change_settings(judged, capture__start=START)
    hour = next(iter(sample_partitions()))
    execute(str(settings.storage.database_url), "ALTER TABLE trajectory.trajectories ADD COLUMN mine text")
    assert run(settings, instance, hour).success
    tick(settings, instance)
    keys = [spec.key for name in asset_keys.ASSETS for spec in checks_of(name)]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    assert len(records) == 12
    for record in records.values():
        assert asyncio.run(record.targets_latest_materialization(LoadingContextForTest(instance)))
    failed = {
        key.name: record for key, record in records.items() if not record.evaluation or not record.evaluation.passed
    }
    assert set(failed) == {"schema_is_as_declared"}
    evaluation = failed["schema_is_as_declared"].evaluation
    assert evaluation is not None
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert "what_to_do" in evaluation.metadata
