"""The retention job: deletes partitions older than a configured age from Postgres and Parquet, daily.

A deleted partition stays materialized in the UI, with an observation that it was pruned. If it were shown as missing,
"materialize missing partitions" would capture all of it again.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily, storage_job
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.defs.sensors.run_requests import utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.maintenance.retention import Retention

JOB_NAME = "retention_job"


def retention_of(settings: Settings) -> "Retention":
    """Return the configured ages.

    Raises:
        PipelineError: none is set.
    """
    from trajectory_pipeline.maintenance.retention import Retention

    days = settings.retention.trajectory_days, settings.retention.raw_days
    if days == (None, None):
        raise PipelineError(
            "Neither TRAJECTORY_RETENTION_DAYS nor TRAJECTORY_RAW_RETENTION_DAYS is set, so nothing is deleted: set"
            " one of them."
        )
    return Retention(*(None if number is None else timedelta(days=number) for number in days))


def prune_old_partitions(
    storage: StorageResource, retention: "Retention", log: dg.DagsterLogManager, now: datetime
) -> Iterator[dg.AssetObservation]:
    """Prune the expired partitions; yield an observation of each.

    Raises:
        PipelineError: the ledger or a folder cannot be read; or partitions failed, after the others are pruned.
    """
    from trajectory_pipeline.maintenance.retention import find_expired_partitions, prune_expired

    sinks = storage.sinks()
    due = find_expired_partitions(sinks, retention, now)
    failed: dict[str, str] = {}
    for expired, pruned in prune_expired(sinks, due):
        name = f"{expired.target} {expired.partition_key}"
        if isinstance(pruned, PipelineError):
            failed[name] = str(pruned)
            continue
        if pruned.skip_reason:
            log.warning(f"{name} is old enough, but not deleted: {pruned.skip_reason}")
            continue
        log.info(f"{name}: {pluralize(pruned.rows, 'row')}, {pluralize(pruned.files.count, 'file')} deleted")
        with_trajectories = expired.target == TRAJECTORIES.name
        for asset in [expired.target, REFINED_OUTCOMES.name] if with_trajectories else [expired.target]:
            yield dg.AssetObservation(
                asset,
                partition=expired.partition_key,
                description="Pruned: deleted from Parquet and Postgres because of its age.",
                metadata={"pruned": True},
            )
    if failed:
        name, reason = next(iter(failed.items()))
        raise PipelineError(f"{len(failed)} of {len(due)} could not be pruned; the others are. First, {name}: {reason}")


def build_retention_job(settings: Settings) -> ScheduledJob:
    """Return the job and its daily schedule, which runs by default where an age is set and capture is enabled."""

    def prune_partitions(context: dg.OpExecutionContext, storage: StorageResource) -> None:
        for observation in prune_old_partitions(storage, retention_of(settings), context.log, utc_now()):
            context.log_event(observation)

    description = (
        "Deletes from Parquet and Postgres what is older than TRAJECTORY_RETENTION_DAYS or"
        " TRAJECTORY_RAW_RETENTION_DAYS."
    )
    age_is_set = settings.retention.trajectory_days is not None or settings.retention.raw_days is not None
    return scheduled_daily(
        storage_job(JOB_NAME, description, prune_partitions), "02:27", running=settings.capture.enabled and age_is_set
    )
