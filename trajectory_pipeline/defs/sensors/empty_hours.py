"""The empty hour sensor: reports hours in which no run ended to Dagster as materialized, many at once.

Of an hour that was captured and has no trajectory, it reports what comes after the trajectories. So an hour that the UI
shows as missing was not looked at yet. Nothing is written for an empty hour, neither a file nor a ledger entry. A run
that appears in it later makes it stale, and the capture sensor requests it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import dagster as dg

from trajectory_pipeline.defs.asset_checks import repeat_results
from trajectory_pipeline.defs.asset_keys import capture_keys, embedding_keys, refinement_keys
from trajectory_pipeline.defs.resources import SourcesResource, StorageResource
from trajectory_pipeline.defs.sensors.capture import source_in_tick
from trajectory_pipeline.defs.sensors.run_requests import Clock, default_status, utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import (
    HOUR,
    LETTA,
    at_source,
    floor_to_hour,
    hours_between,
    name_at,
    parse_partition_key,
    partition_key,
)
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.source_protocol import Source
    from trajectory_pipeline.storage.storage import Storage

EMPTY_HOUR_SENSOR = "empty_hour_sensor"
SECONDS_BETWEEN_TICKS = 60
HOURS_PER_TICK = 240
"""Hours that Dagster does not know, looked at in one tick: a year takes about forty minutes."""


def build_empty_hour_sensor(settings: Settings, clock: Clock = utc_now, source: str = LETTA) -> dg.SensorDefinition:
    """Return the sensor of a source."""

    @dg.sensor(
        name=name_at(EMPTY_HOUR_SENSOR, source),
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description="Reports closed hours in which no run ended as materialized, so that a missing partition is one"
        " that was not looked at. Requests no runs, and writes nothing.",
    )
    def empty_hour_sensor(
        context: dg.SensorEvaluationContext, sources: SourcesResource, storage: StorageResource
    ) -> dg.SensorResult | dg.SkipReason:
        unknown = unknown_hours(context.instance, settings, clock(), source)
        before = parse_partition_key(context.cursor) if context.cursor else None
        # The newest first, then the older ones in turn: an hour that has runs stays unknown until it is captured.
        hours = [hour for hour in unknown if before is None or hour < before][-HOURS_PER_TICK:]
        hours = hours or list(unknown)[-HOURS_PER_TICK:]
        if not hours:
            return dg.SkipReason("Dagster knows every closed hour.")
        try:
            opened = source_in_tick(sources, source)
            empty = find_empty_hours(opened, storage.sinks(), {hour: unknown[hour] for hour in hours})
        except PipelineError as error:
            return dg.SkipReason(str(error))
        report_empty_hours(context.instance, empty)
        looked_at = pluralize(len(hours), "hour")
        message = f"{looked_at} looked at, {len(empty)} without runs reported to Dagster, {len(unknown)} were unknown."
        return dg.SensorResult(skip_reason=dg.SkipReason(message), cursor=partition_key(hours[0]))

    return empty_hour_sensor


def unknown_hours(
    instance: dg.DagsterInstance, settings: Settings, now: datetime, source: str = LETTA
) -> dict[datetime, list[dg.AssetKey]]:
    """Return the closed hours of a source, in order, with the assets that Dagster has no materialization of in them."""
    closed = floor_to_hour(now - timedelta(minutes=settings.capture.closing_lag_minutes))
    # Without a judge, refined_outcomes is not made at all.
    judged = [] if settings.judge.disabled_reason else refinement_keys(source)
    assets = [*capture_keys(source), *judged, *embedding_keys(source)]
    known = {asset: instance.get_materialized_partitions(asset) for asset in assets}
    unknown = {
        hour: [asset for asset in assets if partition_key(hour) not in known[asset]]
        for hour in hours_between(at_source(floor_to_hour(settings.capture.start), source), closed)
    }
    return {hour: assets for hour, assets in unknown.items() if assets}


def find_empty_hours(
    source: "Source", storage: "Storage", unknown: Mapping[datetime, Sequence[dg.AssetKey]]
) -> dict[datetime, list[dg.AssetKey]]:
    """Return which assets of these hours, in order, have nothing to hold.

    All, where the source has no terminal run and the hour was never captured: what was captured stays with the capture
    sensor. Those after the trajectories, where these were made and there is none.

    Raises:
        PipelineError: the source or the ledger cannot be read.
    """
    from trajectory_pipeline.schema.raw import TERMINAL_RUNS
    from trajectory_pipeline.schema.trajectories import TRAJECTORIES

    if not unknown:
        return {}
    hours = list(unknown)
    keys = [partition_key(hour) for hour in hours]
    captured = storage.postgres.ledger(TERMINAL_RUNS.name, keys)
    converted = storage.postgres.ledger(TRAJECTORIES.name, keys)
    with source.snapshot() as snapshot:
        present = snapshot.fingerprints(hours[0], hours[-1] + HOUR)
    empty: dict[datetime, list[dg.AssetKey]] = {}
    after = [*refinement_keys(source.name), *embedding_keys(source.name)]
    for hour, key in zip(hours, keys, strict=True):
        if key in converted:
            found = [] if converted[key].counts.get("trajectories", 1) else after
        else:
            found = [] if hour in present or key in captured else list(unknown[hour])
        if assets := [asset for asset in unknown[hour] if asset in found]:
            empty[hour] = assets
    return empty


def report_empty_hours(instance: dg.DagsterInstance, assets: Mapping[datetime, Sequence[dg.AssetKey]]) -> None:
    """Report these hours as materialized with no rows, each for its assets.

    In batches, where DAGSTER_EVENT_BATCH_SIZE allows: one by one, a year takes many times as long. A batch is of one
    asset, because Dagster updates only the asset of a batch's last event.
    """
    from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata, StepMaterializationData
    from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID

    reported = sorted({key for keys in assets.values() for key in keys})
    for asset in reported:
        hours = [hour for hour, keys in assets.items() if asset in keys]
        batch = str(uuid4())
        for hour in hours:
            materialization = dg.AssetMaterialization(
                asset,
                partition=partition_key(hour),
                description="Nothing was written: no run ended in this hour, or none became a trajectory.",
                metadata={"empty": True, "dagster/partition_row_count": 0},
            )
            instance.report_dagster_event(
                DagsterEvent(
                    dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                    RUNLESS_JOB_NAME,
                    event_specific_data=StepMaterializationData(materialization),
                ),
                RUNLESS_RUN_ID,
                batch_metadata=DagsterEventBatchMetadata(batch, is_end=hour == hours[-1]),
            )
    repeat_results(instance, reported)
