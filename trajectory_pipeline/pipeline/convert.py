"""The second stage: converts raw rows to trajectories, in Parquet and Postgres at once."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.conversion.reference import QuarantinedRun
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture_counts import count_items, strings_of
from trajectory_pipeline.pipeline.code_version import comparable_entry, conversion_code_version
from trajectory_pipeline.pipeline.convert_range import RangeConversion
from trajectory_pipeline.pipeline.erased_verdicts import erase_verdicts
from trajectory_pipeline.pipeline.merge_rows import Placed, merge_rows, place_rows
from trajectory_pipeline.pipeline.unchanged_trajectories import find_unchanged_trajectories
from trajectory_pipeline.runtime.memory import trim_memory_after, use_jemalloc
from trajectory_pipeline.runtime.threads import read_ahead
from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore, StagedFile, WrittenFile
from trajectory_pipeline.storage.postgres.capture_lag import CaptureLag, lag_of_runs
from trajectory_pipeline.storage.postgres.copy_writer import CopyWriter
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.partition_writer import (
    LedgerEntry,
    MergeStats,
    PartitionTransaction,
    StoredEntry,
)
from trajectory_pipeline.storage.postgres.run_versions import record_reference_runs
from trajectory_pipeline.storage.storage import Storage


@dataclass
class RowBalance:
    """The rows of a partition on both sides of the conversion; steps are own ones, in turns on the way out.

    ``quarantined`` runs could not be converted. ``moved_runs`` are raw rows that count on neither side, because their
    runs are in another partition now. ``reference_path_runs`` took the slow way, which is right for runs of any shape.
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
    reference_path_runs: int = 0

    @property
    def balanced(self) -> bool:
        """Whether no row is lost and none is there twice."""
        return (
            self.runs_in == self.trajectories + self.quarantined
            and self.steps_in == self.steps_out + self.quarantined_steps
            and self.messages_in == self.messages_out + self.quarantined_messages
        )


