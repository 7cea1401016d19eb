"""What a materialization would do: compares each partition with the source, or with its raw rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from trajectory_pipeline.letta.fingerprint import EMPTY
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.pipeline.stale_partitions import captured_fingerprints, fingerprints_of
from trajectory_pipeline.schema.enums import DeletedContent
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.retention import pruned_partitions
from trajectory_pipeline.storage.storage import Storage


class ChangeKind(StrEnum):
    """What a materialization would find."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    EMPTY = "empty"
    REBUILT = "rebuilt"
    """From raw rows, without the source."""
    IMPOSSIBLE = "impossible"
    """There are no raw rows."""


@dataclass(frozen=True)
class PlannedChange:
    """What a materialization would do to a partition.

    Attributes:
        partition_key: Dagster's key.
        what: the kind of change.
        new_runs: runs that the source has and the raw rows lack.
        deleted_runs: runs that the raw rows have and that are gone from the source.
    """

    partition_key: str
    what: ChangeKind
    new_runs: int = 0
    deleted_runs: int = 0


def plan_capture(
    hours: Sequence[datetime], source: LettaSource, storage: Storage, deleted: DeletedContent
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
        current = fingerprints_of(snapshot, hours)
        return [
            _planned(hour, current.get(hour, EMPTY), captured.get(hour), snapshot, storage.parquet) for hour in hours
        ]


def plan_rebuild(hours: Sequence[datetime], store: ParquetStore) -> list[PlannedChange]:
    """Return what building these hours from their raw rows would do, without the source.

    Raises:
        SinkError: the storage cannot be read.
    """
    return [
        PlannedChange(
            partition_key(hour), ChangeKind.REBUILT if store.exists(TERMINAL_RUNS, hour) else ChangeKind.IMPOSSIBLE
        )
        for hour in hours
    ]


def _planned(
    hour: datetime, current: str, captured: str | None, snapshot: Snapshot, store: ParquetStore
) -> PlannedChange:
    if captured is None:
        new = len(snapshot.run_ids(hour, hour + HOUR)) if current != EMPTY else 0
        return PlannedChange(partition_key(hour), ChangeKind.NEW if new else ChangeKind.EMPTY, new_runs=new)
    if captured == current:
        return PlannedChange(partition_key(hour), ChangeKind.UNCHANGED)
    present = set(snapshot.run_ids(hour, hour + HOUR))
    was_deleted = {
        str(run_id): deleted_at is not None
        for batch in store.read(TERMINAL_RUNS, hour, ["run_id", "deleted_at"])
        for run_id, deleted_at in zip(
            batch.column("run_id").to_pylist(), batch.column("deleted_at").to_pylist(), strict=True
        )
    }
    missing = [run_id for run_id in sorted(was_deleted.keys() - present) if not was_deleted[run_id]]
    gone = sum(not location.exists for location in snapshot.run_locations(missing).values())
    return PlannedChange(
        partition_key(hour), ChangeKind.CHANGED, new_runs=len(present - was_deleted.keys()), deleted_runs=gone
    )
