"""The first stage: reads the raw rows of a partition's terminal runs from the source into Parquet."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from trajectory_pipeline.errors import SinkError, SourceConflictError, SourceError, WithheldDeletionsError
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.pipeline.capture_counts import (
    DELETED_AND_KEPT,
    ERASED,
    LOST,
    MISDATED,
    CaptureCounts,
    strings_of,
)
from trajectory_pipeline.pipeline.carry_forward import RawRows, sorted_ids
from trajectory_pipeline.pipeline.code_version import capture_code_version, comparable_entry
from trajectory_pipeline.pipeline.deletion_guard import DeletionGuard, ObservedRows
from trajectory_pipeline.pipeline.former_rows import FormerRows, compare_former_rows, record_run_versions
from trajectory_pipeline.runtime.memory import trim_memory_after, use_jemalloc
from trajectory_pipeline.runtime.threads import read_ahead
from trajectory_pipeline.schema.enums import DeletedContent
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.source_protocol import EMPTY, SHARED_SECONDS, RangeSource, Source, SourceSnapshot
from trajectory_pipeline.storage.parquet.corrupt_files import find_corruption, keep_corrupt_file
from trajectory_pipeline.storage.parquet.store import WrittenFile
from trajectory_pipeline.storage.postgres.invalidations import note_withheld_deletions
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry, PartitionTransaction, StoredEntry
from trajectory_pipeline.storage.postgres.run_locations import SnapshotObservation, unaccounted_runs
from trajectory_pipeline.storage.postgres.sources import accept_source, record_source
from trajectory_pipeline.storage.storage import Storage

_SNAPSHOT_TRIES = 3
"""How often a partition is begun where the source ends its snapshot."""


@dataclass
class CorruptFile:
    """A former file that could not be read.

    Attributes:
        error: what is wrong with it.
        copy_uri: URI of the copy that is kept.
        lost: runs that it held and that the source does not have.
    """

    error: str
    copy_uri: str
    lost: list[str] = field(default_factory=list)

    def sentence(self, partition_key: str) -> str:
        """Return what happened, for a person."""
        lost = (
            f"{len(self.lost)} of its runs are gone from the source: they are lost, and leave the trajectories too"
            if self.lost
            else "the source still has every run that was in them"
        )
        return (
            f"The raw rows of {partition_key} were corrupt ({self.error}) and were read again from the source: {lost}."
            f" A copy of the corrupt file is {self.copy_uri}."
        )


@dataclass(frozen=True)
class TerminalRunsResult:
    """What a materialization of ``terminal_runs`` did.

    Attributes:
        snapshot_at: when the source was read, by its own clock.
        unknown_columns: columns of the source that are not known, ``table.column``.
        absent_columns: known columns that the source lacks.
        unchanged: whether the file is the former one, because reading the runs would have given the same.
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
    source: Source,
    storage: Storage,
    *,
    deleted: DeletedContent = DeletedContent.KEEP,
    start: datetime | None = None,
    accept_deletions: bool = False,
    dagster_run_id: str | None = None,
    force: bool = False,
) -> TerminalRunsResult:
    """Read one partition out of one snapshot and replace its file.

    In a range of ``RangeSource``, small partitions share snapshots. One that fails in such a snapshot, or that
    somebody else may have captured since, is read in one of its own.

    Runs that the former file holds and the source no longer has are carried forward with ``deleted_at``; ``deleted``
    says what becomes of their content, and of messages that are marked deleted. A run that moved to another partition
    stays until that one has captured it. If the file is up to date, the runs are not read: only the ledger's times
    change. If the former file is corrupt, all is read from the source, a copy of the file is kept, and the result lists
    the runs that are lost with it.

    ``start`` is the first partition: a run that moves to before it departs. None: there is no first.
    ``accept_deletions`` says that a person has looked: whatever the source lacks is deleted, and it is the right one.
    With ``force``, the runs are read even if the file is up to date.

    Raises:
        SourceError: the source cannot be read. A snapshot that it ends is taken again, twice at most.
        WithheldDeletionsError: it shows implausibly less than before; nothing is changed but a note in the database.
        SinkError: a sink cannot be written; the former file stays.
    """
    use_jemalloc()

    def capture(*, check_former_file: bool, tries: int = _SNAPSHOT_TRIES, may_share: bool = True) -> TerminalRunsResult:
        shares = False
        try:
            with storage.postgres.partition(TERMINAL_RUNS.name, partition_key(hour)) as partition, ExitStack() as stack:
                shared: SourceSnapshot | None = None
                if may_share and isinstance(source, RangeSource) and not _may_be_newer(partition):
                    # Set first: what fails at its opening may fail because of another partition.
                    shares = True
                    shared = stack.enter_context(source.shared_snapshot(hour))
                    shares = shared is not None
                snapshot = shared or stack.enter_context(source.snapshot())
                stage = _Capture(
                    hour,
                    partition,
                    snapshot,
                    storage.fetching_once(),
                    deleted,
                    start,
                    accept_deletions,
                    dagster_run_id,
                    force,
                )
                return stage.run(check_former_file=check_former_file)
        except SourceError as error:
            if not shares and not isinstance(error, SourceConflictError):
                raise
            tries -= not shares
            if not tries:
                raise
        return capture(check_former_file=check_former_file, tries=tries, may_share=False)

    try:
        result = capture(check_former_file=False)
    except WithheldDeletionsError as error:
        with storage.postgres.connect(autocommit=True) as connection:
            note_withheld_deletions(connection, partition_key(hour), str(error))
        raise
    except SinkError:
        # To tell a corrupt file from a failing storage, all of the file must be read: so only now.
        try:
            is_corrupt = find_corruption(storage.parquet, TERMINAL_RUNS, hour) is not None
        except SinkError:
            # The storage fails: the error that led here says so.
            is_corrupt = False
        if not is_corrupt:
            raise
        result = capture(check_former_file=True)
    trim_memory_after(result.written.rows)
    return result


