"""The first stage: reads the raw rows of a partition's terminal runs from the source into Parquet."""

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.letta.fingerprint import (
    EMPTY,
    dependency_digests,
    empty_dependency_digest,
    fingerprints,
)
from trajectory_pipeline.letta.snapshot import LettaSource, RunLocation, Snapshot
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, partition_key
from trajectory_pipeline.pipeline.capture_counts import DELETED_AND_KEPT, ERASED, LOST, CaptureCounts
from trajectory_pipeline.pipeline.carry_forward import raw_rows, sorted_ids
from trajectory_pipeline.pipeline.code_version import capture_code_version
from trajectory_pipeline.pipeline.corrupt_file import CorruptFile, set_aside_corrupt_file
from trajectory_pipeline.pipeline.up_to_date import unchanged_raw_rows
from trajectory_pipeline.runtime.memory import trim_memory_after, use_jemalloc
from trajectory_pipeline.runtime.threads import read_ahead
from trajectory_pipeline.schema.enums import DeletedContent
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.storage.parquet.corrupt_files import find_corruption
from trajectory_pipeline.storage.parquet.store import ParquetStore, WrittenFile
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry, PartitionTransaction
from trajectory_pipeline.storage.postgres.run_locations import SnapshotObservation, unaccounted_runs
from trajectory_pipeline.storage.storage import Storage


@dataclass(frozen=True)
class TerminalRunsResult:
    """What a materialization of ``terminal_runs`` did.

    Attributes:
        counts: what was read.
        written: the file.
        snapshot_at: when the source was read, by its own clock.
        unknown_columns: columns of the source that are not known, ``table.column``.
        absent_columns: known columns that the source lacks.
        unchanged: whether the file is the former one, because reading the runs would have given the same.
        corrupt_file: the former file if it was corrupt; else None.
    """

    counts: CaptureCounts
    written: WrittenFile
    snapshot_at: datetime
    unknown_columns: list[str]
    absent_columns: list[str]
    unchanged: bool
    corrupt_file: CorruptFile | None = None


def materialize_terminal_runs(
    hour: datetime,
    source: LettaSource,
    storage: Storage,
    *,
    deleted: DeletedContent = DeletedContent.KEEP,
    start: datetime | None = None,
    dagster_run_id: str | None = None,
) -> TerminalRunsResult:
    """Read one partition out of one snapshot and replace its file.

    Runs that the former file holds and the source no longer has are carried forward with ``deleted_at``; ``deleted``
    says what becomes of their content, and of messages that are marked deleted. A run that moved to another partition
    stays until that one has captured it. If the file is up to date, the runs are not read: only the ledger's times
    change. If the former file is corrupt, all is read from the source, a copy of the file is kept, and the result lists
    the runs that are lost with it.

    Args:
        hour: start of the partition, UTC.
        source: where to read.
        storage: both sinks.
        deleted: ``keep`` the content of what is deleted at the source, or ``erase`` it.
        start: first partition; a run that moves to before it departs. None: there is no first.
        dagster_run_id: for the ledger.

    Raises:
        SourceError: the source cannot be read.
        SinkError: a sink cannot be written; the former file stays.
    """
    use_jemalloc()

    def capture(*, check_former_file: bool) -> TerminalRunsResult:
        with (
            storage.postgres.partition(TERMINAL_RUNS.name, partition_key(hour)) as partition,
            source.snapshot() as snapshot,
        ):
            return _Capture(hour, partition, snapshot, storage, deleted, start, dagster_run_id).run(
                check_former_file=check_former_file
            )

    try:
        result = capture(check_former_file=False)
    except SinkError:
        # To tell a corrupt file from a failing storage, all of the file must be read: so only now.
        if not _is_corrupt(storage.parquet, hour):
            raise
        result = capture(check_former_file=True)
    trim_memory_after(result.written.rows)
    return result


def _is_corrupt(store: ParquetStore, hour: datetime) -> bool:
    try:
        return find_corruption(store, TERMINAL_RUNS, hour) is not None
    except SinkError:
        # The storage fails: the error that led here says so.
        return False


