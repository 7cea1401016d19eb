"""The second stage: from raw rows to trajectories, in Parquet and Postgres at once.

Belongs here: the flow of batches, conservation, the ledger entry. Does not belong here: conversion.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.code_version import conversion_code_version
from trajectory_pipeline.pipeline.erased_verdicts import erase_verdicts
from trajectory_pipeline.pipeline.up_to_date import UnchangedTrajectories, unchanged_trajectories
from trajectory_pipeline.runtime.memory import trim_memory_after, use_jemalloc
from trajectory_pipeline.runtime.threads import read_ahead
from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore, StagedFile, WrittenFile
from trajectory_pipeline.storage.postgres.capture_lag import CaptureLag, lag_of_runs
from trajectory_pipeline.storage.postgres.copy_writer import CopyWriter
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry, MergeStats
from trajectory_pipeline.storage.postgres.rows_checksum import rows_checksum
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline.trajectories.convert import Conversion, convert_batch
from trajectory_pipeline.trajectories.reference import QuarantinedRun


@dataclass
class RowBalance:
    """Both sides of a partition: what came in and what became of it.

    Attributes:
        runs_in: rows of ``terminal_runs``.
        steps_in: own steps of them.
        messages_in: messages of them.
        trajectories: rows out.
        steps_out: turns of own steps.
        messages_out: messages in turns.
        quarantined: runs that could not be converted.
        quarantined_steps: their steps.
        quarantined_messages: their messages.
        moved_runs: raw rows left out on both sides: these runs are in another partition by now.
    """

    runs_in: int = 0
    steps_in: int = 0
    messages_in: int = 0
    trajectories: int = 0
    steps_out: int = 0
    messages_out: int = 0
    quarantined: int = 0
    quarantined_steps: int = 0
    quarantined_messages: int = 0
    moved_runs: int = 0

    @property
    def balanced(self) -> bool:
        """Whether nothing is lost and nothing is there twice."""
        return (
            self.runs_in == self.trajectories + self.quarantined
            and self.steps_in == self.steps_out + self.quarantined_steps
            and self.messages_in == self.messages_out + self.quarantined_messages
        )

    def by_name(self) -> dict[str, int]:
        """Return the counts as the ledger holds them."""
        return asdict(self)


@dataclass
class TrajectoriesResult:
    """What a materialisation of ``trajectories`` did.

    Attributes:
        conservation: both sides, counted.
        merged: what happened to the rows in Postgres.
        written: the Parquet file.
        quarantined: the runs that could not be converted.
        executions: trajectories by how they ended.
        outcomes: trajectories by heuristic outcome.
        escaped: trajectories in which text had to be escaped.
        data_omitted: trajectories whose document ``jsonb`` cannot hold.
        lag: how long after their end the runs were captured that were captured now for the first time.
        erased_verdicts: verdicts without texts, because they showed what was erased.
        unchanged: whether both sinks were left alone, because converting would have given what they hold.
    """

    row_balance: RowBalance = field(default_factory=RowBalance)
    merge_stats: MergeStats | None = None
    written: WrittenFile | None = None
    quarantined: list[QuarantinedRun] = field(default_factory=list)
    executions: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    escaped: int = 0
    data_omitted: int = 0
    lag: CaptureLag | None = None
    erased_verdicts: int = 0
    unchanged: bool = False


def materialize_trajectories(
    hour: datetime,
    storage: Storage,
    *,
    dagster_run_id: str | None = None,
) -> TrajectoriesResult:
    """Convert a partition's raw rows and replace its trajectories in both sinks; leave alone what would be the same.

    Args:
        hour: start of the partition, UTC.
        storage: both sinks.
        dagster_run_id: for the ledger.

    Raises:
        SinkError: a sink cannot be read or written; the former state stays.
        PipelineError: there are no raw rows, or a row would be lost; nothing is written.
    """
    use_jemalloc()
    key = partition_key(hour)
    result = TrajectoriesResult()
    with (
        storage.postgres.partition(TRAJECTORIES.name, key, reads=TERMINAL_RUNS.name) as partition,
        ExitStack() as stack,
    ):
        raw = partition.entry(TERMINAL_RUNS.name) or {}
        # Under the lock: they could be pruned between a look and the reading.
        raw_runs = _require_raw_rows(hour, raw, storage.parquet)
        raw_digest = raw.get("content_digest")
        standing = unchanged_trajectories(
            hour, partition, storage.parquet, upstream_digest=raw_digest, inputs_digest=conversion_code_version()
        )
        prepared: StagedFile | None = None
        if standing is None and not raw_runs:
            prepared = stack.enter_context(storage.parquet.stage(TRAJECTORIES, hour, ()))
            result.merge_stats = partition.clear()
            content_digest = prepared.sha256
        elif standing is None:
            with (
                partition.staging() as staging,
                storage.postgres.pooled() as looking,
                read_ahead(storage.parquet.read(TERMINAL_RUNS, hour)) as raw_rows,
                read_ahead(_rows(raw_rows, key, looking, staging, result)) as rows,
            ):
                prepared = stack.enter_context(storage.parquet.stage(TRAJECTORIES, hour, rows))
            result.merge_stats = partition.merge()
            partition.set_quarantine([asdict(run) for run in result.quarantined])
            content_digest = prepared.sha256
        else:
            _leave_alone(standing, result)
            storage.parquet.remove_temp_files(TRAJECTORIES, hour)
            content_digest = standing.written.sha256
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
                rows_checksum=rows_checksum(partition),
            )
        )
        result.lag = lag_of_runs(partition)
        result.erased_verdicts = erase_verdicts(partition, storage.parquet)
        # The last thing before the commit: whatever fails earlier leaves both sinks as they were.
        if prepared is not None:
            result.written = partition.publish(prepared)
    trim_memory_after(result.row_balance.runs_in)
    return result


def _require_raw_rows(hour: datetime, entry: Mapping[str, Any], store: ParquetStore) -> int:
    """Return how many raw rows there are; having none is not the same as being without them."""
    first = "materialise terminal_runs of that partition first"
    if entry.get("result") == PartitionResult.PRUNED:
        raise PipelineError(
            f"The raw rows of {partition_key(hour)} were pruned because of their age (TRAJECTORY_RAW_RETENTION_DAYS):"
            f" {first},"
            " which reads again what the source still has of them. Nothing was changed."
        )
    rows = store.rows(TERMINAL_RUNS, hour)
    if rows is None:
        raise PipelineError(f"There are no raw rows of {partition_key(hour)} in {store.uri}: {first}.")
    return rows


def _leave_alone(standing: UnchangedTrajectories, result: TrajectoriesResult) -> None:
    result.unchanged = True
    result.written = standing.written
    result.merge_stats = MergeStats(inserted=0, updated=0, unchanged=len(standing.run_ids), removed=0)
    result.row_balance = RowBalance(**standing.counts)
    result.executions, result.outcomes = standing.executions, standing.outcomes
    result.escaped, result.data_omitted = standing.escaped, standing.data_omitted


def _rows(
    raw_rows: Iterator[pa.RecordBatch],
    key: str,
    database: TrajectoryDatabase,
    staging: CopyWriter,
    result: TrajectoriesResult,
) -> Iterator[pa.RecordBatch]:
    counts = result.row_balance
    for batch in raw_rows:
        raw = without_moved(batch, key, database)
        counts.moved_runs += batch.num_rows - raw.num_rows
        conversion = convert_batch(raw, key, documents=True)
        for name, column in (("steps_in", "steps"), ("messages_in", "messages")):
            setattr(counts, name, getattr(counts, name) + _total_length(raw, column))
        counts.runs_in += raw.num_rows
        staging.add_batch(conversion.trajectories, conversion.documents)
        _count(conversion, result)
        yield conversion.trajectories
    # Raised here, before the file takes the former one's place.
    if not counts.balanced:
        raise PipelineError(f"Rows of {key} would be lost: {counts}. Nothing was written; this is a defect, report it.")


def _count(conversion: Conversion, result: TrajectoriesResult) -> None:
    counts, rows = result.row_balance, conversion.trajectories
    counts.trajectories += rows.num_rows
    counts.steps_out += pc.sum(rows.column("step_count")).as_py() or 0
    turns: Any = rows.column("turns")
    counts.messages_out += pc.sum(pc.list_value_length(turns.flatten().field("messages"))).as_py() or 0
    result.executions.update(_strings(rows, "execution_status"))
    result.outcomes.update(_strings(rows, "heuristic_outcome"))
    result.escaped += sum(map(bool, rows.column("escaped").to_pylist()))
    result.data_omitted += sum(omitted is not None for _, omitted in conversion.documents)
    for run in conversion.quarantined:
        counts.quarantined_steps += run.steps
        counts.quarantined_messages += run.messages
    counts.quarantined += len(conversion.quarantined)
    result.quarantined.extend(conversion.quarantined)


def _strings(rows: pa.RecordBatch, column: str) -> list[str]:
    return [str(value) for value in rows.column(column).to_pylist()]


def without_moved(raw: pa.RecordBatch, partition_key: str, database: TrajectoryDatabase) -> pa.RecordBatch:
    """Return raw rows without those of runs that are in another partition by now."""
    moved = database.runs_moved_away(partition_key, [str(run_id) for run_id in raw.column("run_id").to_pylist()])
    if not moved:
        return raw
    return raw.filter(pc.invert(pc.is_in(raw.column("run_id"), value_set=pa.array(moved, pa.string()))))


def _total_length(batch: pa.RecordBatch, column: str) -> int:
    lists: Any = batch.column(column)
    offsets = lists.offsets
    return int(offsets[-1].as_py() - offsets[0].as_py())
