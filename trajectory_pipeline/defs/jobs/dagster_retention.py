"""The Dagster retention job: deletes this project's old Dagster runs, daily. ``dagster.yaml`` limits the age of ticks.

A run is deleted with its compute logs and its events, the record of its materializations included. So the ledger's
entries of its partitions are first reported to Dagster without a run: they stay materialized in the UI.
"""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily, storage_job
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.defs.sensors.reconciliation import report
from trajectory_pipeline.defs.sensors.run_requests import TRAJECTORY_JOB, Clock, all_runs, utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

JOB_NAME = "dagster_retention_job"

BATCH_SIZE = 100
MAX_RUNS_PER_DAY = 10_000
"""Most runs that one run of the job deletes. The rest waits for the next day."""
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def delete_old_runs(
    instance: dg.DagsterInstance,
    database: "TrajectoryDatabase",
    *,
    older_than: timedelta,
    location: str | None = None,
    clock: Clock = utc_now,
) -> int:
    """Delete finished runs that were created longer ago, with all that is kept of them alone; returns how many.

    Only runs of this code location, and those of the commands, which have none.

    Raises:
        PipelineError: the ledger cannot be read, or compute logs cannot be deleted; the runs of that batch are not
            deleted.
    """
    from trajectory_pipeline.storage.postgres.ledger import entries_of_runs
    from trajectory_pipeline.storage.postgres.retention import remove_bookkeeping

    filters = dg.RunsFilter(statuses=_FINISHED, created_before=clock() - older_than)
    own = (run.run_id for run in all_runs(instance, filters) if _is_own(run, location))
    # Listed before the first is deleted: pages of runs are found by the last run of the page before.
    old = list(itertools.islice(own, MAX_RUNS_PER_DAY))
    for first in range(0, len(old) or 1, BATCH_SIZE):
        run_ids = old[first : first + BATCH_SIZE]
        report(instance, entries_of_runs(database, run_ids))
        remove_bookkeeping(database, run_ids)
        _delete_compute_logs(instance, run_ids)
        for run_id in run_ids:
            instance.delete_run(run_id)
        _delete_check_evaluations(instance, run_ids)
    _delete_repeated_results(instance, clock() - older_than)
    return len(old)


def _is_own(run: dg.DagsterRun, location: str | None) -> bool:
    found = code_location(run)
    return found == location if found else run.job_name == TRAJECTORY_JOB


def code_location(run: dg.DagsterRun) -> str | None:
    """Return the repository and code location that a run was launched from; None where it ran in a process of ours."""
    return run.remote_job_origin.repository_origin.get_label() if run.remote_job_origin else None


def _delete_compute_logs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    for run_id in run_ids:
        try:
            instance.compute_log_manager.delete_logs(prefix=[run_id])
        except Exception as error:
            raise PipelineError(f"The compute logs of the Dagster run {run_id} cannot be deleted: {error}.") from error


def _delete_check_evaluations(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Delete what ``delete_run`` leaves in a table of its own."""
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            table = AssetCheckExecutionsTable
            connection.execute(table.delete().where(table.c.run_id.in_(run_ids)))


def _delete_repeated_results(instance: dg.DagsterInstance, before: datetime) -> None:
    """Delete older results of checks that no run made (see ``repeat_results``), but the last one of each check."""
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
    from sqlalchemy import func, select

    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return
    results, events = AssetCheckExecutionsTable.c, SqlEventLogStorageTable.c
    limit = before.astimezone(UTC).replace(tzinfo=None)
    newest = select(func.max(results.id)).group_by(results.asset_key, results.check_name)
    with storage.index_connection() as connection:
        connection.execute(
            AssetCheckExecutionsTable.delete().where(
                results.run_id == "", results.create_timestamp < limit, results.id.not_in(newest)
            )
        )
        connection.execute(
            SqlEventLogStorageTable.delete().where(
                events.run_id == "",
                events.dagster_event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
                events.timestamp < limit,
            )
        )


def build_dagster_retention_job(settings: Settings) -> ScheduledJob:
    """Return the job and its daily schedule, which runs by default where capture is enabled."""
    days = settings.retention.dagster_days

    def delete_old_dagster_runs(context: dg.OpExecutionContext, storage: StorageResource) -> None:
        if not days:
            raise PipelineError("TRAJECTORY_DAGSTER_RETENTION_DAYS is 0: nothing is deleted.")
        deleted = delete_old_runs(
            context.instance,
            storage.sinks().postgres,
            older_than=timedelta(days=days),
            location=code_location(context.run),
        )
        context.log.info(f"{pluralize(deleted, 'run')} older than {pluralize(days, 'day')} deleted.")

    description = (
        "Deletes this project's finished Dagster runs that are older than TRAJECTORY_DAGSTER_RETENTION_DAYS, with their"
        " events and compute logs. Their partitions stay materialized in the UI."
    )
    job = storage_job(JOB_NAME, description, delete_old_dagster_runs)
    return scheduled_daily(job, "02:47", running=settings.capture.enabled and days > 0)
