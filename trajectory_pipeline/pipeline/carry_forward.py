"""The raw rows of a partition: the snapshot's, and what is carried forward from the former file.

Belongs here: which rows there are, and what the policy leaves of them. Does not belong here: queries, files.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture_counts import CaptureCounts
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retention import pruned_partitions
from trajectory_pipeline.trajectories.erase import erase_deleted, has_deleted_content

Deleted = Literal["keep", "erase"]
"""What becomes of content that is deleted at the source."""

Partitions = tuple[datetime | None, datetime]
"""The first hour that will ever be captured (None: there is no first), and the open one."""


def sorted_ids(*run_ids: "pa.Array[Any] | Sequence[str]") -> "pa.Array[Any]":
    """Return ids as one sorted array."""
    arrays: list[pa.Array[Any]] = [ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string()) for ids in run_ids]
    return pa.concat_arrays(arrays).sort()


def raw_rows(
    present: Iterable[pa.RecordBatch],
    hour: datetime,
    snapshot: Snapshot,
    former_rows: ParquetStore | None,
    database: TrajectoryDatabase,
    counts: CaptureCounts,
    policy: Deleted,
    partitions: Partitions,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows that a partition's file is to hold, and count them.

    Args:
        present: the snapshot's.
        hour: start of the partition, UTC.
        snapshot: asked, when ``present`` was read to its end, what became of runs that only the former file holds.
        former_rows: store of the former file; None where it is not to be read.
        database: which tells what other partitions saw.
        counts: counted up while rows are read; whole at the end.
        policy: what becomes of content that is deleted at the source.
        partitions: that there are: a run that is in none of them leaves.

    Raises:
        SourceError: the source cannot be read.
        SinkError: the former file cannot be read.
    """
    for batch in present:
        counts.add(batch)
        yield _by_policy(batch, policy, counts)
    if former_rows is None:
        return
    former = sorted_ids(*(batch.column("run_id") for batch in former_rows.read(TERMINAL_RUNS, hour, ["run_id"])), ())
    if not len(former):
        return
    missing = former.filter(pc.invert(pc.is_in(former, value_set=sorted_ids(*counts.present, ()))))
    _look_for(cast(list[str], missing.to_pylist()), partition_key(hour), snapshot, database, counts, partitions)
    if not (counts.carried or counts.pending_move):
        return
    gone, awaited = (pa.array(run_ids, pa.string()) for run_ids in (counts.carried, counts.pending_move))
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
    counts: CaptureCounts,
    partitions: Partitions,
) -> None:
    """Tell what became of runs that the former file holds and this partition of the snapshot does not."""
    # One that another partition saw last is that one's affair, whatever became of it.
    elsewhere = set(database.runs_moved_away(key, missing)) if missing else set()
    first, last = partitions
    found = snapshot.run_locations(missing)
    pruned = pruned_partitions(database, sorted({partition_key(where.hour) for where in found.values() if where.hour}))
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
            and partition_key(where.hour) not in pruned
        ):
            # Were it dropped here now, and deleted before it is read there, nothing would be left of it.
            counts.pending_move.append(run_id)
        else:
            counts.departed.append(run_id)


def _by_policy(batch: pa.RecordBatch, policy: Deleted, counts: CaptureCounts) -> pa.RecordBatch:
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
