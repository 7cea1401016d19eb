"""The completeness check: compares source, ledger, Postgres and Parquet over the whole history, partition by partition.

It changes nothing: the capture sensor requests a partition that differs, or a person materializes it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self, TypeVar

from trajectory_pipeline.letta.run_counts import (
    MisdatedRuns,
    StuckRun,
    find_misdated_runs,
    find_stuck_runs,
)
from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.partition_keys import (
    HOUR,
    floor_to_hour,
    hours_of,
    parse_partition_key,
    partition_key,
    source_of_key,
)
from trajectory_pipeline.pipeline.capture_counts import DELETED_AND_KEPT, MISDATED, UNSEEN
from trajectory_pipeline.schema.enums import DeletedContent, PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.source_protocol import EMPTY, BadRecord, Source, SourceSnapshot
from trajectory_pipeline.storage.parquet.cleanup import hours_with_folders
from trajectory_pipeline.storage.postgres.partition_writer import StoredEntry
from trajectory_pipeline.storage.postgres.retention import is_pruned, pruned_partitions
from trajectory_pipeline.storage.postgres.summaries import trajectories_by_partition
from trajectory_pipeline.storage.postgres.verdict_status import unpublished_partitions
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline.text import pluralize

_Value = TypeVar("_Value")
_HOURS_PER_QUERY = 240
"""Hours whose fingerprints are taken in one query."""
_CAPTURE_TIME = timedelta(minutes=5)
"""Time after an hour is closed in which it is captured."""
_END = datetime.max.replace(tzinfo=UTC)
_ASSETS = (TERMINAL_RUNS, TRAJECTORIES, REFINED_OUTCOMES)


@dataclass(frozen=True)
class CompletenessScope:
    """What the check compares, from the first partition on, and what it reports.

    Attributes:
        stuck_after: age from which a run that is not terminal is reported.
        deleted: with ``erase``, stored content that is deleted at the source is a difference.
        closing_lag: time after its end in which an hour still changes by itself.
    """

    start: datetime
    stuck_after: timedelta
    deleted: DeletedContent = DeletedContent.KEEP
    closing_lag: timedelta = timedelta(minutes=5)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the scope that the settings name."""
        return cls(
            settings.capture.start,
            timedelta(hours=settings.source.stuck_hours),
            DeletedContent(settings.capture.deleted_content),
            timedelta(minutes=settings.capture.closing_lag_minutes),
        )


@dataclass(frozen=True)
class CompletenessReport:
    """What the check found in the partitions that were compared.

    Attributes:
        runs: terminal runs in the source, in these partitions.
        differences: a sentence for each, in order of partitions, and then for what the source cannot read; empty if
            all sides are equal.
        before_start: terminal runs in the source that ended before the first partition.
        stuck: runs that never became terminal.
        misdated: terminal runs that no partition takes; one that was captured before stays where it was.
    """

    partitions: int
    runs: int
    differences: tuple[str, ...]
    before_start: int
    stuck: tuple[StuckRun, ...]
    misdated: MisdatedRuns


@dataclass(frozen=True)
class _Sides:
    """What each side says, by hour or by partition key."""

    source_runs: Mapping[datetime, int]
    fingerprints: Mapping[datetime, str]
    raw: Mapping[str, StoredEntry]
    converted: Mapping[str, StoredEntry]
    postgres_rows: Mapping[str, int]
    invalidated: Mapping[str, str]
    pruned: frozenset[str]
    refined: Mapping[str, StoredEntry]
    unpublished: frozenset[str]
    files: Mapping[str, frozenset[datetime]]


def check_completeness(source: Source, storage: Storage, scope: CompletenessScope) -> CompletenessReport:
    """Compare the source with the ledger and with what both sinks really hold, over the whole history.

    Runs that are deleted at the source and were carried forward are in both sinks only: they are not compared. Nothing
    is expected of what was pruned. Hours that still change (the open one, and one that is not closed and captured yet)
    are left out.
    """
    start = floor_to_hour(scope.start)
    with source.snapshot() as snapshot:
        end = floor_to_hour(snapshot.taken_at - scope.closing_lag - _CAPTURE_TIME)
        source_runs = snapshot.runs_by_hour()
        raw, converted, refined = (_of(source, storage.postgres.ledger(table.name)) for table in _ASSETS)
        postgres_rows = _of(source, trajectories_by_partition(storage.postgres))
        files = {
            table.name: frozenset(hours_of(source.name, hours_with_folders(storage.parquet, table)))
            for table in _ASSETS
        }
        stored_hours = {parse_partition_key(key) for key in {*raw, *converted, *refined, *postgres_rows}}
        known_hours = stored_hours.union(source_runs, *files.values())
        hours = sorted(hour for hour in known_hours if start <= hour < end)
        current_fingerprints: dict[datetime, str] = {}
        # Not one query for each range without gaps: hours in between have no runs, and cost nothing.
        for index in range(0, len(hours), _HOURS_PER_QUERY):
            covered = hours[index : index + _HOURS_PER_QUERY]
            current_fingerprints.update(snapshot.fingerprints(covered[0], covered[-1] + HOUR))
        if isinstance(snapshot, Snapshot):
            stuck, misdated = find_stuck_runs(snapshot, scope.stuck_after), find_misdated_runs(snapshot)
        else:
            # Other sources do not tell of runs that did not end, and find each that did by some time.
            stuck, misdated = list[StuckRun](), MisdatedRuns(_after_now(snapshot), ())
        unreadable = tuple(map(_unreadable, snapshot.unreadable))
    keys = [partition_key(hour) for hour in hours]
    sides = _Sides(
        source_runs,
        current_fingerprints,
        raw,
        converted,
        postgres_rows,
        storage.postgres.invalidations(keys),
        frozenset(pruned_partitions(storage.postgres, keys)),
        refined,
        unpublished_partitions(storage.postgres, keys),
        files,
    )
    return CompletenessReport(
        partitions=len(hours),
        runs=sum(count for hour, count in source_runs.items() if start <= hour < end),
        differences=(
            *(
                f"{partition_key(hour)}: {difference}"
                for hour in hours
                for difference in _differences(hour, sides, storage, scope)
            ),
            *unreadable,
        ),
        before_start=sum(count for hour, count in source_runs.items() if hour < start),
        stuck=tuple(stuck),
        misdated=misdated,
    )


