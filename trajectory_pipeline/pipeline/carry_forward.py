"""The raw rows of a partition's file: those of the snapshot, and those carried forward from the former file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.erase import erase_deleted, has_deleted_content
from trajectory_pipeline.letta.context import AT_CAPTURE
from trajectory_pipeline.partition_keys import floor_to_hour, partition_key
from trajectory_pipeline.pipeline.capture_counts import CaptureCounts, strings_of
from trajectory_pipeline.pipeline.deletion_guard import FORMER_FIELDS, ObservedRows
from trajectory_pipeline.pipeline.masked_texts import FORMER_TEXTS
from trajectory_pipeline.schema.enums import DeletedContent
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.source_protocol import SourceSnapshot
from trajectory_pipeline.storage.postgres.retention import pruned_partitions
from trajectory_pipeline.storage.storage import Storage

Context = dict[str, str | None]


def sorted_ids(*run_ids: "pa.Array[Any] | Sequence[str]") -> "pa.Array[Any]":
    """Return ids as one sorted array."""
    arrays: list[pa.Array[Any]] = [ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string()) for ids in run_ids]
    return pa.concat_arrays(arrays).sort()


@dataclass
class RawRows:
    """The rows that a partition's new file is to hold.

    Attributes:
        snapshot: queried after its own rows are read, for runs that only the former file holds.
        storage: has the former file, and knows which runs other partitions captured later.
        counts: filled while rows are read; complete at the end.
        start: a run that moves to an hour before it departs. None: there is no first hour.
        observed: filled like ``counts``: what tells whether missing runs are deleted.
        is_changed: of each row of the former file, whether it may differ now; None: all may.
    """

    hour: datetime
    snapshot: SourceSnapshot
    storage: Storage
    counts: CaptureCounts
    deleted: DeletedContent
    start: datetime | None
    observed: ObservedRows
    is_changed: "np.ndarray[Any, np.dtype[np.bool_]] | None" = None

    def read(self, present: Iterable[pa.RecordBatch], *, read_former: bool) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the snapshot, ``present``, and then those carried forward from the former file.

        Raises:
            SourceError: the source cannot be read.
            SinkError: the former file cannot be read.
        """
        counts, parquet = self.counts, self.storage.parquet
        contexts, traced, former_rows = self._former_contexts() if read_former else ({}, set(), 0)
        if former_rows:
            texts = parquet.read_fields(TERMINAL_RUNS, self.hour, FORMER_TEXTS, skip_absent=True)
            self.observed.add_former_texts(texts)
        for batch in present:
            counts.add(batch)
            if former_rows:
                self.observed.add(batch)
            yield self._apply_policy(_with_former_contexts(batch, {**contexts, **self._traced(batch, traced)}))
        if not former_rows:
            return
        ids: list[pa.Array[Any]] = []
        for batch in parquet.read_fields(TERMINAL_RUNS, self.hour, FORMER_FIELDS):
            ids.append(batch.column("run_id"))
            self.observed.add_former(batch)
        former, present = sorted_ids(*ids, ()), sorted_ids(*counts.present, ())
        if len(present):
            fields = ["run_id", *self.observed.empty_columns]
            for batch in parquet.read_fields(TERMINAL_RUNS, self.hour, fields, skip_absent=True):
                self.observed.add_former_columns(batch, present)
        missing = former.filter(pc.invert(pc.is_in(former, value_set=present)))
        self._sort_missing(strings_of(missing))
        kept = [*counts.pending_move, *counts.misdated, *counts.unseen]
        if not (counts.carried or kept):
            return
        carried, pending = (pa.array(run_ids, pa.string()) for run_ids in (counts.carried, kept))
        for batch in parquet.read(TERMINAL_RUNS, self.hour):
            for run_ids, mark in ((carried, _mark_deleted), (pending, _mark_present)):
                rows = batch.filter(pc.is_in(batch.column("run_id"), value_set=run_ids))
                if rows.num_rows:
                    yield self._apply_policy(mark(rows, self.snapshot.taken_at))

    def _former_contexts(self) -> tuple[dict[str, Context], set[str], int]:
        """Return what agents were told when the former file was captured, whose call told it, and how many rows it has.

        It is closer to the run than what they are told now, and a verdict that was paid for rests on it.
        """
        distinct: dict[tuple[str | None, ...], Context] = {}
        contexts: dict[str, Context] = {}
        traced: set[str] = set()
        rows = 0 if self.is_changed is None else len(self.is_changed)
        for batch in self.storage.parquet.read(TERMINAL_RUNS, self.hour, ["run_id", "context"], rows=self.is_changed):
            rows += batch.num_rows if self.is_changed is None else 0
            for row in batch.to_pylist():
                context = row["context"]
                if context is not None and context["source"] == AT_CAPTURE:
                    contexts[row["run_id"]] = distinct.setdefault(tuple(context.values()), context)
                elif context is not None:
                    traced.add(row["run_id"])
        return contexts, traced, rows

    def _traced(self, batch: pa.RecordBatch, traced: set[str]) -> dict[str, Context]:
        """Return the contexts of runs whose call was recorded and is recorded no more.

        Each run may have one of its own, so that they are read when they are needed.
        """
        if not traced:
            return {}
        sources = pc.struct_field(batch.column("context"), "source").to_pylist()
        wanted = {
            run_id
            for run_id, source in zip(strings_of(batch.column("run_id")), sources, strict=True)
            if source in (None, AT_CAPTURE) and run_id in traced
        }
        found: dict[str, Context] = {}
        if wanted:
            ids = pa.array(sorted(wanted), pa.string())
            for former in self.storage.parquet.read(TERMINAL_RUNS, self.hour, ["run_id", "context"]):
                rows = former.filter(pc.is_in(former.column("run_id"), value_set=ids))
                found.update((row["run_id"], row["context"]) for row in rows.to_pylist())
        return found

    def _sort_missing(self, missing: list[str]) -> None:
        """Sort runs that only the former file holds into carried, pending move, misdated, unseen and departed."""
        counts, database = self.counts, self.storage.postgres
        # Another partition captured these later: what becomes of them is decided there.
        moved_away = set(database.runs_moved_away(partition_key(self.hour), missing)) if missing else set()
        first, last = self.start and floor_to_hour(self.start), floor_to_hour(self.snapshot.taken_at)
        found = self.snapshot.run_locations(missing)
        pruned = pruned_partitions(
            database, sorted({partition_key(location.hour) for location in found.values() if location.hour})
        )
        for run_id, location in found.items():
            if run_id in moved_away:
                continue
            if location.unproven:
                counts.unseen.append(run_id)
            elif not location.exists:
                counts.carried.append(run_id)
            elif location.terminal and (location.hour is None or location.hour > last):
                counts.misdated.append(run_id)
            elif (
                location.terminal
                and location.hour is not None
                and (first is None or first <= location.hour)
                and partition_key(location.hour) not in pruned
            ):
                # If its rows left now, and the run were deleted before its new partition is read, they would be lost.
                counts.pending_move.append(run_id)
            else:
                counts.departed.append(run_id)

    def _apply_policy(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Erase deleted content if the policy says so, and count the rows that hold any."""
        if self.deleted == "erase":
            batch = erase_deleted(batch)
        erased = _flags(batch)
        self.counts.erased_runs += pc.sum(erased).as_py() or 0
        self.counts.deleted_and_kept += pc.sum(pc.and_not(has_deleted_content(batch), erased)).as_py() or 0
        return batch


def _with_former_contexts(batch: pa.RecordBatch, contexts: dict[str, Context]) -> pa.RecordBatch:
    """Put the contexts of the former file in the place of those that would be captured now, or are there no more."""
    column: Any = batch.column("context")
    sources = pc.struct_field(column, "source").to_pylist() if contexts else []
    kept: list[Context] = []
    indexes = list(range(batch.num_rows))
    for at, (run_id, source) in enumerate(zip(strings_of(batch.column("run_id")), sources, strict=False)):
        if source in (None, AT_CAPTURE) and run_id in contexts:
            indexes[at] = batch.num_rows + len(kept)
            kept.append(contexts[run_id])
    if not kept:
        return batch
    both: Any = pa.concat_arrays([column, pa.array(kept, column.type)])
    return _with_column(batch, "context", both.take(pa.array(indexes)))


def _flags(batch: pa.RecordBatch) -> Any:
    column: Any = batch.column("erased")
    return pc.fill_null(column, False)


def _mark_deleted(batch: pa.RecordBatch, noticed_at: datetime) -> pa.RecordBatch:
    """Set ``deleted_at`` where it is null."""
    column: Any = batch.column("deleted_at")
    # A run that is deleted only now has more to erase than its deleted messages.
    erased = pc.and_(_flags(batch), pc.is_valid(column))
    marked = _with_column(batch, "deleted_at", pc.fill_null(column, pa.scalar(noticed_at, column.type)))
    return _with_column(marked, "erased", erased)


def _mark_present(batch: pa.RecordBatch, _: datetime) -> pa.RecordBatch:
    return _with_column(batch, "deleted_at", pa.nulls(batch.num_rows, batch.column("deleted_at").type))


def _with_column(batch: pa.RecordBatch, name: str, values: "pa.Array[Any]") -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    return batch.set_column(index, batch.schema.field(index), values)
