"""Deleting Dagster's own old runs, which grow for ever by themselves: opt-in, daily.

Belongs here: the job, its schedule, and keeping the UI true meanwhile. Does not belong here: ticks, whose age
``dagster.yaml`` bounds, and the sinks, of which nothing is deleted.

A run takes its events along, the record of what it materialised too. What the ledger says of those partitions is
reported to Dagster first, without a run, so that they stay materialised in the UI.
"""

from datetime import timedelta

import dagster as dg

from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.sensors.reconciliation import report
from trajectory_pipeline.defs.sensors.run_requests import Clock, utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

JOB_NAME = "dagster_retention_job"
SCHEDULE_NAME = "daily_dagster_retention"

RUNS_AT_ONCE = 100
RUNS_A_DAY = 10_000
"""Runs that one run of the job deletes at most; the rest waits for the next day."""
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def delete_old_runs(
    instance: dg.DagsterInstance, pipeline: PipelineResource, *, older_than: timedelta, clock: Clock = utc_now
) -> int:
    """Delete finished runs that were made longer ago, with their events; returns how many.

    Raises:
        SinkError: the ledger cannot be read; the runs of that portion stay.
    """
    from trajectory_pipeline.storage.postgres.ledger import entries_of_runs

    filters = dg.RunsFilter(statuses=_FINISHED, created_before=clock() - older_than)
    deleted = 0
    while deleted < RUNS_A_DAY:
        run_ids = [run.run_id for run in instance.get_runs(filters, limit=RUNS_AT_ONCE)]
        if not run_ids:
            break
        report(instance, entries_of_runs(pipeline.database, run_ids))
        for run_id in run_ids:
            instance.delete_run(run_id)
        deleted += len(run_ids)
    return deleted


def build_retention(settings: Settings) -> tuple[dg.JobDefinition, dg.ScheduleDefinition]:
    """Return the job and its daily schedule; on by default where TRAJECTORY_DAGSTER_RETENTION_DAYS is set."""

    @dg.op(description="Deletes Dagster's finished runs that are older than TRAJECTORY_DAGSTER_RETENTION_DAYS.")
    def delete_old_dagster_runs(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineResource]) -> None:
        days = pipeline.settings.retention.dagster_days
        if days is None:
            raise dg.Failure("TRAJECTORY_DAGSTER_RETENTION_DAYS is not set: nothing is deleted.", allow_retries=False)
        try:
            deleted = delete_old_runs(context.instance, pipeline, older_than=timedelta(days=days))
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        context.log.info(f"{pluralize(deleted, 'run')} older than {pluralize(days, 'day')} deleted.")

    @dg.job(name=JOB_NAME, description="Deletes Dagster's old runs; partitions stay materialised in the UI.")
    def dagster_retention_job() -> None:
        delete_old_dagster_runs()

    schedule = dg.ScheduleDefinition(
        name=SCHEDULE_NAME,
        job=dagster_retention_job,
        cron_schedule="47 2 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING
        if settings.retention.dagster_days
        else dg.DefaultScheduleStatus.STOPPED,
        description="Deletes Dagster's old runs once a day, where TRAJECTORY_DAGSTER_RETENTION_DAYS says how old.",
    )
    return dagster_retention_job, schedule
