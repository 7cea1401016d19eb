"""The second stage: converts raw rows to trajectories, in Parquet and Postgres at once."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture_counts import count_items
from trajectory_pipeline.pipeline.code_version import conversion_code_version
from trajectory_pipeline.pipeline.conversion_result import TrajectoriesResult
from trajectory_pipeline.pipeline.erased_verdicts import erase_verdicts
from trajectory_pipeline.pipeline.up_to_date import unchanged_trajectories
from trajectory_pipeline.runtime.memory import trim_memory_after, use_jemalloc
from trajectory_pipeline.runtime.threads import read_ahead
from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore, StagedFile
from trajectory_pipeline.storage.postgres.capture_lag import lag_of_runs
from trajectory_pipeline.storage.postgres.copy_writer import CopyWriter
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline.trajectories.convert import Conversion, convert_batch


def materialize_trajectories(
    hour: datetime, storage: Storage, *, dagster_run_id: str | None = None
) -> TrajectoriesResult:
    """Convert a partition's raw rows and replace its trajectories in both sinks, unless they are up to date.

    Args:
        hour: start of the partition, UTC.
        storage: both sinks; the rows go to Postgres in one transaction with the ledger entry.
        dagster_run_id: for the ledger.

    Raises:
        SinkError: a sink cannot be read or written; the former state stays.
        PipelineError: there are no raw rows, or a row would be lost; nothing is written.
    """
    use_jemalloc()
    key = partition_key(hour)
    parquet = storage.parquet
    with (
        storage.postgres.partition(TRAJECTORIES.name, key, reads=TERMINAL_RUNS.name) as partition,
        ExitStack() as until_committed,
    ):
        # Under the lock, which keeps them from being pruned before they are read.
        raw_entry = partition.entry(TERMINAL_RUNS.name) or {}
        raw_row_count = _require_raw_rows(hour, raw_entry, parquet)
        raw_digest = raw_entry.get("content_digest")
        unchanged = unchanged_trajectories(
            hour, partition, parquet, upstream_digest=raw_digest, inputs_digest=conversion_code_version()
        )
        staged: StagedFile | None = None
        if unchanged is not None and unchanged.written is not None:
            result, content_digest = unchanged, unchanged.written.sha256
            parquet.remove_temp_files(TRAJECTORIES, hour)
        else:
            result = TrajectoriesResult()
            if raw_row_count:
                with (
                    partition.staging() as copy_writer,
                    storage.postgres.pooled() as database,
                    read_ahead(parquet.read(TERMINAL_RUNS, hour)) as raw_rows,
                    read_ahead(_converted(raw_rows, key, database, copy_writer, result)) as rows,
                ):
                    staged = until_committed.enter_context(parquet.stage(TRAJECTORIES, hour, rows))
                result.merge_stats = partition.merge()
                partition.set_quarantine([asdict(run) for run in result.quarantined])
            else:
                staged = until_committed.enter_context(parquet.stage(TRAJECTORIES, hour, ()))
                result.merge_stats = partition.clear()
            content_digest = staged.sha256
        partition.record(
            LedgerEntry(
                asset=TRAJECTORIES.name,
                partition_key=key,
                result="quarantined" if result.quarantined else "complete",
                counts=result.row_balance.by_name(),
                content_digest=content_digest,
                upstream_digest=raw_digest,
                schema_version=SCHEMA_VERSION,
                dagster_run_id=dagster_run_id,
                inputs_digest=conversion_code_version(),
                rows_checksum=partition.rows_checksum(),
            )
        )
        result.lag = lag_of_runs(partition)
        result.erased_verdicts = erase_verdicts(partition, parquet)
        # The last step before the commit: whatever fails earlier leaves both sinks as they were, and a crash in
        # between leaves an invalidation, which ``publish`` has committed by itself.
        if staged is not None:
            result.written = partition.publish(staged)
    trim_memory_after(result.row_balance.runs_in)
    return result


def _require_raw_rows(hour: datetime, entry: Mapping[str, Any], store: ParquetStore) -> int:
    """Return the number of raw rows; a file without rows is fine, a missing file is not."""
    advice = "materialize terminal_runs of that partition first"
    if entry.get("result") == PartitionResult.PRUNED:
        raise PipelineError(
            f"The raw rows of {partition_key(hour)} were pruned because of their age (TRAJECTORY_RAW_RETENTION_DAYS):"
            f" {advice}, which reads again what the source still has of them. Nothing was changed."
        )
    rows = store.rows(TERMINAL_RUNS, hour)
    if rows is None:
        raise PipelineError(f"There are no raw rows of {partition_key(hour)} in {store.uri}: {advice}.")
    return rows


def _converted(
    raw_rows: Iterator[pa.RecordBatch],
    key: str,
    database: TrajectoryDatabase,
    copy_writer: CopyWriter,
    result: TrajectoriesResult,
) -> Iterator[pa.RecordBatch]:
    counts = result.row_balance
    for batch in raw_rows:
        raw = without_moved(batch, key, database)
        counts.moved_runs += batch.num_rows - raw.num_rows
        conversion = convert_batch(raw, key, documents=True)
        counts.runs_in += raw.num_rows
        counts.steps_in += count_items(raw.column("steps"))
        counts.messages_in += count_items(raw.column("messages"))
        copy_writer.add_batch(conversion.trajectories, conversion.documents)
        _count(conversion, result)
        yield conversion.trajectories
    # Raised while the file is staged, so that it does not replace the former one.
    if not counts.balanced:
        raise PipelineError(f"Rows of {key} would be lost: {counts}. Nothing was written; this is a defect, report it.")


def _count(conversion: Conversion, result: TrajectoriesResult) -> None:
    counts, rows = result.row_balance, conversion.trajectories
    counts.trajectories += rows.num_rows
    counts.steps_out += pc.sum(rows.column("step_count")).as_py() or 0
    turns: Any = rows.column("turns")
    counts.messages_out += count_items(turns.flatten().field("messages"))
    result.count_rows(rows)
    result.data_omitted += sum(omitted is not None for _, omitted in conversion.documents)
    for run in conversion.quarantined:
        counts.quarantined_steps += run.steps
        counts.quarantined_messages += run.messages
    counts.quarantined += len(conversion.quarantined)
    result.quarantined.extend(conversion.quarantined)


def without_moved(raw: pa.RecordBatch, partition_key: str, database: TrajectoryDatabase) -> pa.RecordBatch:
    """Return raw rows without those of runs that are in another partition now."""
    moved = database.runs_moved_away(partition_key, [str(run_id) for run_id in raw.column("run_id").to_pylist()])
    if not moved:
        return raw
    return raw.filter(pc.invert(pc.is_in(raw.column("run_id"), value_set=pa.array(moved, pa.string()))))
