"""The export sensor requests what is stale, and a run brings it up to date, shown in the UI."""

import json
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.defs.partitions import range_tags
from trajectory_pipeline.defs.sensors.export import EXPORT_JOB, build_export_sensor
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import (
    QUIET,
    check_evaluations,
    execute,
    materializations,
    requested_hours,
    resources_of,
    tick_sensor,
)

ASSET = "exports/sft"


def test_sensor_requests_stale_partitions_until_they_are_exported(
    captured: Settings, instance: dg.DagsterInstance
) -> None:
    settings = change_settings(captured, export__formats=("sft",))
    sensor = build_export_sensor(settings, lambda: NOW + timedelta(days=3650))
    requested = tick_sensor(sensor, settings, instance)
    assert requested_hours(requested) == BUSY
    job = build_defs(settings, resources_of(settings)).resolve_job_def(EXPORT_JOB)
    result = job.execute_in_process(
        instance=instance,
        tags=range_tags(BUSY[0], BUSY[-1]),
        run_config=QUIET,
    )
    assert result.success
    done = tick_sensor(sensor, settings, instance)
    assert (done.run_requests, done.skip_message) == ([], "0 stale partitions of sft.")
    metadata = materializations(instance, ASSET)[partition_key(BUSY[0])]
    manifest = json.loads((Path(metadata["dagster/uri"]) / "manifest.json").read_bytes())
    assert metadata["dagster/partition_row_count"] == sum(manifest["records"].values()) > 0
    assert (metadata["filters"], metadata["rewritten"]) == ("none", True)
    checks = {name: check.passed for name, check in check_evaluations(instance, result.run_id, ASSET).items()}
    assert checks == {"files_match_manifest": True, "holds_nothing_erased": True}
    execute(
        str(settings.storage.database_url),
        "UPDATE trajectory.partitions SET inputs_digest = NULL WHERE asset = 'exports/sft'"
        f" AND partition_key = '{partition_key(BUSY[1])}'",
    )
    assert requested_hours(tick_sensor(sensor, settings, instance)) == [BUSY[1]]


def test_new_redaction_key_makes_everything_stale(
    captured: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = ("a key of " + "0123456789abcdef" * 4, "another of " + "0123456789abcdef" * 4)
    settings = change_settings(captured, export__formats=("sft",), privacy__redaction_key=SecretStr(key))
    monkeypatch.setenv("TRAJECTORY_REDACTION_KEY", key)
    sensor = build_export_sensor(settings, lambda: NOW + timedelta(days=3650))
    job = build_defs(settings, resources_of(settings)).resolve_job_def(EXPORT_JOB)
    tags = range_tags(BUSY[0], BUSY[-1])
    assert job.execute_in_process(instance=instance, tags=tags, run_config=QUIET).success
    assert tick_sensor(sensor, settings, instance).skip_message == "0 stale partitions of sft."
    changed = change_settings(settings, privacy__redaction_key=SecretStr(other))
    sensor = build_export_sensor(changed, lambda: NOW + timedelta(days=3650))
    assert requested_hours(tick_sensor(sensor, changed, instance)) == BUSY