@dataclass
@dataclass
class _Capture:
    """The capture of one partition, under its lock and in one snapshot."""

    hour: datetime
    partition: PartitionTransaction
    snapshot: Snapshot
    storage: Storage
    deleted: DeletedContent
    start: datetime | None
    dagster_run_id: str | None

    def __post_init__(self) -> None:
        end = self.hour + HOUR
        self.fingerprint = fingerprints(self.snapshot, self.hour, end).get(self.hour, EMPTY)
        # Most hours of a year may have no runs: one query is all that they cost.
        dependencies = (
            empty_dependency_digest(self.snapshot)
            if self.fingerprint == EMPTY
            else dependency_digests(self.snapshot, self.hour, end)
        )
        self.inputs_digest = hashlib.sha256(f"{dependencies} {capture_code_version()}".encode()).hexdigest()

    def run(self, *, check_former_file: bool) -> TerminalRunsResult:
        """Leave the file as it is if it is up to date, else write it again."""
        unchanged = unchanged_raw_rows(
            self.hour,
            self.partition,
            self.snapshot,
            self.storage.parquet,
            fingerprint=self.fingerprint,
            inputs_digest=self.inputs_digest,
            none_of=DELETED_AND_KEPT if self.deleted == "erase" else ERASED,
        )
        if unchanged is not None:
            counts, written = CaptureCounts.of_unchanged(unchanged.counts, unchanged.gone), unchanged.written
            self._record(unchanged.counts, written.sha256)
            self.storage.parquet.remove_temp_files(TERMINAL_RUNS, self.hour)
            return self._result(counts, written, unchanged=True)
        corrupt_file = set_aside_corrupt_file(self.storage.parquet, self.hour) if check_former_file else None
        counts = CaptureCounts(lost_before=self._lost_before())
        written = self._write(counts, corrupt_file)
        return self._result(counts, written, corrupt_file=corrupt_file)

    def _write(self, counts: CaptureCounts, corrupt_file: CorruptFile | None) -> WrittenFile:
        snapshot, parquet = self.snapshot, self.storage.parquet
        rows = (
            nullcontext(())
            if self.fingerprint == EMPTY
            else snapshot.prefetch_terminal_runs(self.hour, self.hour + HOUR)
        )
        with (
            rows as present,
            read_ahead(
                raw_rows(
                    present,
                    self.hour,
                    snapshot,
                    None if corrupt_file else parquet,
                    self.storage.postgres,
                    counts,
                    self.deleted,
                    (self.start and floor_to_hour(self.start), floor_to_hour(snapshot.taken_at)),
                )
            ) as batches,
            parquet.stage(TERMINAL_RUNS, self.hour, batches) as staged,
        ):
            here = sorted_ids(*counts.present, counts.carried)
            # All of them are in ``here``; a result that lives long must not hold them twice.
            counts.present.clear()
            moved = [*counts.pending_move, *counts.departed]
            unaccounted = self._unaccounted_runs(sorted_ids(here, moved) if moved else here)
            # Recorded as departed: else another partition, read later by a clock that went back, could not take them.
            counts.departed += [run_id for run_id, location in unaccounted.items() if location.exists]
            if corrupt_file:
                corrupt_file.lost = [run_id for run_id, location in unaccounted.items() if not location.exists]
                counts.lost = corrupt_file.lost
            self.partition.set_run_locations(
                SnapshotObservation(
                    snapshot.taken_at, present=here, pending_move=counts.pending_move, departed=counts.departed
                )
            )
            self._record(counts.by_name(), staged.sha256)
            # The file is replaced before the commit. A crash in between leaves an invalidation, which ``publish`` has
            # committed by itself: file and ledger differ, and the partition is materialized again.
            return self.partition.publish(staged)

    def _unaccounted_runs(self, accounted: "pa.Array[Any]") -> dict[str, RunLocation]:
        """Return where the runs are now that were last seen here, and that are in no row and in no list of moves."""
        run_ids = unaccounted_runs(self.partition.connection, self.partition.partition_key, accounted)
        return self.snapshot.run_locations(list(run_ids))

    def _lost_before(self) -> int:
        entry = self.partition.entry(TERMINAL_RUNS.name)
        return entry["counts"].get(LOST, 0) if entry else 0

    def _record(self, counts: Mapping[str, int], content_digest: str) -> None:
        self.partition.record(
            LedgerEntry(
                asset=TERMINAL_RUNS.name,
                partition_key=self.partition.partition_key,
                result="complete",
                counts=counts,
                content_digest=content_digest,
                schema_version=SCHEMA_VERSION,
                fingerprint=self.fingerprint,
                snapshot_at=self.snapshot.taken_at,
                dagster_run_id=self.dagster_run_id,
                inputs_digest=self.inputs_digest,
            )
        )

    def _result(
        self,
        counts: CaptureCounts,
        written: WrittenFile,
        *,
        unchanged: bool = False,
        corrupt_file: CorruptFile | None = None,
    ) -> TerminalRunsResult:
        catalog = self.snapshot.catalog
        return TerminalRunsResult(
            counts,
            written,
            self.snapshot.taken_at,
            catalog.unknown_columns,
            catalog.absent_columns,
            unchanged,
            corrupt_file,
        )