def _after_now(snapshot: SourceSnapshot) -> tuple[str, ...]:
    """Return the terminal runs that ended after the open hour: no partition takes them."""
    open_hour = floor_to_hour(snapshot.taken_at)
    hours = [hour for hour in snapshot.runs_by_hour() if hour > open_hour]
    # To the end of time, because the last hour that Python knows has none after it.
    return tuple(snapshot.run_ids(min(hours), _END)) if hours else ()


def _unreadable(record: BadRecord) -> str:
    return (
        f"{record.place} {record.problem}, so it cannot be compared: what was captured of it stays. Mend it, or take it"
        " away"
    )


def _of(source: Source, by_key: Mapping[str, _Value]) -> dict[str, _Value]:
    return {key: value for key, value in by_key.items() if source_of_key(key) == source.name}


def _differences(hour: datetime, sides: _Sides, storage: Storage, scope: CompletenessScope) -> Iterator[str]:
    key = partition_key(hour)
    entry, runs = sides.raw.get(key), sides.source_runs.get(hour, 0)
    if key not in sides.pruned:
        if entry is None:
            if runs or key in sides.converted or key in sides.postgres_rows:
                yield f"{pluralize(runs, 'terminal run')} in the source, never captured"
            else:
                yield from _file_differences(hour, sides, storage)
            return
        captured = entry.counts["runs"]
        if entry.fingerprint != sides.fingerprints.get(hour, EMPTY):
            at = f"{entry.snapshot_at:%Y-%m-%d %H:%M} UTC"
            yield f"the source changed since {at} ({captured} runs then, {runs} now)"
        elif captured != runs:
            yield f"{runs} runs in the source, {captured} in the ledger"
    deleted = entry.counts.get(DELETED_AND_KEPT, 0) if entry and scope.deleted == DeletedContent.ERASE else 0
    if deleted and not (is_pruned(sides.raw, key) and is_pruned(sides.converted, key)):
        yield f"{deleted} runs hold content that is deleted at the source, and is to be erased"
    if key in sides.invalidated:
        yield f"to be materialized again: {sides.invalidated[key]}"
    if not is_pruned(sides.converted, key):
        expected, count = _rows_of(sides.converted[key]), sides.postgres_rows.get(key, 0)
        if count != expected:
            yield f"{expected} trajectories by the ledger, {count} in Postgres"
    if key in sides.unpublished:
        yield "the file of refined_outcomes does not hold the verdicts that are stored: materialize refined_outcomes"
    yield from _file_differences(hour, sides, storage)


def _file_differences(hour: datetime, sides: _Sides, storage: Storage) -> Iterator[str]:
    """Yield where a file of any asset differs from the ledger; one that is not there has no rows to compare."""
    for table, entries in zip(_ASSETS, (sides.raw, sides.converted, sides.refined), strict=True):
        entry = entries.get(partition_key(hour))
        if entry and entry.result == PartitionResult.PRUNED:
            # A file that a killed prune left goes with the next one.
            continue
        expected = _rows_of(entry) if entry else None
        # One that the ledger expects is asked for by its name: listings of some storages lag behind.
        is_there = expected or hour in sides.files[table.name]
        count = storage.parquet.rows(table, hour) if is_there else None
        # A file without rows, and none, mean the same.
        if count != expected and (count or expected is not None):
            known, found = ("nothing" if number is None else f"{number} rows" for number in (expected, count))
            yield f"{known} of {table.name} by the ledger, {'no file' if count is None else found} in Parquet"


def _rows_of(entry: StoredEntry) -> int:
    """Return how many rows a partition's file has, by the counts in the ledger."""
    counts = Counter(entry.counts)
    if entry.asset == TERMINAL_RUNS.name:
        return counts["runs"] + counts["deleted_runs"] + counts["pending_move_runs"] + counts[MISDATED] + counts[UNSEEN]
    if entry.asset == TRAJECTORIES.name:
        return counts["runs_in"] - counts["quarantined"]
    return counts.total() - counts["calls"]
