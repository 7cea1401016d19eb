"""Whether a partition is up to date: then nothing is read, converted or written.

Everything that a stage's result depends on is compared with what it was when the partition was made. If anything
differs, or cannot be told, the partition is made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import pyarrow as pa

from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.pipeline.conversion_result import RowBalance, TrajectoriesResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore, WrittenFile
from trajectory_pipeline.storage.postgres.partition_writer import MergeStats, PartitionTransaction


@dataclass(frozen=True)
class UnchangedRawRows:
    """A partition of ``terminal_runs`` that is up to date with a snapshot.

    Attributes:
        written: its file.
        counts: as the ledger stores them.
        gone: runs that are gone from the source.
    """

    written: WrittenFile
    counts: Mapping[str, int]
    gone: Sequence[str]


def unchanged_raw_rows(
    hour: datetime,
    partition: PartitionTransaction,
    snapshot: Snapshot,
    store: ParquetStore,
    *,
    fingerprint: str,
    inputs_digest: str,
    none_of: str,
) -> UnchangedRawRows | None:
    """Return the raw rows if reading the source would give the same; None if it may not.

    Args:
        hour: start of the partition, UTC.
        partition: of ``terminal_runs``, locked.
        snapshot: of the source.
        store: where the file is.
        fingerprint: of the partition in the snapshot.
        inputs_digest: of what else the rows depend on, as it is now.
        none_of: name of the count that must be 0, because the policy would now change those runs.

    Raises:
        SourceError: the source cannot be read.
        SinkError: a sink cannot be read.
    """
    entry = _comparable_entry(partition, TERMINAL_RUNS.name, inputs_digest)
    if entry is None or entry["fingerprint"] != fingerprint or entry["counts"][none_of]:
        return None
    written = store.find_matching(TERMINAL_RUNS, hour, entry["content_digest"])
    if written is None:
        return None
    run_ids: list[str] = []
    gone: list[str] = []
    for batch in store.read(TERMINAL_RUNS, hour, ["run_id", "deleted_at"]):
        ids = batch.column("run_id")
        run_ids += _strings(ids)
        gone += _strings(ids.filter(batch.column("deleted_at").is_valid()))
    # A carried run may be back in another hour, or unfinished: the fingerprint of this hour does not show that.
    if any(location.exists for location in snapshot.run_locations(gone).values()) or not partition.all_located(run_ids):
        return None
    return UnchangedRawRows(written, entry["counts"], gone)


def unchanged_trajectories(
    hour: datetime,
    partition: PartitionTransaction,
    store: ParquetStore,
    *,
    upstream_digest: str | None,
    inputs_digest: str,
) -> TrajectoriesResult | None:
    """Return what the trajectories are if converting the raw rows would give the same; None if it may not.

    Args:
        hour: start of the partition, UTC.
        partition: of ``trajectories``, locked, as are its raw rows.
        store: where both files are.
        upstream_digest: of the raw rows, by the ledger; None if it does not know them.
        inputs_digest: of what else trajectories depend on, as it is now.

    Raises:
        SinkError: a sink cannot be read.
    """
    entry = _comparable_entry(partition, TRAJECTORIES.name, inputs_digest)
    if entry is None or upstream_digest is None or entry["upstream_digest"] != upstream_digest:
        return None
    written = store.find_matching(TRAJECTORIES, hour, entry["content_digest"])
    if (
        written is None
        or partition.rows_checksum() != entry["rows_checksum"]
        or store.find_matching(TERMINAL_RUNS, hour, upstream_digest) is None
    ):
        return None
    result = TrajectoriesResult(
        RowBalance(**entry["counts"]), written=written, data_omitted=partition.documents_omitted(), unchanged=True
    )
    run_ids: set[str] = set()
    for batch in store.read(TRAJECTORIES, hour, ["run_id", "execution_status", "heuristic_outcome", "escaped"]):
        run_ids.update(_strings(batch.column("run_id")))
        result.count_rows(batch)
    raw = [run_id for batch in store.read(TERMINAL_RUNS, hour, ["run_id"]) for run_id in _strings(batch.column(0))]
    if set(raw).difference(partition.runs_moved_away(raw)) != run_ids:
        return None
    result.merge_stats = MergeStats(inserted=0, updated=0, unchanged=len(run_ids), removed=0)
    return result


def _comparable_entry(partition: PartitionTransaction, asset: str, inputs_digest: str) -> dict[str, Any] | None:
    """Return the ledger's entry if only the partition's own rows are left to compare."""
    entry = None if partition.has_invalidations else partition.entry(asset)
    if entry is None or (entry["schema_version"], entry["inputs_digest"]) != (SCHEMA_VERSION, inputs_digest):
        return None
    # A materialization restores a pruned partition, and tries quarantined runs again.
    return entry if entry["result"] == "complete" else None


def _strings(column: "pa.Array[Any]") -> list[str]:
    return cast(list[str], column.to_pylist())
