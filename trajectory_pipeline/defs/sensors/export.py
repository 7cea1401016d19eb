"""The export sensor: requests partitions of exported datasets whose trajectories, verdicts or families changed.

Like the others, it compares states: what the ledger says that a partition was made from with what there is now.
"""

import dagster as dg

from trajectory_pipeline.defs.asset_keys import capture_keys, embedding_keys, refinement_keys
from trajectory_pipeline.defs.assets.exports import export_asset_of, export_batch, export_key, hourly_formats
from trajectory_pipeline.defs.jobs.daily import AnyJob
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.defs.sensors.run_requests import (
    SECONDS_BETWEEN_TICKS,
    Clock,
    default_status,
    due_hours,
    run_requests,
    utc_now,
)
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import LETTA, floor_to_hour, hours_of, name_at, parse_partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

EXPORT_SENSOR = "export_sensor"
EXPORT_JOB = "export_job"


def build_export_job(settings: Settings, source: str = LETTA) -> AnyJob:
    """Return the job that exports partitions of a source."""
    return dg.define_asset_job(
        name_at(EXPORT_JOB, source),
        selection=[export_key(kind, source) for kind in hourly_formats(settings)],
        description="Brings partitions of exported datasets up to date.",
    )


def build_export_sensor(settings: Settings, clock: Clock = utc_now, source: str = LETTA) -> dg.SensorDefinition:
    """Return the sensor of a source."""

    @dg.sensor(
        name=name_at(EXPORT_SENSOR, source),
        job_name=name_at(EXPORT_JOB, source),
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description="Requests the partitions of exported datasets whose trajectories, verdicts, labels or task families"
        " changed since, or whose settings did.",
    )
    def export_sensor(storage: StorageResource, context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from trajectory_pipeline.pipeline.export_asset import stale_partitions

        now = clock()
        first, last = floor_to_hour(settings.capture.start), floor_to_hour(now)
        requests: list[dg.RunRequest] = []
        waiting = []
        for kind in hourly_formats(settings):
            # With the key that the asset is made with: a new one makes all of it stale.
            asset = export_asset_of(settings, kind, settings.privacy.configured_redaction_key)
            selection = [export_key(kind, source)]
            try:
                sinks = storage.sinks()
                keys = stale_partitions(sinks.postgres, asset)
                entries = sinks.postgres.ledger(asset.name, keys)
            except PipelineError as error:
                return dg.SkipReason(str(error))
            # A partition that was captured before TRAJECTORY_START moved is no partition any more.
            own = hours_of(source, map(parse_partition_key, keys))
            hours = [hour for hour in own if first <= hour <= last]
            # After what changes it: a dataset that is written before its verdicts is written twice.
            busy = [*capture_keys(source), *refinement_keys(source), *embedding_keys(source), *selection]
            due, held_back = due_hours(context.instance, hours, selection, busy, now, entries)
            longest = export_batch(settings.dagster.backfill_batch)
            requests += run_requests(due, selection, longest, "the dataset is stale")
            waiting.append(f"{pluralize(len(hours), 'stale partition')} of {kind}{held_back}")
        if requests:
            return dg.SensorResult(run_requests=requests)
        return dg.SkipReason(f"{'; '.join(waiting)}.")

    return export_sensor
