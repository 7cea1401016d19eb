"""The first stage: raw rows of a partition's terminal runs, from the source to Parquet.

Belongs here: what is carried forward from the former file, and the ledger entry. Does not belong here: queries.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.hours import HOUR, floor, key_of
from trajectory_pipeline.letta.fingerprint import EMPTY, fingerprints
from trajectory_pipeline.letta.source import LettaSource, Snapshot, Whereabouts
from trajectory_pipeline.letta.surroundings import surroundings, surroundings_of_none
from trajectory_pipeline.overlap import read_ahead
from trajectory_pipeline.schema.letta import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectory import SCHEMA_VERSION
from trajectory_pipeline.sinks.damaged import damage_of
from trajectory_pipeline.sinks.database import TrajectoryDatabase
from trajectory_pipeline.sinks.parquet import ParquetStore, Written
from trajectory_pipeline.sinks.partition import LedgerEntry, PartitionTransaction
from trajectory_pipeline.sinks.places import Sightings, placed_beside
from trajectory_pipeline.sinks.pruning import pruned_partitions
from trajectory_pipeline.sparing import spare_memory
from trajectory_pipeline.stages.damage import Damage, set_aside
from trajectory_pipeline.stages.made_by import made_by
from trajectory_pipeline.stages.unchanged import UnchangedRawRows, unchanged_raw_rows
from trajectory_pipeline.trajectories.erasure import erase_deleted, has_deleted_content

Deleted = Literal["keep", "erase"]
"""What becomes of content that is deleted at the source."""
DELETED_AND_KEPT = "deleted_and_kept"
"""Name, among the ledger's counts, of runs that hold content which is deleted at the source."""
ERASED = "erased_runs"
"""Name, among the ledger's counts, of runs without the content that was deleted at the source."""
LOST = "lost_runs"
"""Name, among the ledger's counts, of runs that were lost with a damaged file; once there, it stays."""

Partitions = tuple[datetime | None, datetime]
"""The first hour that will ever be captured (None: there is no first), and the open one."""


@dataclass
class RawCounts:
    """What was read.

    Attributes:
        runs: terminal runs in the snapshot.
        steps: their own steps.
        foreign_steps: other runs' steps that their messages name.
        messages: their messages.
        erased_runs: runs without the content that was deleted at the source.
        deleted_and_kept: runs that still hold such content.
        present: ids of the runs in the snapshot, an array a batch: half a million as ``str`` would be 75 MB.
        carried: runs that are gone from the source and were carried forward.
        awaited: runs that moved to a partition that did not see them yet: they stay here until it does.
        left: runs that were in this partition and run again, or are where no partition is, or only a pruned one.
        lost: runs that are gone from the source, and from here with a file that was damaged.
        lost_before: how many were lost so before.
    """

    runs: int = 0
    steps: int = 0
    foreign_steps: int = 0
    messages: int = 0
    erased_runs: int = 0
    deleted_and_kept: int = 0
    present: "list[pa.Array[Any]]" = field(default_factory=list, repr=False, compare=False)
    carried: list[str] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    lost_before: int = 0

    @property
    def deleted_runs(self) -> int:
        """How many runs are gone from the source and were carried forward."""
        return len(self.carried)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of the snapshot."""
        self.runs += batch.num_rows
        for name in ("steps", "foreign_steps", "messages"):
            lengths = pc.sum(pc.list_value_length(batch.column(name))).as_py() or 0
            setattr(self, name, getattr(self, name) + lengths)
        self.present.append(batch.column("run_id"))

    def by_name(self) -> dict[str, int]:
        """Return the counts as the ledger holds them."""
        return {
            "runs": self.runs,
            "steps": self.steps,
            "foreign_steps": self.foreign_steps,
            "messages": self.messages,
            "deleted_runs": self.deleted_runs,
            "awaited_runs": len(self.awaited),
            LOST: self.lost_before + len(self.lost),
            ERASED: self.erased_runs,
            DELETED_AND_KEPT: self.deleted_and_kept,
        }


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

    counts: RawCounts
    written: Written
    snapshot_at: datetime
    unknown_columns: list[str]
    absent_columns: list[str]
    unchanged: bool
    damage: Damage | None = None


def materialize_terminal_runs(
    hour: datetime,
    source: LettaSource,
    store: ParquetStore,
    database: TrajectoryDatabase,
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
        store: where the file goes.
        database: whose ledger takes the entry, and whose lock keeps others out.
        deleted: ``keep`` the content of what is deleted at the source, or ``erase`` it.
        start: first partition there is; a run that moves to before it leaves. None: there is no first.
        dagster_run_id: for the ledger.

    Raises:
        SourceError: the source cannot be read.
        SinkError: a sink cannot be written; the former file stays.
    """
    spare_memory()
    attempt = partial(_materialize, hour, source, store, database, deleted, start, dagster_run_id)
    try:
        return attempt(look_for_damage=False)
    except SinkError:
        # Whether it was the file or the storage is asked only now: it takes reading all of the file.
        if not _is_damaged(store, hour):
            raise
    return attempt(look_for_damage=True)


