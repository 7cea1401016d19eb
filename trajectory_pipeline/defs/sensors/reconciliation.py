"""Telling Dagster what the ledger knows and it does not: a worker that was killed after its commit told nobody.

Belongs here: the sensor that compares Dagster's record of materialisations with the ledger. Does not belong here: the
other way round, what the ledger does not know: that is requested, because the capture sensor compares the ledger with
the source.

The rows are in the sinks, only the event is missing: reporting it makes the partition's status in the UI true. The same
mends what is lost when Dagster's old runs are deleted, events and all.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from trajectory_pipeline.defs.assets.assets import CAPTURE, REFINEMENT
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.sensors.run_requests import Clock, default_status, utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import floor_to_hour, parse_partition_key
from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

RECONCILIATION_SENSOR = "reconciliation_sensor"

SECONDS_BETWEEN_TICKS = 60
ENTRIES_A_TICK = 300
"""Ledger entries that a tick compares, in turn, besides the newest: ten years of three assets take fifteen hours."""
RECENT = timedelta(hours=2)
BEGINNING = "the beginning"
"""Cursor of a new round; Dagster takes an empty one for none, and keeps the former."""
WRITTEN_BY = "ledger_run_id"
"""Metadata of a reported event: the Dagster run that wrote the partition, and could not say so."""

Entry = Mapping[str, Any]


def build_reconciliation_sensor(settings: Settings, clock: Clock | None = None) -> dg.SensorDefinition:
    """Return the sensor that reports materialisations which the ledger knows and Dagster does not.

    Args:
        settings: first partition, and what runs by default.
        clock: the time, aware; by default the system's.
    """
    clock = clock or utc_now

    @dg.sensor(
        name=RECONCILIATION_SENSOR,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description=(
            "Requests nothing. Reports to Dagster what the ledger says was materialised and Dagster does not know of:"
            " a worker was killed after its commit, or Dagster's old runs were deleted."
        ),
    )
    def reconciliation_sensor(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> dg.SensorResult | dg.SkipReason:
        from trajectory_pipeline.storage.postgres.ledger import entries_after, entries_since

        now = clock()
        try:
            recent = entries_since(pipeline.database, now - RECENT, ENTRIES_A_TICK)
            older = entries_after(
                pipeline.database, None if context.cursor == BEGINNING else context.cursor, ENTRIES_A_TICK
            )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        first, last = floor_to_hour(settings.capture.start), floor_to_hour(now)
        entries = {
            (entry["asset"], entry["partition_key"]): entry
            for entry in (*recent, *older)
            if first <= parse_partition_key(entry["partition_key"]) <= last
        }
        reported = report_unknown(context.instance, list(entries.values()))
        # The end of the ledger was reached: from its beginning again.
        cursor = f"{older[-1]['asset']} {older[-1]['partition_key']}" if len(older) == ENTRIES_A_TICK else BEGINNING
        words = f"{pluralize(len(entries), 'ledger entry', 'ledger entries')} compared, {reported} reported to Dagster."
        return dg.SensorResult(skip_reason=dg.SkipReason(words), cursor=cursor)

    return reconciliation_sensor


def report_unknown(instance: dg.DagsterInstance, entries: Sequence[Entry]) -> int:
    """Report those of these ledger entries that Dagster does not know of; returns how many.

    Known is an entry whose run is the one of the partition's last materialisation, or was reported. One that a run
    under way wrote is left alone: it says so itself when it ends.
    """
    reported = 0
    for asset in [*CAPTURE, *REFINEMENT]:
        of_asset = {entry["partition_key"]: entry for entry in entries if entry["asset"] == asset.path[-1]}
        known = _last_writers(instance, asset, set(of_asset))
        unknown = {
            key: entry
            for key, entry in of_asset.items()
            # What was written outside Dagster has no run: then any event says that the partition is there.
            if key not in known or (entry["dagster_run_id"] and entry["dagster_run_id"] != known[key])
        }
        under_way = _under_way(instance, {entry["dagster_run_id"] for entry in unknown.values()} - {None})
        for _, entry in sorted(unknown.items()):
            if entry["dagster_run_id"] in under_way:
                continue
            report(instance, [entry])
            reported += 1
    return reported


def report(instance: dg.DagsterInstance, entries: Sequence[Entry]) -> None:
    """Report to Dagster that these ledger entries are materialised, whatever it knows."""
    for entry in entries:
        instance.report_runless_asset_event(_materialization(entry))


def _last_writers(instance: dg.DagsterInstance, asset: dg.AssetKey, keys: set[str]) -> dict[str, str]:
    """Return the Dagster run that wrote each partition last, as far as Dagster knows."""
    if not keys:
        return {}
    ids = instance.event_log_storage.get_latest_storage_id_by_partition(
        asset, dg.DagsterEventType.ASSET_MATERIALIZATION, keys
    )
    if not ids:
        return {}
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=asset, storage_ids=list(ids.values())), limit=len(ids)
    ).records
    writers = {}
    for record in records:
        event = record.asset_materialization
        reported = event.metadata.get(WRITTEN_BY) if event else None
        writers[str(record.partition_key)] = str(reported.value) if reported else record.run_id
    return writers


def _under_way(instance: dg.DagsterInstance, run_ids: set[str]) -> set[str]:
    if not run_ids:
        return set()
    runs = instance.get_runs(dg.RunsFilter(run_ids=sorted(run_ids)))
    return {run.run_id for run in runs if not run.is_finished}


def _materialization(entry: Entry) -> dg.AssetMaterialization:
    counts = {name: value for name, value in entry["counts"].items() if isinstance(value, int)}
    held: Mapping[str, int] = {"pruned": True} if entry["result"] == PartitionResult.PRUNED else counts
    return dg.AssetMaterialization(
        dg.AssetKey(entry["asset"]),
        partition=entry["partition_key"],
        description="Reported from the ledger: the run that wrote it could not say so, or was deleted.",
        metadata={
            **held,
            WRITTEN_BY: entry["dagster_run_id"] or "none: written outside Dagster",
            "materialized_at": dg.MetadataValue.timestamp(entry["materialized_at"]),
        },
    )
