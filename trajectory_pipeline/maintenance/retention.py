"""Retention: removes partitions older than a set age from both sinks, trajectories with their verdicts or raw rows.

First the rows go, in one transaction with the ledger entry that says so. Then the files go, under the same lock taken
once more, unless the partition was materialized in between. A crash leaves a file that the ledger calls pruned: the
next prune finds it by listing, and removes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, parse_partition_key, partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.parquet.cleanup import FileTotals, files_of, hours_with_folders, remove_files
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline.storage.postgres.retention import (
    is_pruned,
    old_raw_rows,
    old_trajectories,
    record_pruned,
    remove_rows,
)
from trajectory_pipeline.storage.storage import Storage

RetentionTarget = Literal["trajectories", "terminal_runs"]
"""What is removed together: trajectories with quarantine and verdicts; or raw rows."""

_TABLES: dict[RetentionTarget, tuple[Table, ...]] = {
    "trajectories": (TRAJECTORIES, REFINED_OUTCOMES),
    "terminal_runs": (TERMINAL_RUNS,),
}


@dataclass(frozen=True)
class Retention:
    """Ages, counted from the end of a partition's hour, after which it is removed; None: never.

    Attributes:
        trajectories: with their quarantine and verdicts.
        raw_rows: of ``terminal_runs``.
    """

    trajectories: timedelta | None
    raw_rows: timedelta | None


@dataclass(frozen=True)
class ExpiredPartition:
    """A partition that is old enough.

    Attributes:
        target: what of it.
        partition_key: of the partition.
        rows: in Postgres for trajectories, in Parquet for raw rows.
        files: in Parquet.
        skip_reason: why it cannot be removed now; None if it can.
    """

    target: RetentionTarget
    partition_key: str
    rows: int
    files: FileTotals
    skip_reason: str | None = None


@dataclass(frozen=True)
class PrunedPartition:
    """What was removed of a partition.

    Attributes:
        rows: in Postgres for trajectories, in Parquet for raw rows.
        files: in Parquet.
        skip_reason: why nothing was removed; None if all of it was.
    """

    rows: int
    files: FileTotals
    skip_reason: str | None = None


def is_expired(hour: datetime, max_age: timedelta | None, now: datetime) -> bool:
    """Whether an hour ended at least ``max_age`` ago; never if that is None."""
    return max_age is not None and hour + HOUR <= now - max_age


def find_expired_partitions(storage: Storage, retention: Retention, now: datetime) -> list[ExpiredPartition]:
    """Return what is old enough and still stored, in order of partitions, raw rows last in each.

    Raises:
        SinkError: a sink cannot be read.
    """
    found: list[ExpiredPartition] = []
    with storage.pooled() as pooled:
        if retention.trajectories is not None:
            rows = old_trajectories(pooled.postgres, _last_key(retention.trajectories, now))
            hours = {
                *_hours_with_files("trajectories", storage.parquet, retention.trajectories, now),
                *map(parse_partition_key, rows),
            }
            found += [_trajectories(hour, rows.get(partition_key(hour), 0), storage.parquet) for hour in hours]
        if retention.raw_rows is not None:
            known = old_raw_rows(pooled.postgres, _last_key(retention.raw_rows, now))
            hours = {
                *_hours_with_files("terminal_runs", storage.parquet, retention.raw_rows, now),
                *map(parse_partition_key, known),
            }
            found += [_raw_rows(hour, pooled, retention, now) for hour in hours]
    return sorted(found, key=lambda expired: (expired.partition_key, expired.target == "terminal_runs"))


def prune_expired(
    storage: Storage, expired: Sequence[ExpiredPartition]
) -> Iterator[tuple[ExpiredPartition, PrunedPartition | PipelineError]]:
    """Remove expired partitions one by one; yield each with what was removed, or with the error that prevented it."""
    for one in expired:
        try:
            yield one, prune_partition(one.target, parse_partition_key(one.partition_key), storage)
        except PipelineError as error:
            yield one, error


def prune_partition(target: RetentionTarget, hour: datetime, storage: Storage) -> PrunedPartition:
    """Remove a partition's trajectories or raw rows from both sinks, whatever its age.

    Raw rows of an invalidated partition stay: its trajectories were not made of them, and they would be lost unseen.

    Raises:
        SinkError: a sink cannot be read or written; pruning again completes it.
    """
    key = partition_key(hour)
    tables = _TABLES[target]
    with storage.postgres.partition(target, key) as partition:
        _lock_others(partition, tables)
        invalidated = storage.postgres.invalidations([key]) if target == "terminal_runs" else {}
        if invalidated:
            return PrunedPartition(0, FileTotals(), skip_reason=invalidated[key])
        rows = remove_rows(partition) if target == "trajectories" else storage.parquet.rows(TERMINAL_RUNS, hour) or 0
        for table in tables:
            record_pruned(partition, table.name, known_only=table is REFINED_OUTCOMES)
    files = FileTotals()
    with storage.postgres.partition(target, key) as partition:
        _lock_others(partition, tables)
        for table in tables:
            # It may have been materialized again since.
            if is_pruned(storage.postgres.ledger(table.name, [key]), key):
                files += remove_files(storage.parquet, table, hour)
    return PrunedPartition(rows, files)


def _lock_others(partition: PartitionTransaction, tables: tuple[Table, ...]) -> None:
    for table in tables[1:]:
        partition.lock(table.name, partition.partition_key)


def _last_key(max_age: timedelta, now: datetime) -> str:
    """Return the key of the last expired partition; keys sort as hours do."""
    return partition_key(floor_to_hour(now - max_age - HOUR))


def _hours_with_files(target: RetentionTarget, store: ParquetStore, max_age: timedelta, now: datetime) -> set[datetime]:
    """Return the expired hours that have files in the storage, as a crash may leave them."""
    return {
        hour
        for table in _TABLES[target]
        for hour in hours_with_folders(store, table)
        if is_expired(hour, max_age, now) and files_of(store, table, hour).count
    }


def _trajectories(hour: datetime, rows: int, store: ParquetStore) -> ExpiredPartition:
    files = [files_of(store, table, hour) for table in _TABLES["trajectories"]]
    return ExpiredPartition("trajectories", partition_key(hour), rows, sum(files, FileTotals()))


def _raw_rows(hour: datetime, storage: Storage, retention: Retention, now: datetime) -> ExpiredPartition:
    key = partition_key(hour)
    # Expired trajectories are pruned first, and no invalidation is left then.
    invalidated = {} if is_expired(hour, retention.trajectories, now) else storage.postgres.invalidations([key])
    return ExpiredPartition(
        "terminal_runs",
        key,
        storage.parquet.rows(TERMINAL_RUNS, hour) or 0,
        files_of(storage.parquet, TERMINAL_RUNS, hour),
        skip_reason=invalidated.get(key),
    )
