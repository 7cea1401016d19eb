"""Retention: removes partitions older than a set age from both sinks, trajectories with their verdicts or raw rows.

First the rows go, in one transaction with the ledger entry that says so. Then the files go, under the same lock taken
once more, unless the partition was materialized in between. A crash leaves a file that the ledger calls pruned: the
next prune finds it by listing, and removes it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, parse_partition_key, partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.parquet.cleanup import FileTotals, files_of, hours_with_folders, remove_files
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.retention import (
    is_pruned,
    old_raw_rows,
    old_trajectories,
    record_files_removed,
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
    """Ages, counted from the end of a partition's hour, after which it is removed; None: never."""

    trajectories: timedelta | None
    raw_rows: timedelta | None


@dataclass(frozen=True)
class ExpiredPartition:
    """A partition that is old enough; ``skip_reason`` says why it cannot be removed now, and is None if it can.

    Rows are those in Postgres for trajectories, those in Parquet for raw rows.
    """

    target: RetentionTarget
    partition_key: str
    rows: int
    files: FileTotals
    skip_reason: str | None = None


@dataclass(frozen=True)
class PrunedPartition:
    """What was removed, counted as in ``ExpiredPartition``; or why nothing was."""

    rows: int
    files: FileTotals
    skip_reason: str | None = None


def is_expired(hour: datetime, max_age: timedelta | None, now: datetime) -> bool:
    """Whether an hour ended at least ``max_age`` ago; never if that is None."""
    return max_age is not None and hour + HOUR <= now - max_age


def find_expired_partitions(storage: Storage, retention: Retention, now: datetime) -> list[ExpiredPartition]:
    """Return what is old enough and still stored, in order of partitions, raw rows last in each."""
    found: list[ExpiredPartition] = []
    with storage.pooled() as pooled:
        if retention.trajectories is not None:
            # Keys sort as hours do: up to that of the last hour that is old enough.
            rows = old_trajectories(pooled.postgres, partition_key(floor_to_hour(now - retention.trajectories - HOUR)))
            for hour in _expired_hours("trajectories", rows, pooled.parquet, retention.trajectories, now):
                files = [files_of(pooled.parquet, table, hour) for table in _TABLES["trajectories"]]
                key = partition_key(hour)
                found.append(ExpiredPartition("trajectories", key, rows.get(key, 0), sum(files, FileTotals())))
        if retention.raw_rows is not None:
            known = old_raw_rows(pooled.postgres, partition_key(floor_to_hour(now - retention.raw_rows - HOUR)))
            hours = _expired_hours("terminal_runs", known, pooled.parquet, retention.raw_rows, now)
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
        for table in tables[1:]:
            partition.lock(table.name, key)
        if target == "trajectories":
            partition.lock(TRAJECTORY_EMBEDDINGS.name, key)
        invalidated = storage.postgres.invalidations([key]) if target == "terminal_runs" else {}
        if invalidated:
            return PrunedPartition(0, FileTotals(), skip_reason=invalidated[key])
        rows = remove_rows(partition) if target == "trajectories" else storage.parquet.rows(TERMINAL_RUNS, hour) or 0
        for table in tables:
            record_pruned(partition, table.name, known_only=table is REFINED_OUTCOMES)
        if target == "trajectories":
            record_pruned(partition, TRAJECTORY_EMBEDDINGS.name, known_only=True)
    files = FileTotals()
    with storage.postgres.partition(target, key) as partition:
        for table in tables[1:]:
            partition.lock(table.name, key)
        for table in tables:
            # It may have been materialized again since.
            if is_pruned(storage.postgres.ledger(table.name, [key]), key):
                files += remove_files(storage.parquet, table, hour)
                record_files_removed(partition, table.name)
    return PrunedPartition(rows, files)


def _expired_hours(
    target: RetentionTarget, known: Iterable[str], store: ParquetStore, max_age: timedelta, now: datetime
) -> set[datetime]:
    """Return the hours of the known keys, and expired hours that have files in the storage, as a crash leaves them."""
    with_files = {
        hour
        for table in _TABLES[target]
        for hour in hours_with_folders(store, table)
        if is_expired(hour, max_age, now) and files_of(store, table, hour).count
    }
    return with_files.union(map(parse_partition_key, known))


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