@dataclass
class TrajectoriesResult:
    """What a materialization of ``trajectories`` did.

    Attributes:
        executions: trajectories by how they ended.
        outcomes: trajectories by heuristic outcome.
        escaped: trajectories in which text had to be escaped.
        data_omitted: trajectories whose document ``jsonb`` cannot hold.
        lag: time from the end of runs to their first capture, of those that are captured for the first time.
        erased_verdicts: verdicts whose texts were erased, because they showed erased runs.
        unchanged: whether both sinks are as before, because converting would have given the same.
        reference_run_ids: runs that the reference converter converted.
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
    reference_run_ids: list[str] = field(default_factory=list)

    def count_rows(self, rows: pa.RecordBatch) -> None:
        """Count trajectories by their ending, and those with escaped text."""
        self.executions.update(map(str, rows.column("execution_status").to_pylist()))
        self.outcomes.update(map(str, rows.column("heuristic_outcome").to_pylist()))
        self.escaped += sum(map(bool, rows.column("escaped").to_pylist()))


def materialize_trajectories(
    hour: datetime,
    storage: Storage,
    *,
    dagster_run_id: str | None = None,
    force: bool = False,
    together: RangeConversion | None = None,
) -> TrajectoriesResult:
    """Convert a partition's raw rows and replace its trajectories in both sinks, unless they are up to date.

    The rows go to Postgres in one transaction with the ledger entry. With ``force``, they are converted
    even if they are up to date. ``together`` reads and converts small partitions of a range together.

    Raises:
        SinkError: a sink cannot be read or written; the former state stays.
        PipelineError: there are no raw rows, or a row would be lost; nothing is written.
    """
    use_jemalloc()
    key = partition_key(hour)
    # Under the locks, which keep other processes from writing either file.
    parquet = storage.parquet.fetching_once()
    with (
        storage.postgres.partition(TRAJECTORIES.name, key, reads=TERMINAL_RUNS.name) as partition,
        ExitStack() as until_committed,
    ):
        # Under the lock, which keeps them from being pruned before they are read.
        raw_entry = partition.entry(TERMINAL_RUNS.name)
        raw_digest = raw_entry.content_digest if raw_entry else None
        unchanged = None if force else _unchanged(hour, partition, parquet, raw_digest)
        staged: StagedFile | None = None
        if unchanged is not None and unchanged.written is not None:
            result, content_digest = unchanged, unchanged.written.sha256
            parquet.remove_temp_files(TRAJECTORIES, hour)
        else:
            result = TrajectoriesResult()
            small = together.raw_rows(hour, raw_entry) if together else None
            raw_row_count = len(small) if small is not None else _require_raw_rows(hour, raw_entry, parquet)
            if raw_row_count:
                # Asked before the COPY, which keeps the connection busy.
                moved = None if small is None else partition.runs_moved_away(strings_of(small.column("run_id")))
                whole = force or small is not None
                kept = None if whole else find_unchanged_trajectories(hour, partition, parquet, raw_digest)
                is_raw = None if kept is None else kept.is_converted
                positions = np.arange(raw_row_count) if is_raw is None else np.flatnonzero(is_raw)
                with (
                    partition.staging() as copy_writer,
                    storage.postgres.pooled() as database,
                    read_ahead(parquet.read(TERMINAL_RUNS, hour, rows=is_raw))
                    if small is None
                    else nullcontext([small]) as raw_rows,
                    read_ahead(
                        _all_rows(
                            kept.rows(parquet, hour) if kept else (),
                            _converted(
                                place_rows(raw_rows, positions), key, moved, database, copy_writer, result, together
                            ),
                            key,
                            result,
                        )
                    ) as rows,
                ):
                    staged = until_committed.enter_context(parquet.stage(TRAJECTORIES, hour, rows))
                if kept:
                    result.row_balance.moved_runs += kept.moved
                    result.reference_run_ids += kept.reference_run_ids
                    result.row_balance.reference_path_runs = len(result.reference_run_ids)
                    result.merge_stats = partition.merge(kept=kept.number, gone=kept.gone)
                    result.data_omitted = partition.documents_omitted()
                else:
                    result.merge_stats = partition.merge()
                partition.set_quarantine([asdict(run) for run in result.quarantined])
                record_reference_runs(partition, sorted(result.reference_run_ids))
            else:
                staged = until_committed.enter_context(parquet.stage(TRAJECTORIES, hour, ()))
                result.merge_stats = partition.clear()
            content_digest = staged.sha256
        partition.record(
            LedgerEntry(
                asset=TRAJECTORIES.name,
                partition_key=key,
                result="quarantined" if result.quarantined else "complete",
                counts=asdict(result.row_balance),
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


def _unchanged(
    hour: datetime, partition: PartitionTransaction, store: ParquetStore, upstream_digest: str | None
) -> TrajectoriesResult | None:
    """Return what the trajectories are if converting the raw rows would give the same; None if it may not.

    Everything that the result depends on is compared with what it was when the partition was made. The digest of the
    raw rows is None if the ledger does not know them.
    """
    entry = comparable_entry(partition, TRAJECTORIES.name, conversion_code_version())
    if entry is None or upstream_digest is None or entry.upstream_digest != upstream_digest:
        return None
    written = store.find_matching(TRAJECTORIES, hour, entry.content_digest)
    if (
        written is None
        or partition.rows_checksum() != entry.rows_checksum
        or store.find_matching(TERMINAL_RUNS, hour, upstream_digest) is None
    ):
        return None
    result = TrajectoriesResult(
        RowBalance(**entry.counts), written=written, data_omitted=partition.documents_omitted(), unchanged=True
    )
    run_ids: set[str] = set()
    for batch in store.read(TRAJECTORIES, hour, ["run_id", "execution_status", "heuristic_outcome", "escaped"]):
        run_ids.update(strings_of(batch.column("run_id")))
        result.count_rows(batch)
    raw = [run_id for batch in store.read(TERMINAL_RUNS, hour, ["run_id"]) for run_id in strings_of(batch.column(0))]
    if set(raw).difference(partition.runs_moved_away(raw)) != run_ids:
        return None
    result.merge_stats = MergeStats(inserted=0, updated=0, unchanged=len(run_ids), removed=0)
    return result


def _require_raw_rows(hour: datetime, entry: StoredEntry | None, store: ParquetStore) -> int:
    """Return the number of raw rows; a file without rows is fine, a missing file is not."""
    advice = "materialize terminal_runs of that partition first"
    if entry and entry.result == PartitionResult.PRUNED:
        raise PipelineError(
            f"The raw rows of {partition_key(hour)} were pruned because of their age (TRAJECTORY_RAW_RETENTION_DAYS):"
            f" {advice}, which reads again what the source still has of them. Nothing was changed."
        )
    rows = store.rows(TERMINAL_RUNS, hour)
    if rows is None:
        raise PipelineError(f"There are no raw rows of {partition_key(hour)} in {store.shown_uri}: {advice}.")
    return rows


def _all_rows(
    kept: Iterable[Placed], converted: Iterator[Placed], key: str, result: TrajectoriesResult
) -> Iterator[pa.RecordBatch]:
    counts = result.row_balance
    yield from merge_rows(_counted(kept, result), converted)
    # Raised while the file is staged, so that it does not replace the former one.
    if not counts.balanced:
        raise PipelineError(f"Rows of {key} would be lost: {counts}. Nothing was written; this is a defect, report it.")


def _counted(kept: Iterable[Placed], result: TrajectoriesResult) -> Iterator[Placed]:
    """Count rows that stay as they are on both sides: they were balanced when they were converted."""
    counts = result.row_balance
    for positions, rows in kept:
        steps, messages = _steps_and_messages(rows)
        counts.runs_in += rows.num_rows
        counts.trajectories += rows.num_rows
        counts.steps_in += steps
        counts.steps_out += steps
        counts.messages_in += messages
        counts.messages_out += messages
        result.count_rows(rows)
        yield positions, rows


def _steps_and_messages(trajectories: pa.RecordBatch) -> tuple[int, int]:
    turns: Any = trajectories.column("turns")
    return pc.sum(trajectories.column("step_count")).as_py() or 0, count_items(turns.flatten().field("messages"))


def _converted(
    raw_rows: Iterable[Placed],
    key: str,
    moved: Sequence[str] | None,
    database: TrajectoryDatabase,
    copy_writer: CopyWriter,
    result: TrajectoriesResult,
    together: RangeConversion | None,
) -> Iterator[Placed]:
    counts = result.row_balance
    for positions, batch in raw_rows:
        if moved is None:
            raw = without_moved(batch, database.runs_moved_away(key, strings_of(batch.column("run_id"))))
        else:
            raw = without_moved(batch, moved)
        conversion = together.convert(raw, key) if together else convert_batch(raw, key, documents=True)
        rows = conversion.trajectories
        counts.moved_runs += batch.num_rows - raw.num_rows
        counts.runs_in += raw.num_rows
        counts.steps_in += count_items(raw.column("steps"))
        counts.messages_in += count_items(raw.column("messages"))
        copy_writer.add_batch(rows, conversion.documents)
        steps, messages = _steps_and_messages(rows)
        counts.trajectories += rows.num_rows
        counts.steps_out += steps
        counts.messages_out += messages
        counts.reference_path_runs += conversion.reference_path_count
        result.reference_run_ids += conversion.reference_run_ids
        counts.quarantined += len(conversion.quarantined)
        counts.quarantined_steps += sum(run.steps for run in conversion.quarantined)
        counts.quarantined_messages += sum(run.messages for run in conversion.quarantined)
        result.count_rows(rows)
        result.data_omitted += sum(omitted is not None for _, omitted in conversion.documents)
        result.quarantined.extend(conversion.quarantined)
        if rows.num_rows:
            is_there: Any = pc.is_in(batch.column("run_id"), value_set=rows.column("run_id"))
            yield positions[is_there.to_numpy(zero_copy_only=False)], rows


def without_moved(raw: pa.RecordBatch, moved: Sequence[str]) -> pa.RecordBatch:
    """Return raw rows without those of runs that are in another partition now."""
    if not moved:
        return raw
    return raw.filter(pc.invert(pc.is_in(raw.column("run_id"), value_set=pa.array(moved, pa.string()))))
