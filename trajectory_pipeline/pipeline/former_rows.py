"""Which raw rows of a partition's former file the source would give again, so that only the others are read."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.errors import SourceConflictError
from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline.pipeline.capture_counts import strings_of
from trajectory_pipeline.pipeline.code_version import capture_code_version
from trajectory_pipeline.pipeline.merge_rows import Placed, Positions, merge_rows, place_rows
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.source_protocol import SourceSnapshot
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline.storage.postgres.run_versions import RunVersions, record_versions, stored_versions

_FEW_RUNS = 100
"""A partition of fewer is read whole, which costs less than to find out what changed."""
_CONTROL_RUNS = 50
"""Unchanged runs that are read with those that changed: a column policy may mask texts and leave the rows' versions."""


@dataclass(frozen=True)
class FormerRows:
    """A former file, compared with the source.

    Attributes:
        recorded: what the ledger's side knows of the file.
        versions: ``run_id`` and ``version`` of the runs that the source has, sorted.
        positions: of each row of the file among ``versions``; -1 where the source lacks it, may show another now, or is
            in ``control``.
        control: ids of runs that did not change and are read too, which shows whether the source hides anything now.
    """

    recorded: RunVersions
    versions: pa.Table
    positions: Positions
    control: "pa.Array[Any]"

    @property
    def changed(self) -> "pa.Array[Any]":
        """Ids of the runs that must be read from the source, sorted."""
        return _ids(self.versions).filter(pa.array(self._is_changed))

    @property
    def _is_changed(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        is_changed = np.ones(self.versions.num_rows, dtype=bool)
        is_changed[self.positions[self.positions >= 0]] = False
        return is_changed

    def merged(
        self, store: ParquetStore, hour: datetime, changed: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all runs that the source has, sorted: those that changed as given, the others as stored."""
        is_kept = self.positions >= 0
        kept = store.read(TERMINAL_RUNS, hour, rows=is_kept)
        yield from merge_rows(place_rows(kept, self.positions[is_kept]), self._placed(changed))

    def _placed(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Placed]:
        positions, first, run_ids = np.flatnonzero(self._is_changed), 0, self.changed
        for batch in batches:
            if not batch.column("run_id").equals(run_ids.slice(first, batch.num_rows)):
                raise SourceConflictError(
                    "The source showed other runs when it was asked again in one snapshot: try again."
                )
            yield positions[first : first + batch.num_rows], batch
            first += batch.num_rows


def compare_former_rows(
    hour: datetime, partition: PartitionTransaction, snapshot: SourceSnapshot, store: ParquetStore, raw_digest: str
) -> FormerRows | None:
    """Compare a partition's file, of this digest, with the source; None where it is not known what it was made of."""
    recorded = stored_versions(partition)
    if recorded is None or (recorded.raw_digest, recorded.scope) != (raw_digest, _scope(snapshot)):
        return None
    if store.find_matching(TERMINAL_RUNS, hour, raw_digest) is None:
        return None
    former = run_ids_of(TERMINAL_RUNS, hour, store)
    versions = snapshot.run_versions(hour, hour + HOUR)
    positions = np.full(len(former), -1)
    # The first rows are those that the source had.
    index: Any = pc.index_in(former.slice(0, len(recorded.versions)), value_set=_ids(versions))
    among = _numbers(index.fill_null(-1))
    now = _numbers(versions["version"].combine_chunks())
    is_same = (among >= 0) & (now[among] == recorded.versions) if len(now) else among >= 0
    positions[: len(among)] = np.where(is_same, among, -1)
    control = np.flatnonzero(positions >= 0)[:_CONTROL_RUNS]
    positions[control] = -1
    return FormerRows(recorded, versions, positions, former.take(pa.array(control, pa.int64())))


def record_run_versions(
    hour: datetime,
    partition: PartitionTransaction,
    snapshot: SourceSnapshot,
    *,
    former: FormerRows | None,
    present: "Sequence[pa.Array[Any]]",
    carried: Sequence[str],
    raw_digest: str,
) -> None:
    """Record what a new file was made of.

    Args:
        hour: the partition.
        partition: its transaction.
        snapshot: that its rows were read from.
        former: what it was compared with, if it was.
        present: ids of the runs that the source has, in the order of the file.
        carried: of the runs that only the former file had.
        raw_digest: of the new file.
    """
    runs = sum(map(len, present))
    if runs < _FEW_RUNS:
        return
    versions = former.versions if former else snapshot.run_versions(hour, hour + HOUR)
    if not _ids(versions).equals(pa.concat_arrays(list(present))):
        return
    base, changed = None, None
    converted = partition.entry(TRAJECTORIES.name)
    if former and converted:
        base, changed = converted.upstream_digest, former.recorded.changed_since(converted.upstream_digest)
    if former and changed is not None:
        changed = sorted({*changed, *strings_of(former.changed), *carried})
    record_versions(
        partition,
        RunVersions(
            raw_digest,
            _scope(snapshot),
            _numbers(versions["version"].combine_chunks()),
            base if changed is not None else None,
            changed,
        ),
    )


def run_ids_of(table: Table, hour: datetime, store: ParquetStore) -> "pa.Array[Any]":
    """Return the ids of the runs in a partition's file, in its order."""
    return pa.concat_arrays([pa.array([], pa.string()), *(b.column(0) for b in store.read(table, hour, ["run_id"]))])


def _scope(snapshot: SourceSnapshot) -> str:
    """Return a digest of what must be the same for two versions to be comparable."""
    parts = [snapshot.identity.text, snapshot.empty_dependency_digest(), capture_code_version()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _ids(versions: pa.Table) -> "pa.Array[Any]":
    return versions["run_id"].combine_chunks()


def _numbers(column: Any) -> Positions:
    return np.array(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
