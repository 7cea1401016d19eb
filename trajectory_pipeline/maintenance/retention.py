"""Removing partitions that are older than a set age from both sinks: trajectories with their verdicts, and raw rows.

Belongs here: which partitions are old enough, and the order in which rows and files go. Does not belong here: the
statements (``storage.postgres.retention``), files (``storage.parquet.cleanup``), and when it is done
(``defs.retention``).

Rows go first, with the ledger entry that says so, in one transaction; then the files, under the same lock once more,
unless the partition was materialised in between. What a crash leaves is a file that the ledger calls pruned: it is
found by listing, and removed by the next prune.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

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
"""What goes together: trajectories with quarantine and verdicts; or raw rows."""

_TABLES: dict[RetentionTarget, tuple[Table, ...]] = {
    "trajectories": (TRAJECTORIES, REFINED_OUTCOMES),
    "terminal_runs": (TERMINAL_RUNS,),
}


@dataclass(frozen=True)
class Retention:
    """How long each part of a partition is kept after the end of its hour.

    Attributes:
        trajectories: None: for ever.
        raw_rows: None: for ever.
    """

    trajectories: timedelta | None
    raw_rows: timedelta | None


@dataclass(frozen=True)
class ExpiredPartition:
    """A part of a partition that is old enough.

    Attributes:
        part: which.
        partition_key: of the partition.
        rows: in Postgres for trajectories, in Parquet for raw rows.
        files: in Parquet.
        held_back: why it is not removed all the same; None where it is.
    """

    part: RetentionTarget
    partition_key: str
    rows: int
    files: FileTotals
    held_back: str | None = None


@dataclass(frozen=True)
class PrunedPartition:
    """What was removed of a partition.

    Attributes:
        rows: in Postgres for trajectories, in Parquet for raw rows.
        files: in Parquet.
        held_back: why nothing was; None where all of it was.
    """

    rows: int
    files: FileTotals
    held_back: str | None = None


def is_old(hour: datetime, kept_for: timedelta | None, now: datetime) -> bool:
    """Whether the end of an hour is longer ago than its content is kept."""
    return kept_for is not None and hour + HOUR <= now - kept_for


def find_expired_partitions(storage: Storage, retention: Retention, now: datetime) -> list[ExpiredPartition]:
    """Return what is old enough to be pruned and still there, in order of partitions, raw rows last in each.

    Raises:
        SinkError: a sink cannot be read.
    """
    found: list[ExpiredPartition] = []
    with storage.pooled() as pooled:
        if retention.trajectories is not None:
            rows = old_trajectories(pooled.postgres, _last_key(retention.trajectories, now))
            hours = {
                *_with_files("trajectories", storage.parquet, retention.trajectories, now),
                *map(parse_partition_key, rows),
            }
            found += [_trajectories(hour, rows.get(partition_key(hour), 0), storage.parquet) for hour in hours]
        if retention.raw_rows is not None:
            known = old_raw_rows(pooled.postgres, _last_key(retention.raw_rows, now))
            hours = {
                *_with_files("terminal_runs", storage.parquet, retention.raw_rows, now),
                *map(parse_partition_key, known),
            }
            found += [_raw_rows(hour, pooled, retention, now) for hour in hours]
    return sorted(found, key=lambda each: (each.partition_key, each.part == "terminal_runs"))


def prune_partition(part: RetentionTarget, hour: datetime, storage: Storage) -> PrunedPartition:
    """Remove a part of a partition from both sinks, whatever its age; nothing else is touched.

    Raw rows are held back while the trajectories are kept and were not made of them: they would be lost unseen.

    Raises:
        SinkError: a sink cannot be read or written; asking again finishes it.
    """
    key = partition_key(hour)
    tables = _TABLES[part]
    with storage.postgres.partition(part, key) as partition:
        _lock_others(partition, tables)
        invalidated = storage.postgres.invalidations([key]) if part == "terminal_runs" else {}
        if invalidated:
            return PrunedPartition(0, FileTotals(), held_back=invalidated[key])
        rows = remove_rows(partition) if part == "trajectories" else storage.parquet.rows(TERMINAL_RUNS, hour) or 0
        for table in tables:
            record_pruned(partition, table.name, known_only=table is REFINED_OUTCOMES)
    files = FileTotals()
    with storage.postgres.partition(part, key) as partition:
        _lock_others(partition, tables)
        for table in tables:
            # Somebody may have brought it back since.
            if is_pruned(storage.postgres.ledger(table.name, [key]), key):
                files += remove_files(storage.parquet, table, hour)
    return PrunedPartition(rows, files)


def _lock_others(partition: PartitionTransaction, tables: tuple[Table, ...]) -> None:
    for table in tables[1:]:
        partition.lock(table.name, partition.partition_key)


def _last_key(kept_for: timedelta, now: datetime) -> str:
    """Return the key of the last partition that is old enough; keys sort as hours do."""
    return partition_key(floor_to_hour(now - kept_for - HOUR))


def _with_files(part: RetentionTarget, store: ParquetStore, kept_for: timedelta, now: datetime) -> set[datetime]:
    """Return the hours, old enough, that have files in the storage: what a crash left is found here."""
    return {
        hour
        for table in _TABLES[part]
        for hour in hours_with_folders(store, table)
        if is_old(hour, kept_for, now) and files_of(store, table, hour).count
    }


def _trajectories(hour: datetime, rows: int, store: ParquetStore) -> ExpiredPartition:
    files = [files_of(store, table, hour) for table in _TABLES["trajectories"]]
    return ExpiredPartition("trajectories", partition_key(hour), rows, sum(files, FileTotals()))


def _raw_rows(hour: datetime, storage: Storage, retention: Retention, now: datetime) -> ExpiredPartition:
    key = partition_key(hour)
    # Where the trajectories are as old, they go first, and nothing is invalidated then.
    invalidated = {} if is_old(hour, retention.trajectories, now) else storage.postgres.invalidations([key])
    return ExpiredPartition(
        "terminal_runs",
        key,
        storage.parquet.rows(TERMINAL_RUNS, hour) or 0,
        files_of(storage.parquet, TERMINAL_RUNS, hour),
        held_back=invalidated.get(key),
    )
