"""Helpers that run jobs and tick sensors as Dagster does, read what an instance recorded, and change a database."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import dagster as dg
import psycopg
from dagster import DagsterEventType, ExecuteInProcessResult
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.defs.asset_keys import ASSETS
from trajectory_pipeline.defs.partitions import hours_of_tags, range_tags
from trajectory_pipeline.defs.resources import build_resources
from trajectory_pipeline.defs.sensors.run_requests import TRAJECTORY_JOB
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.settings import Settings

CAPTURE = ASSETS[:2]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def run(
    settings: Settings,
    instance: dg.DagsterInstance,
    first: datetime,
    last: datetime | None = None,
    *,
    assets: Sequence[str] = ASSETS,
    resources: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> ExecuteInProcessResult:
    """Run the trajectory job over one hour, or a range, last hour included; does not raise if it fails.

    ``resources`` replace those of the settings, by key.
    """
    definitions = build_defs(settings, {**resources_of(settings), **(resources or {})})
    return definitions.resolve_job_def(TRAJECTORY_JOB).execute_in_process(
        instance=instance,
        partition_key=None if last else partition_key(first),
        tags={**(tags or {}), **(range_tags(first, last) if last else {})},
        asset_selection=[dg.AssetKey(name) for name in assets],
        run_config={**QUIET, **(config or {})},
        raise_on_error=False,
    )


def run_job(settings: Settings, instance: dg.DagsterInstance, name: str) -> ExecuteInProcessResult:
    """Run a job without partitions; does not raise if it fails."""
    job = build_defs(settings, resources_of(settings)).resolve_job_def(name)
    return job.execute_in_process(instance=instance, raise_on_error=False)


def resources_of(settings: Settings) -> dict[str, object]:
    """Return the resources with the settings' own values, whatever the environment holds."""
    api_key, redaction_key = settings.judge.api_key, settings.privacy.redaction_key
    secrets = {
        "postgres_url": settings.source.postgres_url,
        "parquet_location": settings.storage.parquet_location,
        "database_url": settings.storage.database_url,
        "base_url": settings.judge.base_url,
        "api_key": api_key and api_key.get_secret_value(),
        "redaction_key": redaction_key and redaction_key.get_secret_value(),
    }
    embedding_key = settings.embedding.api_key
    of_embeddings = {
        "base_url": settings.embedding.base_url,
        "api_key": embedding_key and embedding_key.get_secret_value(),
        "judge_base_url": secrets["base_url"],
        "judge_api_key": secrets["api_key"],
    }
    given = {key: {**secrets, **of_embeddings} if key == "embedding" else secrets for key in build_resources(settings)}
    return {
        key: type(resource)(**{name: given[key].get(name, value) for name, value in resource})
        for key, resource in build_resources(settings).items()
    }


def tick_sensor(
    sensor: dg.SensorDefinition, settings: Settings, instance: dg.DagsterInstance, cursor: str | None = None
) -> SensorExecutionData:
    """Evaluate one tick of a sensor."""
    context = dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        repository_def=build_defs(settings).get_repository_def(),
        resources=resources_of(settings),
    )
    return sensor.evaluate_tick(context)


def add_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    tags: Mapping[str, str],
    assets: Sequence[dg.AssetKey] | None = None,
) -> None:
    """Add a run to the instance without executing it, as the daemon creates it."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("trajectory_pipeline"), "__repository__")
    selection = None if assets is None else frozenset(assets)
    instance.add_run(
        dg.DagsterRun(
            TRAJECTORY_JOB,
            status=status,
            tags=tags,
            asset_selection=selection,
            remote_job_origin=RemoteJobOrigin(repository, TRAJECTORY_JOB),
        )
    )


def hours_from(first: datetime, number: int) -> list[datetime]:
    return [first + position * HOUR for position in range(number)]


def materializations(instance: dg.DagsterInstance, asset: str) -> dict[str, Mapping[str, Any]]:
    """Return the metadata of the last materialization of each partition, as plain values."""
    records = instance.fetch_materializations(dg.AssetKey(asset.split("/")), limit=5000, ascending=True).records
    return {
        str(record.partition_key): {name: value.value for name, value in record.asset_materialization.metadata.items()}
        for record in records
        if record.asset_materialization
    }


def check_evaluations(instance: dg.DagsterInstance, run_id: str, asset: str | None = None) -> dict[str, Any]:
    """Return the evaluations of a run's asset checks, by name; of one asset, or of all."""
    found = [
        entry.dagster_event.event_specific_data
        for entry in instance.all_logs(run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION)
    ]
    return {check.check_name: check for check in found if asset in (None, check.asset_key.to_user_string())}


def step_failure(instance: dg.DagsterInstance, run_id: str, asset: str) -> Any:
    """Return the failure of a step: its description and metadata."""
    [entry] = [
        entry for entry in instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE) if entry.step_key == asset
    ]
    return entry.dagster_event.event_specific_data.user_failure_data


def started_steps(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    return {str(entry.step_key) for entry in instance.all_logs(run_id, of_type=DagsterEventType.STEP_START)}


def log_messages(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [entry.user_message for entry in instance.all_logs(run_id)]


def query(url: str, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode(), values).fetchall()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def requested_hours(result: SensorExecutionData) -> list[datetime]:
    """Return every hour that a tick of a sensor requests, in order."""
    ranges = [hours for request in result.run_requests if (hours := hours_of_tags(request.tags))]
    return sorted(first + number * HOUR for first, last in ranges for number in range(round((last - first) / HOUR) + 1))