def _is_damaged(store: ParquetStore, hour: datetime) -> bool:
    """Whether the former file is known to be damaged; where that cannot be told, what failed before is the news."""
    try:
        return damage_of(store, TERMINAL_RUNS, hour) is not None
    except SinkError:
        return False


def _materialize(
    hour: datetime,
    source: LettaSource,
    store: ParquetStore,
    database: TrajectoryDatabase,
    deleted: Deleted,
    start: datetime | None,
    dagster_run_id: str | None,
    *,
    look_for_damage: bool,
) -> TerminalRunsResult:
    key = key_of(hour)
    damage: Damage | None = None
    with database.partition(TERMINAL_RUNS.name, key) as partition, source.snapshot() as snapshot:
        end = hour + HOUR
        fingerprint = fingerprints(snapshot, hour, end).get(hour, EMPTY)
        # Most hours of a year may have no runs: then nothing more is asked about them.
        around = surroundings_of_none(snapshot) if fingerprint == EMPTY else surroundings(snapshot, hour, end)
        made_with = hashlib.sha256(f"{around} {made_by()}".encode()).hexdigest()

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
                    made_with=made_with,
                )
            )

        none_of = DELETED_AND_KEPT if deleted == "erase" else ERASED
        standing = unchanged_raw_rows(
            hour, partition, snapshot, store, fingerprint=fingerprint, made_with=made_with, none_of=none_of
        )
        if standing is not None:
            counts, written = _counts_of(standing), standing.written
            record(standing.counts, written.sha256)
            store.tidy(TERMINAL_RUNS, hour)
        else:
            damage = set_aside(store, hour) if look_for_damage else None
            counts = RawCounts(lost_before=_lost_before(partition))
            partitions = (start and floor(start), floor(snapshot.taken_at))
            former = None if damage else store
            with (
                nullcontext(()) if fingerprint == EMPTY else snapshot.terminal_runs_ahead(hour, end) as present,
                read_ahead(_rows(present, hour, snapshot, former, database, counts, deleted, partitions)) as batches,
                store.prepare(TERMINAL_RUNS, hour, batches) as prepared,
            ):
                held = _sorted(*counts.present, counts.carried)
                unseen = _unseen(partition, snapshot, _sorted(held, counts.awaited, counts.left))
                # Without a word of these, a look by a clock that is behind does not get them elsewhere.
                counts.left += [run_id for run_id, where in unseen.items() if where.exists]
                if damage:
                    damage.lost = counts.lost = [run_id for run_id, where in unseen.items() if not where.exists]
                partition.place(Sightings(snapshot.taken_at, present=held, awaited=counts.awaited, left=counts.left))
                record(counts.by_name(), prepared.sha256)
                written = partition.publish(prepared)
    catalogue = snapshot.catalogue
    return TerminalRunsResult(
        counts,
        written,
        snapshot.taken_at,
        catalogue.unknown_columns,
        catalogue.absent_columns,
        unchanged=standing is not None,
        damage=damage,
    )


def _unseen(partition: PartitionTransaction, snapshot: Snapshot, seen: "pa.Array[Any]") -> dict[str, Whereabouts]:
    """Return where runs are that were seen here last, and that neither the source nor the former file tells of."""
    return snapshot.whereabouts(list(placed_beside(partition.connection, partition.partition_key, seen)))


def _sorted(*run_ids: "pa.Array[Any] | Sequence[str]") -> "pa.Array[Any]":
    """Return ids as one sorted array."""
    arrays: list[pa.Array[Any]] = [ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string()) for ids in run_ids]
    return pa.concat_arrays(arrays).sort()


def _lost_before(partition: PartitionTransaction) -> int:
    entry = partition.entry(TERMINAL_RUNS.name)
    return entry["counts"].get(LOST, 0) if entry else 0


