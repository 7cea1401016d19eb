"""Comparing everything with everything: source, ledger, Postgres and Parquet, partition by partition.

Belongs here: what must be equal, and naming what is not. Does not belong here: mending it: a partition that differs is
requested by the capture sensor, or materialised by a person.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from trajectory_pipeline.letta.fingerprint import EMPTY, fingerprints
from trajectory_pipeline.letta.run_counts import StuckRun, count_runs_by_hour, find_stuck_runs
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, parse_partition_key, partition_key
from trajectory_pipeline.pipeline.capture_counts import DELETED_AND_KEPT
from trajectory_pipeline.pipeline.carry_forward import Deleted
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres.retention import is_pruned, pruned_partitions
from trajectory_pipeline.storage.postgres.summaries import trajectories_by_partition
from trajectory_pipeline.storage.storage import Storage

_HOURS_AT_ONCE = 240
"""Hours whose fingerprints are taken in one query."""


@dataclass(frozen=True)
class CompletenessReport:
    """What the comparison found.

    Attributes:
        partitions: compared.
        runs: terminal runs in the source, in these partitions.
        differences: a sentence for each that is not as it should be, in order of partitions; empty means equal.
        before_start: terminal runs in the source that ended before the first partition.
        stuck: runs that never became terminal.
    """

    partitions: int
    runs: int
    differences: tuple[str, ...]
    before_start: int
    stuck: tuple[StuckRun, ...]


def check_completeness(
    source: LettaSource,
    storage: Storage,
    *,
    start: datetime,
    stuck_after: timedelta,
    deleted: Deleted = "keep",
    closing_lag: timedelta = timedelta(minutes=5),
) -> CompletenessReport:
    """Compare the source with the ledger and with what both sinks really hold, over the whole history.

    What is deleted at the source and carried forward is in both sinks and not in the source: compared is what is not
    deleted. Of what was pruned nothing is expected. The open hour, and the one before until its closing lag is over,
    are still moving and are left out.

    Args:
        source: read in one snapshot.
        storage: both sinks.
        start: first partition.
        stuck_after: age from which a run that is not terminal is listed.
        deleted: the policy: with ``erase``, content that is deleted at the source and still held is a difference.
        closing_lag: time after its end in which an hour still changes by itself; five minutes more are left for its
            capture.

    Raises:
        SourceError: the source cannot be read.
        SinkError: a sink cannot be read.
    """
    with source.snapshot() as snapshot:
        settled = floor_to_hour(snapshot.taken_at - closing_lag - timedelta(minutes=5))
        by_hour = count_runs_by_hour(snapshot)
        raw = storage.postgres.ledger(TERMINAL_RUNS.name)
        converted = storage.postgres.ledger(TRAJECTORIES.name)
        in_postgres = trajectories_by_partition(storage.postgres)
        known = {parse_partition_key(key) for key in {*raw, *converted, *in_postgres}}
        hours = sorted(hour for hour in {*by_hour, *known} if floor_to_hour(start) <= hour < settled)
        prints: dict[datetime, str] = {}
        for first, last in _stretches(hours):
            prints.update(fingerprints(snapshot, first, last + HOUR))
        stuck = find_stuck_runs(snapshot, stuck_after)
    keys = [partition_key(hour) for hour in hours]
    invalidated, pruned = storage.postgres.invalidations(keys), pruned_partitions(storage.postgres, keys)
    differences: list[str] = []
    for hour in hours:
        key = partition_key(hour)
        if key not in raw and key not in pruned:
            differences.append(f"{key}: {by_hour.get(hour, 0)} terminal runs in the source, never captured")
            continue
        held = raw[key]["counts"].get(DELETED_AND_KEPT, 0) if deleted == "erase" and key in raw else 0
        if key not in pruned:
            differences.extend(_from_the_source(key, raw[key], by_hour.get(hour, 0), prints.get(hour, EMPTY)))
        if held and not (is_pruned(raw, key) and is_pruned(converted, key)):
            differences.append(f"{key}: {held} runs hold content that is deleted at the source, and is to be erased")
        if key in invalidated:
            differences.append(f"{key}: to be materialised again: {invalidated[key]}")
        if is_pruned(converted, key):
            continue
        expected = converted[key]["counts"]["runs_in"] - converted[key]["counts"]["quarantined"]
        counts = {
            "Postgres": in_postgres.get(key, 0),
            "Parquet": storage.parquet.rows(TRAJECTORIES, hour),
        }
        differences.extend(
            f"{key}: {expected} trajectories by the ledger, {'no file' if count is None else count} in {sink}"
            for sink, count in counts.items()
            if count != expected
        )
    return CompletenessReport(
        partitions=len(hours),
        runs=sum(count for hour, count in by_hour.items() if floor_to_hour(start) <= hour < settled),
        differences=tuple(differences),
        before_start=sum(count for hour, count in by_hour.items() if hour < floor_to_hour(start)),
        stuck=tuple(stuck),
    )


def _from_the_source(key: str, entry: Mapping[str, Any], there: int, fingerprint: str) -> Iterator[str]:
    """Yield how the source differs from what was read of it."""
    if entry["fingerprint"] != fingerprint:
        yield (
            f"{key}: the source changed since {entry['snapshot_at']:%Y-%m-%d %H:%M} UTC"
            f" ({entry['counts']['runs']} runs then, {there} now)"
        )
    elif entry["counts"]["runs"] != there:
        yield f"{key}: {there} runs in the source, {entry['counts']['runs']} in the ledger"


def _stretches(hours: Sequence[datetime]) -> Iterator[tuple[datetime, datetime]]:
    """Yield ranges that cover the hours, each of a bounded length; gaps cost nothing to look at."""
    first: datetime | None = None
    last: datetime | None = None
    for hour in hours:
        if first is None or last is None:
            first = last = hour
        elif hour - first < _HOURS_AT_ONCE * HOUR:
            last = hour
        else:
            yield first, last
            first = last = hour
    if first is not None and last is not None:
        yield first, last
