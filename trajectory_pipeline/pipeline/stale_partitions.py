"""Which partitions differ from the source: compares its fingerprints with those of the ledger."""

from collections.abc import Sequence
from datetime import datetime

from trajectory_pipeline.letta.fingerprint import EMPTY, fingerprints
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.partition_keys import HOUR, contiguous, partition_key
from trajectory_pipeline.pipeline.capture_counts import DELETED_AND_KEPT
from trajectory_pipeline.schema.enums import DeletedContent, PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retention import pruned_partitions

_INVALIDATED = "to be materialized again"
_NOT_ERASED = "content that is deleted at the source"


def find_stale_partitions(
    source: LettaSource,
    database: TrajectoryDatabase,
    hours: Sequence[datetime],
    deleted: DeletedContent = DeletedContent.KEEP,
) -> list[datetime]:
    """Return the hours whose rows in the source differ from what was captured and converted.

    An hour that was never captured and has no terminal runs is not stale; one of which anything was pruned never is.

    Args:
        source: where the rows are.
        database: whose ledger says what was captured.
        hours: sorted.
        deleted: with ``erase``, an hour that holds content which is deleted at the source is stale.

    Raises:
        SourceError: the source cannot be read.
        SinkError: the ledger cannot be read.
    """
    with source.snapshot() as snapshot:
        current = fingerprints_of(snapshot, hours)
    captured = captured_fingerprints(database, hours, deleted)
    differing = [hour for hour in hours if current.get(hour, EMPTY) != captured.get(hour, EMPTY)]
    pruned = pruned_partitions(database, [partition_key(hour) for hour in differing])
    return [hour for hour in differing if partition_key(hour) not in pruned]


def fingerprints_of(snapshot: Snapshot, hours: Sequence[datetime]) -> dict[datetime, str]:
    """Return the fingerprints of those of these (sorted) hours that have terminal runs; one query a gapless range."""
    found: dict[datetime, str] = {}
    for first, last in contiguous(hours, max(len(hours), 1)):
        found.update(fingerprints(snapshot, first, last + HOUR))
    return found


def captured_fingerprints(
    database: TrajectoryDatabase, hours: Sequence[datetime], deleted: DeletedContent = DeletedContent.KEEP
) -> dict[datetime, str]:
    """Return the fingerprint that each hour's trajectories were made of; an hour that was never captured has none.

    An hour gets a fingerprint that equals no other, and so is stale whatever the source holds, if it was invalidated
    (its trajectories were not made of its raw rows, a crash came between file and commit, or a run moved), or if the
    policy is to erase and it holds deleted content.
    """
    keys = {partition_key(hour): hour for hour in hours}
    captured = {
        keys[key]: _NOT_ERASED if deleted == "erase" and entry["counts"].get(DELETED_AND_KEPT) else entry["fingerprint"]
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
        if entry["schema_version"] != SCHEMA_VERSION and entry["result"] != PartitionResult.PRUNED
    )