def _counts_of(standing: UnchangedRawRows) -> RawCounts:
    """Return the counts of raw rows that are left alone: no run of them is awaited elsewhere, or left."""
    counts = standing.counts
    return RawCounts(
        runs=counts["runs"],
        steps=counts["steps"],
        foreign_steps=counts["foreign_steps"],
        messages=counts["messages"],
        erased_runs=counts[ERASED],
        deleted_and_kept=counts[DELETED_AND_KEPT],
        carried=list(standing.gone),
        lost_before=counts.get(LOST, 0),
    )


def _rows(
    present: Iterable[pa.RecordBatch],
    hour: datetime,
    snapshot: Snapshot,
    former_rows: ParquetStore | None,
    database: TrajectoryDatabase,
    counts: RawCounts,
    policy: Deleted,
    partitions: Partitions,
) -> Iterator[pa.RecordBatch]:
    for batch in present:
        counts.add(batch)
        yield _by_policy(batch, policy, counts)
    if former_rows is None:
        return
    former = _sorted(*(batch.column("run_id") for batch in former_rows.read(TERMINAL_RUNS, hour, ["run_id"])), ())
    missing = former.filter(pc.invert(pc.is_in(former, value_set=_sorted(*counts.present, ()))))
    _look_for(cast(list[str], missing.to_pylist()), key_of(hour), snapshot, database, counts, partitions)
    if not (counts.carried or counts.awaited):
        return
    gone, awaited = (pa.array(run_ids, pa.string()) for run_ids in (counts.carried, counts.awaited))
    for batch in former_rows.read(TERMINAL_RUNS, hour):
        for run_ids, marked in ((gone, _deleted), (awaited, _not_deleted)):
            kept = batch.filter(pc.is_in(batch.column("run_id"), value_set=run_ids))
            if kept.num_rows:
                yield _by_policy(marked(kept, snapshot.taken_at), policy, counts)


def _look_for(
    missing: list[str],
    key: str,
    snapshot: Snapshot,
    database: TrajectoryDatabase,
    counts: RawCounts,
    partitions: Partitions,
) -> None:
    """Tell what became of runs that the former file holds and this partition of the snapshot does not."""
    # One that another partition saw last is that one's affair, whatever became of it.
    elsewhere = set(database.moved_on(key, missing)) if missing else set()
    first, last = partitions
    found = snapshot.whereabouts(missing)
    pruned = pruned_partitions(database, sorted({key_of(where.hour) for where in found.values() if where.hour}))
    for run_id, where in found.items():
        if run_id in elsewhere:
            continue
        if not where.exists:
            counts.carried.append(run_id)
        elif (
            where.terminal
            and where.hour is not None
            and (first is None or first <= where.hour)
            and where.hour <= last
            and key_of(where.hour) not in pruned
        ):
            # Were it dropped here now, and deleted before it is read there, nothing would be left of it.
            counts.awaited.append(run_id)
        else:
            counts.left.append(run_id)


def _by_policy(batch: pa.RecordBatch, policy: Deleted, counts: RawCounts) -> pa.RecordBatch:
    """Return rows as the policy wants what is deleted in them, and count it."""
    if policy == "erase":
        batch = erase_deleted(batch)
    erased = _flags(batch, "erased")
    counts.erased_runs += pc.sum(erased).as_py() or 0
    counts.deleted_and_kept += pc.sum(pc.and_not(has_deleted_content(batch), erased)).as_py() or 0
    return batch


def _flags(batch: pa.RecordBatch, name: str) -> Any:
    column: Any = batch.column(name)
    return pc.fill_null(column, False)


def _deleted(batch: pa.RecordBatch, noticed_at: datetime) -> pa.RecordBatch:
    """Return rows marked as deleted; of one that is so newly, there may be more to erase than there was."""
    column: Any = batch.column("deleted_at")
    erased = pc.and_(_flags(batch, "erased"), pc.is_valid(column))
    marked = _with(batch, "deleted_at", pc.fill_null(column, pa.scalar(noticed_at, column.type)))
    return _with(marked, "erased", erased)


def _not_deleted(batch: pa.RecordBatch, _: datetime) -> pa.RecordBatch:
    return _with(batch, "deleted_at", pa.nulls(batch.num_rows, batch.column("deleted_at").type))


def _with(batch: pa.RecordBatch, name: str, values: "pa.Array[Any]") -> pa.RecordBatch:
    place = batch.schema.get_field_index(name)
    return batch.set_column(place, batch.schema.field(place), values)
