"""Short ways to run the job as Dagster does, to ask an instance what it was told, and to change a database."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import dagster as dg
import psycopg
from dagster import DagsterEventType, ExecuteInProcessResult
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.defs.jobs import JOB_NAME
from trajectory_pipeline.defs.partitions import hours_of_tags, range_tags
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.settings import Settings

ASSETS = ("terminal_runs", "trajectories", "refined_outcomes")
CAPTURE = ASSETS[:2]
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def run(
    settings: Settings,
    instance: dg.DagsterInstance,
    first: datetime,
    last: datetime | None = None,
    *,
    assets: Sequence[str] = ASSETS,
    pipeline: PipelineResource | None = None,
) -> ExecuteInProcessResult:
    """Run the job over one hour, or a range with both its ends, and do not raise if it fails."""
    job = build_defs(settings, pipeline).resolve_job_def(JOB_NAME)
    return job.execute_in_process(
        instance=instance,
        partition_key=None if last else partition_key(first),
        tags=range_tags(first, last) if last else {},
        asset_selection=[dg.AssetKey(name) for name in assets],
        run_config=_QUIET,
        raise_on_error=False,
    )


def add_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    tags: Mapping[str, str],
    assets: Sequence[dg.AssetKey] | None = None,
) -> None:
    """Enter a run that nobody executes, as the daemon would have created it."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("trajectory_pipeline"), "__repository__")
    selection = None if assets is None else frozenset(assets)
    instance.add_run(
        dg.DagsterRun(
            JOB_NAME,
            status=status,
            tags=tags,
            asset_selection=selection,
            remote_job_origin=RemoteJobOrigin(repository, JOB_NAME),
        )
    )


def hours_from(first: datetime, number: int) -> list[datetime]:
    return [first + position * HOUR for position in range(number)]


def materializations(instance: dg.DagsterInstance, asset: str) -> dict[str, Mapping[str, Any]]:
    """The metadata of the last materialisation of each partition, as plain values."""
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=5000, ascending=True).records
    return {
        str(record.partition_key): {name: value.value for name, value in record.asset_materialization.metadata.items()}
        for record in records
        if record.asset_materialization
    }


def checks(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """The evaluations of a run's asset checks, by name."""
    return {
        entry.dagster_event.event_specific_data.check_name: entry.dagster_event.event_specific_data
        for entry in instance.all_logs(run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION)
    }


def failure(instance: dg.DagsterInstance, run_id: str, asset: str) -> Any:
    """What a failed step told: the description of its failure, and its metadata."""
    [entry] = [
        entry for entry in instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE) if entry.step_key == asset
    ]
    return entry.dagster_event.event_specific_data.user_failure_data


def steps_run(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    return {str(entry.step_key) for entry in instance.all_logs(run_id, of_type=DagsterEventType.STEP_START)}


def log_messages(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [entry.user_message for entry in instance.all_logs(run_id)]


def ask(url: str, question: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(question.encode(), values).fetchall()


def do(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def requested(result: SensorExecutionData) -> list[datetime]:
    """Return every hour that a tick of a sensor requests, in order."""
    ranges = [hours for request in result.run_requests if (hours := hours_of_tags(request.tags))]
    return sorted(first + number * HOUR for first, last in ranges for number in range(round((last - first) / HOUR) + 1))
