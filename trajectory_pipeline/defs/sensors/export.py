"""The export sensor: requests partitions of exported datasets whose trajectories, verdicts or families changed.

Like the others, it compares states: what the ledger says that a partition was made from with what there is now.
"""

import dagster as dg

from trajectory_pipeline.defs.asset_keys import CAPTURE, EMBEDDING, REFINEMENT
from trajectory_pipeline.defs.assets.exports import export_asset_of, export_batch, export_formats, export_key
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
from trajectory_pipeline.partition_keys import LETTA, floor_to_hour, hours_of, parse_partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

EXPORT_SENSOR = "export_sensor"
EXPORT_JOB = "export_job"


def build_export_job(settings: Settings) -> AnyJob:
    """Return the job that exports partitions."""
    return dg.define_asset_job(
        EXPORT_JOB,
        selection=[export_key(kind) for kind in export_formats(settings)],
        description="Brings partitions of exported datasets up to date.",
    )


def build_export_sensor(settings: Settings, clock: Clock = utc_now) -> dg.SensorDefinition:
    """Return the sensor."""

    @dg.sensor(
        name=EXPORT_SENSOR,
        job_name=EXPORT_JOB,
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
        for kind in export_formats(settings):
            asset, selection = export_asset_of(settings, kind, None), [export_key(kind)]
            try:
                sinks = storage.sinks()
                keys = stale_partitions(sinks.postgres, asset)
                entries = sinks.postgres.ledger(asset.name, keys)
            except PipelineError as error:
                return dg.SkipReason(str(error))
            # A partition that was captured before TRAJECTORY_START moved is no partition any more.
            # So is an hour of another source: the assets hold the Letta database's runs, the command those of all.
            own = hours_of(LETTA, map(parse_partition_key, keys))
            hours = [hour for hour in own if first <= hour <= last]
            # After what changes it: a dataset that is written before its verdicts is written twice.
            busy = [*CAPTURE, *REFINEMENT, *EMBEDDING, *selection]
            due, held_back = due_hours(context.instance, hours, selection, busy, now, entries)
            longest = export_batch(settings.dagster.backfill_batch)
            requests += run_requests(due, selection, longest, "the dataset is stale")
            waiting.append(f"{pluralize(len(hours), 'stale partition')} of {kind}{held_back}")
        if requests:
            return dg.SensorResult(run_requests=requests)
        return dg.SkipReason(f"{'; '.join(waiting)}.")

    return export_sensor
