"""The first stage: raw rows of a partition's terminal runs, from the source to Parquet.

Belongs here: the flow of batches, the ledger entry, and where the runs are noted to be. Does not belong here: queries,
which rows there are (``raw_rows``).
"""

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.letta.dependency_digest import dependency_digests, empty_dependency_digest
from trajectory_pipeline.letta.fingerprint import EMPTY, fingerprints
from trajectory_pipeline.letta.snapshot import LettaSource, RunLocation, Snapshot
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, partition_key
from trajectory_pipeline.pipeline.capture_counts import DELETED_AND_KEPT, ERASED, LOST, CaptureCounts
from trajectory_pipeline.pipeline.carry_forward import Deleted, raw_rows, sorted_ids
from trajectory_pipeline.pipeline.code_version import capture_code_version
from trajectory_pipeline.pipeline.corrupt_file import CorruptFile, set_aside_corrupt_file
from trajectory_pipeline.pipeline.up_to_date import unchanged_raw_rows
from trajectory_pipeline.runtime.memory import trim_memory_after, use_jemalloc
from trajectory_pipeline.runtime.threads import read_ahead
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.storage.parquet.corrupt_files import find_corruption
from trajectory_pipeline.storage.parquet.store import ParquetStore, WrittenFile
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry, PartitionTransaction
from trajectory_pipeline.storage.postgres.run_locations import SnapshotObservation, unaccounted_runs
from trajectory_pipeline.storage.storage import Storage


