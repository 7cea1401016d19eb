"""The Dagster retention job: deletes Dagster's own old runs, daily. ``dagster.yaml`` limits the age of ticks.

A run is deleted with its events, the record of its materializations included. So the ledger's entries of its partitions
are first reported to Dagster without a run: they stay materialized in the UI.
"""

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily, storage_job
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.defs.sensors.reconciliation import report
from trajectory_pipeline.defs.sensors.run_requests import Clock, utc_now
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
    instance: dg.DagsterInstance, database: "TrajectoryDatabase", *, older_than: timedelta, clock: Clock = utc_now
) -> int:
    """Delete finished runs that were created longer ago, with their events; returns how many.

    Raises:
        SinkError: the ledger cannot be read; the runs of that batch are not deleted.
    """
    from trajectory_pipeline.storage.postgres.ledger import entries_of_runs

    filters = dg.RunsFilter(statuses=_FINISHED, created_before=clock() - older_than)
    deleted = 0
    while deleted < MAX_RUNS_PER_DAY and (run_ids := instance.get_run_ids(filters, limit=BATCH_SIZE)):
        report(instance, entries_of_runs(database, run_ids))
        for run_id in run_ids:
            instance.delete_run(run_id)
        deleted += len(run_ids)
    return deleted


def build_dagster_retention_job(settings: Settings) -> ScheduledJob:
    """Return the job and its daily schedule, which runs by default where TRAJECTORY_DAGSTER_RETENTION_DAYS is set."""
    days = settings.retention.dagster_days

    def delete_old_dagster_runs(context: dg.OpExecutionContext, storage: StorageResource) -> None:
        if days is None:
            raise PipelineError("TRAJECTORY_DAGSTER_RETENTION_DAYS is not set: nothing is deleted.")
        deleted = delete_old_runs(context.instance, storage.sinks().postgres, older_than=timedelta(days=days))
        context.log.info(f"{pluralize(deleted, 'run')} older than {pluralize(days, 'day')} deleted.")

    description = (
        "Deletes Dagster's finished runs that are older than TRAJECTORY_DAGSTER_RETENTION_DAYS. Their partitions stay"
        " materialized in the UI."
    )
    job = storage_job(JOB_NAME, description, delete_old_dagster_runs)
    return scheduled_daily(job, "02:47", running=days is not None)