def _may_be_newer(partition: PartitionTransaction) -> bool:
    """Return whether the partition may hold, or ask for, what a snapshot does not show that was opened a while ago."""
    entry = partition.entry(TERMINAL_RUNS.name)
    # By one clock, that of the trajectory database.
    recently = partition.locked_at - timedelta(seconds=2 * SHARED_SECONDS)
    return partition.has_invalidations or (entry is not None and entry.materialized_at > recently)


@dataclass
class _Capture:
    """The capture of one partition, under its lock and in one snapshot."""

    hour: datetime
    partition: PartitionTransaction
    snapshot: SourceSnapshot
    storage: Storage
    deleted: DeletedContent
    start: datetime | None
    accept_deletions: bool
    dagster_run_id: str | None
    force: bool

    def __post_init__(self) -> None:
        end = self.hour + HOUR
        self.fingerprint = self.snapshot.fingerprints(self.hour, end).get(self.hour, EMPTY)
        # Most hours of a year may have no runs: one query is all that they cost.
        dependencies = (
            self.snapshot.empty_dependency_digest()
            if self.fingerprint == EMPTY
            else self.snapshot.dependency_digest(self.hour, end)
        )
        self.inputs_digest = hashlib.sha256(f"{dependencies} {capture_code_version()}".encode()).hexdigest()

    def run(self, *, check_former_file: bool) -> TerminalRunsResult:
        """Leave the file as it is if it is up to date, else write it again."""
        parquet = self.storage.parquet
        unchanged, corrupt_file = None if self.force else self._unchanged(), None
        if unchanged is not None:
            counts, written = unchanged
            parquet.remove_temp_files(TERMINAL_RUNS, self.hour)
        else:
            error = find_corruption(parquet, TERMINAL_RUNS, self.hour) if check_former_file else None
            if error is not None:
                # A copy, not a move: if anything fails before the file is replaced, the next one finds it again.
                corrupt_file = CorruptFile(error, keep_corrupt_file(parquet, TERMINAL_RUNS, self.hour))
            entry = self.partition.entry(TERMINAL_RUNS.name)
            counts = CaptureCounts(lost_before=entry.counts.get(LOST, 0) if entry else 0)
            written = self._write(counts, corrupt_file)
        return TerminalRunsResult(
            counts,
            written,
            self.snapshot.taken_at,
            self.snapshot.unknown_columns,
            self.snapshot.absent_columns,
            unchanged is not None,
            corrupt_file,
        )

    def _unchanged(self) -> tuple[CaptureCounts, WrittenFile] | None:
        """Record that the file is up to date, if reading the source would give the same; None if it may not.

        Everything that the rows depend on is compared with what it was when the file was made.
        """
        parquet = self.storage.parquet
        entry = self._comparable_entry(self.inputs_digest)
        # The fingerprint does not show what becomes of a run that no partition takes.
        if entry is None or entry.fingerprint != self.fingerprint or MISDATED in entry.counts:
            return None
        same_source = entry.source_identity == self.snapshot.identity.text
        written = parquet.find_matching(TERMINAL_RUNS, self.hour, entry.content_digest)
        if written is None:
            return None
        run_ids: list[str] = []
        gone: list[str] = []
        for batch in parquet.read(TERMINAL_RUNS, self.hour, ["run_id", "deleted_at"]):
            ids = batch.column("run_id")
            run_ids += strings_of(ids)
            gone += strings_of(ids.filter(batch.column("deleted_at").is_valid()))
        # A carried run may be back in another hour, or unfinished: the fingerprint of this hour does not show that.
        found_again = any(location.exists for location in self.snapshot.run_locations(gone).values())
        if found_again or not self.partition.all_located(run_ids):
            return None
        self._record(entry.counts, written.sha256, entry.source_position if same_source else None)
        return CaptureCounts.of_unchanged(entry.counts, gone), written

    def _comparable_entry(self, inputs_digest: str | None = None) -> StoredEntry | None:
        """Return the ledger's entry if versions of rows tell what became of the file's rows since."""
        entry = comparable_entry(self.partition, TERMINAL_RUNS.name, inputs_digest)
        # Of these the policy would change some now.
        none_of = DELETED_AND_KEPT if self.deleted == "erase" else ERASED
        if entry is None or entry.counts[none_of]:
            return None
        identity = self.snapshot.identity
        if entry.source_identity == identity.text and identity.position is not None:
            # A server that lost commits, or was restored from a copy of its disk, gives versions of rows again.
            return entry if identity.position >= (entry.source_position or 0) else None
        return entry

    def _former_rows(self, corrupt_file: CorruptFile | None) -> FormerRows | None:
        """Return the former file, compared with the source run by run; None where all runs must be read."""
        entry = None if self.force or corrupt_file or self.fingerprint == EMPTY else self._comparable_entry()
        if entry is None:
            return None
        return compare_former_rows(self.hour, self.partition, self.snapshot, self.storage.parquet, entry.content_digest)

    def _write(self, counts: CaptureCounts, corrupt_file: CorruptFile | None) -> WrittenFile:
        snapshot, parquet = self.snapshot, self.storage.parquet
        former = self._former_rows(corrupt_file)
        changed, is_changed = (former.changed, former.positions < 0) if former else (None, None)
        observed = ObservedRows(control=former.control if former else None)
        rows = RawRows(self.hour, snapshot, self.storage, counts, self.deleted, self.start, observed, is_changed)
        present_rows = (
            nullcontext(())
            if self.fingerprint == EMPTY
            else snapshot.prefetch_terminal_runs(self.hour, self.hour + HOUR, changed)
        )
        with (
            present_rows as read,
            nullcontext(former.merged(parquet, self.hour, read) if former else read) as present,
            read_ahead(rows.read(present, read_former=corrupt_file is None)) as batches,
            parquet.stage(TERMINAL_RUNS, self.hour, batches) as staged,
        ):
            only_former = [*counts.carried, *counts.misdated, *counts.unseen]
            record_run_versions(
                self.hour,
                self.partition,
                snapshot,
                former=former,
                present=counts.present,
                carried=[*only_former, *counts.pending_move],
                raw_digest=staged.sha256,
            )
            here = sorted_ids(*counts.present, only_former)
            # All of them are in ``here``; a result that lives long must not hold them twice.
            counts.present.clear()
            moved = [*counts.pending_move, *counts.departed]
            # Last seen here, and now in no row and in no list of moves.
            accounted = sorted_ids(here, moved) if moved else here
            unaccounted = snapshot.run_locations(
                list(unaccounted_runs(self.partition.connection, self.partition.partition_key, accounted))
            )
            departing = list(counts.departed)
            # Recorded as departed: else another partition, read later by a clock that went back, could not take them.
            counts.departed += [run_id for run_id, location in unaccounted.items() if location.exists]
            lost = [run_id for run_id, location in unaccounted.items() if not location.exists]
            if corrupt_file:
                corrupt_file.lost = counts.lost = lost
            if not self.accept_deletions:
                guard = DeletionGuard(self.partition, snapshot)
                guard.require_plausible(observed, counts.carried, lost, departing)
            self.partition.set_run_locations(
                SnapshotObservation(
                    snapshot.taken_at, present=here, pending_move=counts.pending_move, departed=counts.departed
                )
            )
            self._record(counts.by_name(), staged.sha256, snapshot.identity.position)
            # The file is replaced before the commit. A crash in between leaves an invalidation, which ``publish`` has
            # committed by itself: file and ledger differ, and the partition is materialized again.
            return self.partition.publish(staged)

    def _record(self, counts: Mapping[str, int], content_digest: str, source_position: int | None) -> None:
        identity = self.snapshot.identity
        if self.accept_deletions:
            accept_source(self.partition, identity.text, self.snapshot.taken_at)
        else:
            record_source(self.partition, identity.text)
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
                source_identity=identity.text,
                source_position=source_position,
            )
        )