@dataclass(frozen=True)
class TerminalRunsResult:
    """What a materialisation of ``terminal_runs`` did.

    Attributes:
        counts: what was read.
        written: the file.
        snapshot_at: when the source was read, by its own clock.
        unknown_columns: columns of the source that are not known, ``table.column``.
        absent_columns: known columns that the source lacks.
        unchanged: whether the file was left alone, because reading the runs would have given it once more.
        damage: what was wrong with the former file; None where it was whole, or there was none.
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
    deleted: Deleted = "keep",
    start: datetime | None = None,
    dagster_run_id: str | None = None,
) -> TerminalRunsResult:
    """Read one partition out of one snapshot and replace its file.

    Runs that the former file holds and the source no longer has are carried forward with ``deleted_at``. What becomes
    of their content, and of messages that are marked deleted, the policy says. A run that moved to another partition
    stays until that one has seen it. Where the runs need not be read to know that the file would be the same, they are
    not: only the ledger's times change. Where the former file is damaged, all is read from the source, the file is kept
    aside, and the result says which runs are lost with it.

    Args:
        hour: start of the partition, UTC.
        source: where to read.
        storage: both sinks.
        deleted: ``keep`` the content of what is deleted at the source, or ``erase`` it.
        start: first partition there is; a run that moves to before it leaves. None: there is no first.
        dagster_run_id: for the ledger.

    Raises:
        SourceError: the source cannot be read.
        SinkError: a sink cannot be written; the former file stays.
    """
    use_jemalloc()
    attempt = partial(_materialize, hour, source, storage, deleted, start, dagster_run_id)
    try:
        return attempt(look_for_damage=False)
    except SinkError:
        # Whether it was the file or the storage is asked only now: it takes reading all of the file.
        if not _is_damaged(storage.parquet, hour):
            raise
    return attempt(look_for_damage=True)


def _is_damaged(store: ParquetStore, hour: datetime) -> bool:
    """Whether the former file is known to be damaged; where that cannot be told, what failed before is the news."""
    try:
        return find_corruption(store, TERMINAL_RUNS, hour) is not None
    except SinkError:
        return False


def _materialize(
    hour: datetime,
    source: LettaSource,
    storage: Storage,
    deleted: Deleted,
    start: datetime | None,
    dagster_run_id: str | None,
    *,
    look_for_damage: bool,
) -> TerminalRunsResult:
    key = partition_key(hour)
    damage: CorruptFile | None = None
    with storage.postgres.partition(TERMINAL_RUNS.name, key) as partition, source.snapshot() as snapshot:
        end = hour + HOUR
        fingerprint = fingerprints(snapshot, hour, end).get(hour, EMPTY)
        # Most hours of a year may have no runs: then nothing more is asked about them.
        around = empty_dependency_digest(snapshot) if fingerprint == EMPTY else dependency_digests(snapshot, hour, end)
        inputs_digest = hashlib.sha256(f"{around} {capture_code_version()}".encode()).hexdigest()

        def record(counts: Mapping[str, int], content_digest: str) -> None:
            partition.record(
                LedgerEntry(
                    asset=TERMINAL_RUNS.name,
                    partition_key=key,
                    result="complete",
                    counts=counts,
                    content_digest=content_digest,
                    schema_version=SCHEMA_VERSION,
                    fingerprint=fingerprint,
                    snapshot_at=snapshot.taken_at,
                    dagster_run_id=dagster_run_id,
                    inputs_digest=inputs_digest,
                )
            )

        none_of = DELETED_AND_KEPT if deleted == "erase" else ERASED
        standing = unchanged_raw_rows(
            hour,
            partition,
            snapshot,
            storage.parquet,
            fingerprint=fingerprint,
            inputs_digest=inputs_digest,
            none_of=none_of,
        )
        if standing is not None:
            counts, written = CaptureCounts.present_runs(standing.counts, standing.gone), standing.written
            record(standing.counts, written.sha256)
            storage.parquet.remove_temp_files(TERMINAL_RUNS, hour)
        else:
            damage = set_aside_corrupt_file(storage.parquet, hour) if look_for_damage else None
            counts = CaptureCounts(lost_before=_lost_before(partition))
            partitions = (start and floor_to_hour(start), floor_to_hour(snapshot.taken_at))
            former = None if damage else storage.parquet
            with (
                nullcontext(()) if fingerprint == EMPTY else snapshot.prefetch_terminal_runs(hour, end) as present,
                read_ahead(
                    raw_rows(present, hour, snapshot, former, storage.postgres, counts, deleted, partitions)
                ) as batches,
                storage.parquet.stage(TERMINAL_RUNS, hour, batches) as prepared,
            ):
                held = sorted_ids(*counts.present, counts.carried)
                # All of them are in ``held``; whoever keeps the result need not keep them too.
                counts.present.clear()
                others = [*counts.pending_move, *counts.departed]
                unseen = _unseen(partition, snapshot, sorted_ids(held, others) if others else held)
                # Without a word of these, a look by a clock that is behind does not get them elsewhere.
                counts.departed += [run_id for run_id, where in unseen.items() if where.exists]
                if damage:
                    damage.lost = counts.lost = [run_id for run_id, where in unseen.items() if not where.exists]
                partition.set_run_locations(
                    SnapshotObservation(
                        snapshot.taken_at, present=held, pending_move=counts.pending_move, departed=counts.departed
                    )
                )
                record(counts.by_name(), prepared.sha256)
                written = partition.publish(prepared)
    trim_memory_after(written.rows)
    catalogue = snapshot.catalog
    return TerminalRunsResult(
        counts,
        written,
        snapshot.taken_at,
        catalogue.unknown_columns,
        catalogue.absent_columns,
        unchanged=standing is not None,
        corrupt_file=damage,
    )


def _unseen(partition: PartitionTransaction, snapshot: Snapshot, seen: "pa.Array[Any]") -> dict[str, RunLocation]:
    """Return where runs are that were seen here last, and that neither the source nor the former file tells of."""
    return snapshot.run_locations(list(unaccounted_runs(partition.connection, partition.partition_key, seen)))


def _lost_before(partition: PartitionTransaction) -> int:
    entry = partition.entry(TERMINAL_RUNS.name)
    return entry["counts"].get(LOST, 0) if entry else 0
