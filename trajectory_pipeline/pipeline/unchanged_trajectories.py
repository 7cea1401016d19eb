"""Which trajectories of a partition stay as they are, because their raw rows are those that they were made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.pipeline.capture_counts import strings_of
from trajectory_pipeline.pipeline.code_version import comparable_entry, conversion_code_version
from trajectory_pipeline.pipeline.former_rows import run_ids_of
from trajectory_pipeline.pipeline.merge_rows import Placed, Positions, place_rows
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline.storage.postgres.run_versions import stored_versions

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class UnchangedTrajectories:
    """The former file of trajectories, compared with the raw rows.

    Attributes:
        positions: of each row of the file among the raw rows; -1 where it is made again, or goes.
        is_converted: of each raw row, whether it must be converted.
        gone: runs of the file that the partition does not have any more.
        moved: how many raw rows are of runs that are in another partition now.
        reference_run_ids: of the rows that stay, those that the reference converter made.
    """

    positions: Positions
    is_converted: Flags
    gone: list[str]
    moved: int
    reference_run_ids: list[str]

    @property
    def number(self) -> int:
        """How many rows stay."""
        return int((self.positions >= 0).sum())

    def rows(self, store: ParquetStore, hour: datetime) -> Iterator[Placed]:
        """Yield the rows that stay."""
        is_kept = self.positions >= 0
        return place_rows(store.read(TRAJECTORIES, hour, rows=is_kept), self.positions[is_kept])


def find_unchanged_trajectories(
    hour: datetime, partition: PartitionTransaction, store: ParquetStore, raw_digest: str | None
) -> UnchangedTrajectories | None:
    """Compare a partition's trajectories with its raw rows; None where all must be converted.

    They stay only where both sinks hold what the ledger says, and where it is known which raw rows changed since.
    """
    entry = comparable_entry(partition, TRAJECTORIES.name, conversion_code_version())
    recorded = stored_versions(partition) if entry else None
    if entry is None or recorded is None or recorded.raw_digest != raw_digest or recorded.reference_run_ids is None:
        return None
    changed = recorded.changed_since(entry.upstream_digest)
    if (
        changed is None
        or partition.rows_checksum() != entry.rows_checksum
        or store.find_matching(TRAJECTORIES, hour, entry.content_digest) is None
        or store.find_matching(TERMINAL_RUNS, hour, raw_digest) is None
    ):
        return None
    raw, former = run_ids_of(TERMINAL_RUNS, hour, store), run_ids_of(TRAJECTORIES, hour, store)
    moved = pa.array(partition.runs_moved_away(strings_of(raw)), pa.string())
    index: Any = pc.index_in(former, value_set=raw)
    among = np.array(index.fill_null(-1).to_numpy(zero_copy_only=False))
    leaves = (among < 0) | _is_in(former, moved)
    positions = np.where(leaves | _is_in(former, pa.array(changed, pa.string())), -1, among)
    is_converted = ~_is_in(raw, moved)
    is_converted[positions[positions >= 0]] = False
    kept = former.filter(pa.array(positions >= 0))
    by_reference = kept.filter(pc.is_in(kept, value_set=pa.array(recorded.reference_run_ids, pa.string())))
    gone = strings_of(former.filter(pa.array(leaves)))
    return UnchangedTrajectories(positions, is_converted, gone, len(moved), strings_of(by_reference))


def _is_in(run_ids: "pa.Array[Any]", among: "pa.Array[Any]") -> Flags:
    is_there: Any = pc.is_in(run_ids, value_set=among)
    return np.array(is_there.to_numpy(zero_copy_only=False))
