"""Whether materialising a partition would give what is there already: then nothing is read, converted or written.

Belongs here: everything that a stage's result depends on, held against what it was when the partition was made. Does
not belong here: making it. Where anything differs, or cannot be told, the answer is no, and the partition is made anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import pyarrow as pa

from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore, WrittenFile
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline.storage.postgres.rows_checksum import (
    all_located,
    documents_omitted,
    rows_checksum,
    runs_moved_away,
)


@dataclass(frozen=True)
class UnchangedRawRows:
    """A partition of ``terminal_runs`` that a snapshot would make once more.

    Attributes:
        written: its file.
        counts: of the ledger.
        gone: runs that are gone from the source.
    """

    written: WrittenFile
    counts: Mapping[str, int]
    gone: Sequence[str]


@dataclass
class UnchangedTrajectories:
    """A partition of ``trajectories`` that its raw rows would make once more.

    Attributes:
        written: its file.
        counts: of the ledger.
        executions: trajectories by how they ended.
        outcomes: trajectories by heuristic outcome.
        escaped: trajectories in which text had to be escaped.
        data_omitted: trajectories whose document ``jsonb`` cannot hold.
        run_ids: of its trajectories.
    """

    written: WrittenFile
    counts: Mapping[str, int]
    executions: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    escaped: int = 0
    data_omitted: int = 0
    run_ids: list[str] = field(default_factory=list)


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
    """Return the raw rows that are there, where reading the source would give the same; None where it may not.

    Args:
        hour: start of the partition, UTC.
        partition: of ``terminal_runs``, locked.
        snapshot: of the source.
        store: where the file is.
        fingerprint: of the partition in the snapshot.
        inputs_digest: what else the rows depend on, as it is now.
        none_of: the count of runs that the policy would change now.

    Raises:
        SourceError: the source cannot be read.
        SinkError: a sink cannot be read.
    """
    entry = _settled(partition, TERMINAL_RUNS.name, inputs_digest)
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
    # One that is carried forward may have come back, in another hour or unfinished: no fingerprint of this hour tells.
    if any(where.exists for where in snapshot.run_locations(gone).values()) or not all_located(partition, run_ids):
        return None
    return UnchangedRawRows(written, entry["counts"], gone)


def unchanged_trajectories(
    hour: datetime,
    partition: PartitionTransaction,
    store: ParquetStore,
    *,
    upstream_digest: str | None,
    inputs_digest: str,
) -> UnchangedTrajectories | None:
    """Return the trajectories that are there, where converting the raw rows would give the same; None where it may not.

    Args:
        hour: start of the partition, UTC.
        partition: of ``trajectories``, locked, and so that its raw rows stay as they are.
        store: where both files are.
        upstream_digest: of the raw rows, by the ledger; None where it does not know them.
        inputs_digest: what else trajectories depend on, as it is now.

    Raises:
        SinkError: a sink cannot be read.
    """
    entry = _settled(partition, TRAJECTORIES.name, inputs_digest)
    if entry is None or upstream_digest is None or entry["upstream_digest"] != upstream_digest:
        return None
    written = store.find_matching(TRAJECTORIES, hour, entry["content_digest"])
    if (
        written is None
        or rows_checksum(partition) != entry["rows_checksum"]
        or store.find_matching(TERMINAL_RUNS, hour, upstream_digest) is None
    ):
        return None
    found = UnchangedTrajectories(written, entry["counts"], data_omitted=documents_omitted(partition))
    for batch in store.read(TRAJECTORIES, hour, ["run_id", "execution_status", "heuristic_outcome", "escaped"]):
        found.run_ids += _strings(batch.column("run_id"))
        found.executions.update(_strings(batch.column("execution_status")))
        found.outcomes.update(_strings(batch.column("heuristic_outcome")))
        found.escaped += sum(map(bool, batch.column("escaped").to_pylist()))
    raw = [run_id for batch in store.read(TERMINAL_RUNS, hour, ["run_id"]) for run_id in _strings(batch.column(0))]
    if set(raw).difference(runs_moved_away(partition, raw)) != set(found.run_ids):
        return None
    return found


def _settled(partition: PartitionTransaction, asset: str, inputs_digest: str) -> dict[str, Any] | None:
    """Return the ledger's entry where nothing but the partition's own rows can speak against it."""
    entry = None if partition.has_invalidations else partition.entry(asset)
    if entry is None or (entry["schema_version"], entry["inputs_digest"]) != (SCHEMA_VERSION, inputs_digest):
        return None
    # What is pruned is brought back, and what is in quarantine tried again, at every materialisation.
    return entry if entry["result"] == "complete" else None


def _strings(column: "pa.Array[Any]") -> list[str]:
    return cast(list[str], column.to_pylist())
