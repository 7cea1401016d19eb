"""Which partitions are not what the source holds: the capture sensor's question.

Belongs here: comparing fingerprints of the source with those of the ledger. Does not belong here: which hours to
compare, and what is requested (``defs.sensors.capture``).
"""

from collections.abc import Sequence
from datetime import datetime

from trajectory_pipeline.letta.fingerprint import EMPTY, fingerprints
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.partition_keys import HOUR, contiguous, partition_key
from trajectory_pipeline.pipeline.capture_counts import DELETED_AND_KEPT
from trajectory_pipeline.pipeline.carry_forward import Deleted
from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retention import pruned_partitions

_UNSETTLED = "to be materialised again"
_NOT_ERASED = "content that is deleted at the source"


def find_stale_partitions(
    source: LettaSource, database: TrajectoryDatabase, hours: Sequence[datetime], deleted: Deleted = "keep"
) -> list[datetime]:
    """Return those of these hours whose rows in the source are not what was captured and converted.

    An hour that was never captured and has no terminal runs is not stale; one of which anything was pruned never is.

    Args:
        source: where the rows are.
        database: whose ledger says what was captured.
        hours: sorted.
        deleted: the policy: with ``erase``, an hour that holds what is deleted at the source is stale.

    Raises:
        SourceError: the source cannot be read.
        SinkError: the ledger cannot be read.
    """
    with source.snapshot() as snapshot:
        there = fingerprints_of(snapshot, hours)
    captured = captured_fingerprints(database, hours, deleted)
    differing = [hour for hour in hours if there.get(hour, EMPTY) != captured.get(hour, EMPTY)]
    pruned = pruned_partitions(database, [partition_key(hour) for hour in differing])
    return [hour for hour in differing if partition_key(hour) not in pruned]


def fingerprints_of(snapshot: Snapshot, hours: Sequence[datetime]) -> dict[datetime, str]:
    """Return the fingerprint of each of these (sorted) hours that has terminal runs, by one query a stretch."""
    found: dict[datetime, str] = {}
    for first, last in contiguous(hours, max(len(hours), 1)):
        found.update(fingerprints(snapshot, first, last + HOUR))
    return found


def captured_fingerprints(
    database: TrajectoryDatabase, hours: Sequence[datetime], deleted: Deleted = "keep"
) -> dict[datetime, str]:
    """Return the fingerprint of what each hour's trajectories were made of; nothing for one that was never captured.

    Where the trajectories were not made of the raw rows (a crash between the two), or a note asks for the hour, it is
    one that equals no other: the hour is stale, whatever the source holds by now. No clock is asked. So it is where the
    policy is to erase, and what is deleted at the source is still held.
    """
    keys = {partition_key(hour): hour for hour in hours}
    captured = {
        keys[key]: _NOT_ERASED if deleted == "erase" and entry["counts"].get(DELETED_AND_KEPT) else entry["fingerprint"]
        for key, entry in database.ledger(TERMINAL_RUNS.name, [*keys]).items()
    }
    return {**captured, **{keys[key]: _UNSETTLED for key in database.invalidations([*keys])}}


def built_by_older_versions(database: TrajectoryDatabase) -> list[str]:
    """Return the keys of the partitions whose trajectories were built with another schema version than this one's.

    Raises:
        SinkError: the ledger cannot be read.
    """
    return sorted(
        key
        for key, entry in database.ledger(TRAJECTORIES.name).items()
        if entry["schema_version"] != SCHEMA_VERSION and entry["result"] != PartitionResult.PRUNED
    )
