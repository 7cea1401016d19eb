"""Which partitions differ from the source, by its fingerprints and the ledger's; and what materializing changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from trajectory_pipeline.partition_keys import HOUR, contiguous, parse_partition_key, partition_key
from trajectory_pipeline.pipeline.capture_counts import DELETED_AND_KEPT
from trajectory_pipeline.schema.enums import DeletedContent, PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.source_protocol import EMPTY, Source, SourceSnapshot
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retention import pruned_partitions
from trajectory_pipeline.storage.storage import Storage

_INVALIDATED = "to be materialized again"
_NOT_ERASED = "content that is deleted at the source"


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
    """What a materialization would do to a partition; runs are new, or deleted, against its raw rows."""

    partition_key: str
    what: ChangeKind
    new_runs: int = 0
    deleted_runs: int = 0


def find_stale_partitions(
    source: Source,
    database: TrajectoryDatabase,
    hours: Sequence[datetime],
    deleted: DeletedContent = DeletedContent.KEEP,
) -> list[datetime]:
    """Return the hours whose rows in the source differ from what was captured and converted.

    An hour that was never captured and has no terminal runs is not stale; one of which anything was pruned never is.

    The hours are sorted. With ``erase``, an hour that holds content which is deleted at the source is stale.

    Raises:
        SourceError: the source cannot be read.
        SinkError: the ledger cannot be read.
    """
    with source.snapshot() as snapshot:
        current = _fingerprints_of(snapshot, hours)
    captured = _captured_fingerprints(database, hours, deleted)
    differing = [hour for hour in hours if current.get(hour, EMPTY) != captured.get(hour, EMPTY)]
    pruned = pruned_partitions(database, [partition_key(hour) for hour in differing])
    return [hour for hour in differing if partition_key(hour) not in pruned]


def _fingerprints_of(snapshot: SourceSnapshot, hours: Sequence[datetime]) -> dict[datetime, str]:
    """Return the fingerprints of those of these (sorted) hours that have terminal runs; one query a gapless range."""
    found: dict[datetime, str] = {}
    for first, last in contiguous(hours, max(len(hours), 1)):
        found.update(snapshot.fingerprints(first, last + HOUR))
    return found


def _captured_fingerprints(
    database: TrajectoryDatabase, hours: Sequence[datetime], deleted: DeletedContent = DeletedContent.KEEP
) -> dict[datetime, str | None]:
    """Return the fingerprint that each hour's trajectories were made of; an hour that was never captured has none.

    An hour gets a fingerprint that equals no other, and so is stale whatever the source holds, if it was invalidated
    (its trajectories were not made of its raw rows, a crash came between file and commit, or a run moved), or if the
    policy is to erase and it holds deleted content.
    """
    keys = {partition_key(hour): hour for hour in hours}
    captured = {
        keys[key]: _NOT_ERASED if deleted == "erase" and entry.counts.get(DELETED_AND_KEPT) else entry.fingerprint
        for key, entry in database.ledger(TERMINAL_RUNS.name, [*keys]).items()
    }
    # No times are compared: clocks of the source and of the sink may go back.
    return {**captured, **{keys[key]: _INVALIDATED for key in database.invalidations([*keys])}}


def built_by_older_versions(database: TrajectoryDatabase) -> list[str]:
    """Return the keys of the partitions whose trajectories were built with another schema version.

    Raises:
        SinkError: the ledger cannot be read.
    """
    return sorted(
        key
        for key, entry in database.ledger(TRAJECTORIES.name).items()
        if entry.schema_version != SCHEMA_VERSION and entry.result != PartitionResult.PRUNED
    )


def plan_capture(
    hours: Sequence[datetime], source: Source, storage: Storage, deleted: DeletedContent
) -> list[PlannedChange]:
    """Return what reading these (sorted) hours from the source would do.

    Raises:
        SourceError: the source cannot be read.
        SinkError: a sink cannot be read.
    """
    captured = _captured_fingerprints(storage.postgres, hours, deleted)
    for key in pruned_partitions(storage.postgres, [partition_key(hour) for hour in captured]):
        del captured[parse_partition_key(key)]
    with source.snapshot() as snapshot:
        current = _fingerprints_of(snapshot, hours)
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
    hour: datetime, current: str, captured: str | None, snapshot: SourceSnapshot, store: ParquetStore
) -> PlannedChange:
    if captured is None:
        new = len(snapshot.run_ids(hour, hour + HOUR)) if current != EMPTY else 0
        return PlannedChange(partition_key(hour), ChangeKind.NEW if new else ChangeKind.EMPTY, new_runs=new)
    if captured == current:
        return PlannedChange(partition_key(hour), ChangeKind.UNCHANGED)
    present = set(snapshot.run_ids(hour, hour + HOUR))
    was_deleted = {
        str(row["run_id"]): row["deleted_at"] is not None
        for batch in store.read(TERMINAL_RUNS, hour, ["run_id", "deleted_at"])
        for row in batch.to_pylist()
    }
    missing = [run_id for run_id in sorted(was_deleted.keys() - present) if not was_deleted[run_id]]
    gone = sum(not location.exists for location in snapshot.run_locations(missing).values())
    return PlannedChange(
        partition_key(hour), ChangeKind.CHANGED, new_runs=len(present - was_deleted.keys()), deleted_runs=gone
    )
