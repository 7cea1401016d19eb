"""What a materialisation would do, without doing any of it.

Belongs here: comparing each partition with the source or with its raw rows. Does not belong here: the work, and words
on a terminal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from trajectory_pipeline.letta.fingerprint import EMPTY
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.pipeline.carry_forward import Deleted
from trajectory_pipeline.pipeline.stale_partitions import captured_fingerprints, fingerprints_of
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.retention import pruned_partitions
from trajectory_pipeline.storage.storage import Storage


@dataclass(frozen=True)
class PlannedChange:
    """What would become of a partition.

    Attributes:
        partition_key: Dagster's key.
        what: ``new``, ``changed``, ``unchanged``, ``empty``, ``rebuilt`` (from raw rows) or ``impossible`` (there
            are none).
        new_runs: runs that the source has and the raw rows have not.
        deleted_runs: runs that the raw rows have and the source has no more.
    """

    partition_key: str
    what: str
    new_runs: int = 0
    deleted_runs: int = 0


def plan_capture(
    hours: Sequence[datetime], source: LettaSource, storage: Storage, deleted: Deleted
) -> list[PlannedChange]:
    """Return what reading these (sorted) hours from the source would do.

    Raises:
        SourceError: the source cannot be read.
        SinkError: a sink cannot be read.
    """
    pruned = pruned_partitions(storage.postgres, [partition_key(hour) for hour in hours])
    captured = {
        hour: fingerprint
        for hour, fingerprint in captured_fingerprints(storage.postgres, hours, deleted).items()
        if partition_key(hour) not in pruned
    }
    with source.snapshot() as snapshot:
        there = fingerprints_of(snapshot, hours)
        return [_planned(hour, there.get(hour, EMPTY), captured.get(hour), snapshot, storage.parquet) for hour in hours]


def plan_rebuild(hours: Sequence[datetime], store: ParquetStore) -> list[PlannedChange]:
    """Return what building these hours from their raw rows would do, without the source.

    Raises:
        SinkError: the storage cannot be read.
    """
    return [
        PlannedChange(partition_key(hour), "rebuilt" if store.exists(TERMINAL_RUNS, hour) else "impossible")
        for hour in hours
    ]


def _planned(
    hour: datetime, there: str, captured: str | None, snapshot: Snapshot, store: ParquetStore
) -> PlannedChange:
    if captured is None:
        new = len(snapshot.run_ids(hour, hour + HOUR)) if there != EMPTY else 0
        return PlannedChange(partition_key(hour), "new" if new else "empty", new_runs=new)
    if captured == there:
        return PlannedChange(partition_key(hour), "unchanged")
    now = set(snapshot.run_ids(hour, hour + HOUR))
    former = {
        str(run_id): deleted_at is not None
        for batch in store.read(TERMINAL_RUNS, hour, ["run_id", "deleted_at"])
        for run_id, deleted_at in zip(
            batch.column("run_id").to_pylist(), batch.column("deleted_at").to_pylist(), strict=True
        )
    }
    left = [run_id for run_id in sorted(former.keys() - now) if not former[run_id]]
    gone = sum(not where.exists for where in snapshot.run_locations(left).values())
    return PlannedChange(partition_key(hour), "changed", new_runs=len(now - former.keys()), deleted_runs=gone)
