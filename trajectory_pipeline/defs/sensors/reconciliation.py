"""The reconciliation sensor: reports to Dagster the materializations that the ledger records and Dagster does not.

A worker that is killed after its commit reports nothing: its rows are stored, and only the event is missing. Events are
also lost when Dagster's old runs are deleted. The capture sensor finds the opposite, a partition that Dagster records
and the ledger does not, and requests it.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.asset_checks import repeat_results
from trajectory_pipeline.defs.asset_keys import asset_key, capture_keys, embedding_keys, refinement_keys
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.defs.sensors.run_requests import IN_PROGRESS, Clock, default_status, utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import floor_to_hour, parse_partition_key, source_of_key
from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.storage.postgres.partition_writer import StoredEntry

RECONCILIATION_SENSOR = "reconciliation_sensor"

SECONDS_BETWEEN_TICKS = 60
ENTRIES_PER_TICK = 300
"""Ledger entries that a tick compares in turn, besides the newest: a round over ten years takes fifteen hours."""
RECENT = timedelta(hours=2)
ROUND_START = "start"
"""Cursor of a new round. Dagster ignores an empty cursor and keeps the previous one."""
WRITTEN_BY = "ledger_run_id"
"""Metadata of a reported event: the Dagster run that wrote the partition."""


def build_reconciliation_sensor(settings: Settings, clock: Clock = utc_now) -> dg.SensorDefinition:
    """Return the sensor."""

    @dg.sensor(
        name=RECONCILIATION_SENSOR,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description=(
            "Reports to Dagster the materializations that only the ledger records, because a worker was killed after"
            " its commit or Dagster's old runs were deleted. Requests no runs."
        ),
    )
    def reconciliation_sensor(
        context: dg.SensorEvaluationContext, storage: StorageResource
    ) -> dg.SensorResult | dg.SkipReason:
        from trajectory_pipeline.storage.postgres.ledger import entries_after, entries_since

        now = clock()
        after = None if context.cursor == ROUND_START else context.cursor
        try:
            database = storage.sinks().postgres
            recent = entries_since(database, now - RECENT, ENTRIES_PER_TICK)
            older = entries_after(database, after, ENTRIES_PER_TICK)
        except PipelineError as error:
            return dg.SkipReason(str(error))
        first, last = floor_to_hour(settings.capture.start), floor_to_hour(now)
        names = settings.source.names
        entries = {
            (entry.asset, entry.partition_key): entry
            for entry in (*recent, *older)
            if first <= parse_partition_key(entry.partition_key) <= last
            # What a source left that is declared no more has no asset to report to.
            and source_of_key(entry.partition_key) in names
        }
        reported = report_unknown(context.instance, list(entries.values()))
        # A short page is the end of the ledger: start again.
        cursor = f"{older[-1].asset} {older[-1].partition_key}" if len(older) == ENTRIES_PER_TICK else ROUND_START
        compared = pluralize(len(entries), "ledger entry", "ledger entries")
        message = f"{compared} compared, {reported} reported to Dagster."
        return dg.SensorResult(skip_reason=dg.SkipReason(message), cursor=cursor)

    return reconciliation_sensor


def report_unknown(instance: dg.DagsterInstance, entries: Sequence["StoredEntry"]) -> int:
    """Report which of these ledger entries Dagster has no event of; returns how many.

    Dagster has one if the partition's last materialization is of the entry's run, or was reported for it. An entry of a
    run in progress is skipped: the run reports it when it ends.
    """
    # Read before the events: a run that ends in between has reported what it wrote.
    in_progress = {run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS))}
    unknown: list[StoredEntry] = []
    found = {source_of_key(entry.partition_key) for entry in entries}
    for asset in [
        key for each in sorted(found) for key in (*capture_keys(each), *refinement_keys(each), *embedding_keys(each))
    ]:
        of_asset = {entry.partition_key: entry for entry in entries if _asset_of(entry) == asset}
        known = _last_writers(instance, asset, set(of_asset))
        for key, entry in sorted(of_asset.items()):
            run_id = entry.dagster_run_id
            # What was written outside Dagster has no run: any event of the partition will do.
            is_known = key in known and run_id in (None, known[key])
            if not is_known and run_id not in in_progress:
                unknown.append(entry)
    report(instance, unknown)
    return len(unknown)


def report(instance: dg.DagsterInstance, entries: Sequence["StoredEntry"]) -> None:
    """Report these ledger entries to Dagster as materializations, whether or not it has events of them."""
    for entry in entries:
        instance.report_runless_asset_event(_materialization(entry))
    repeat_results(instance, sorted(set(map(_asset_of, entries))))


def _asset_of(entry: "StoredEntry") -> dg.AssetKey:
    return asset_key(entry.asset, source_of_key(entry.partition_key))


def _last_writers(instance: dg.DagsterInstance, asset: dg.AssetKey, keys: set[str]) -> dict[str, str]:
    """Return the run of each partition's last materialization that Dagster records."""
    if not keys:
        return {}
    ids = instance.event_log_storage.get_latest_storage_id_by_partition(
        asset, dg.DagsterEventType.ASSET_MATERIALIZATION, keys
    )
    if not ids:
        return {}
    filters = dg.AssetRecordsFilter(asset_key=asset, storage_ids=list(ids.values()))
    writers = {}
    for record in instance.fetch_materializations(filters, limit=len(ids)).records:
        event = record.asset_materialization
        reported = event.metadata.get(WRITTEN_BY) if event else None
        writers[str(record.partition_key)] = str(reported.value) if reported else record.run_id
    return writers


def _materialization(entry: "StoredEntry") -> dg.AssetMaterialization:
    counts = {name: value for name, value in entry.counts.items() if isinstance(value, int)}
    content: Mapping[str, int] = {"pruned": True} if entry.result == PartitionResult.PRUNED else counts
    return dg.AssetMaterialization(
        _asset_of(entry),
        partition=entry.partition_key,
        description="Reported from the ledger: the run that wrote it was killed before it reported, or was deleted.",
        metadata={
            **content,
            WRITTEN_BY: entry.dagster_run_id or "none: written outside Dagster",
            "materialized_at": dg.MetadataValue.timestamp(entry.materialized_at),
        },
    )
