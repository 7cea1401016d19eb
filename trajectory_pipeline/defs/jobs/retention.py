"""The retention job: deletes partitions older than a configured age from Postgres and Parquet, daily.

A deleted partition stays materialized in the UI, with an observation that it was pruned. If it were shown as missing,
"materialize missing partitions" would capture all of it again.
"""

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.asset_keys import asset_key
from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily, storage_job
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.defs.sensors.run_requests import utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import source_of_key
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.maintenance.retention import ExpiredPartition, Retention

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


def build_retention_job(settings: Settings) -> ScheduledJob:
    """Return the job and its daily schedule, which runs by default where an age is set and capture is enabled."""

    def prune_partitions(context: dg.OpExecutionContext, storage: StorageResource) -> None:
        from trajectory_pipeline.maintenance.retention import find_expired_partitions, prune_expired

        sinks = storage.sinks()
        due = find_expired_partitions(sinks, retention_of(settings), utc_now())
        failed: list[str] = []
        for expired, pruned in prune_expired(sinks, due):
            name = f"{expired.target} {expired.partition_key}"
            if isinstance(pruned, PipelineError):
                failed.append(f"{name}: {pruned}")
            elif pruned.skip_reason:
                context.log.warning(f"{name} is old enough, but not deleted: {pruned.skip_reason}")
            else:
                deleted = f"{pluralize(pruned.rows, 'row')}, {pluralize(pruned.files.count, 'file')} deleted"
                context.log.info(f"{name}: {deleted}")
                for observation in pruned_observations(expired):
                    context.log_event(observation)
        if failed:
            number = f"{len(failed)} of {len(due)}"
            raise PipelineError(f"{number} could not be pruned; the others are. First, {failed[0]}")

    description = (
        "Deletes from Parquet and Postgres what is older than TRAJECTORY_RETENTION_DAYS or"
        " TRAJECTORY_RAW_RETENTION_DAYS."
    )
    age_is_set = settings.retention.trajectory_days is not None or settings.retention.raw_days is not None
    return scheduled_daily(
        storage_job(JOB_NAME, description, prune_partitions), "02:27", running=settings.capture.enabled and age_is_set
    )


def pruned_observations(expired: "ExpiredPartition") -> list[dg.AssetObservation]:
    """Return an observation of each asset that is pruned: the verdicts go with their trajectories."""
    assets = [expired.target, *([REFINED_OUTCOMES.name] if expired.target == TRAJECTORIES.name else [])]
    return [
        dg.AssetObservation(
            asset_key(asset, source_of_key(expired.partition_key)),
            partition=expired.partition_key,
            description="Pruned: deleted from Parquet and Postgres because of its age.",
            metadata={"pruned": True},
        )
        for asset in assets
    ]
