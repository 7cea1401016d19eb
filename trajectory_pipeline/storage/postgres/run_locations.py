"""Where each captured run is, and which partitions must be materialised again whatever their fingerprint says.

Belongs here: every statement against ``run_locations`` and ``invalidations``. Does not belong here: the rows themselves
(``storage.postgres.database``), and who asks for partitions (``orchestration``).
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, cast

import psycopg
import pyarrow as pa

from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES

_IDS_AT_ONCE = 10_000


@dataclass(frozen=True)
class SnapshotObservation:
    """What one look at the source says of the runs of a partition.

    Attributes:
        taken_at: when it was taken, by the source's clock.
        present: ids of runs that the source holds there, and of deleted ones that are carried forward there; sorted
            strings.
        awaited: runs that are still kept there, until the partition that they moved to has seen them.
        left: runs that were there before and are no partition's now.
    """

    taken_at: datetime
    present: "pa.Array[Any]"
    pending_move: Sequence[str]
    departed: Sequence[str]


def record_locations(connection: psycopg.Connection, partition_key: str, sightings: SnapshotObservation) -> None:
    """Note that runs are in a partition, or are not any more; the newest look at the source counts.

    A partition that a run is taken from is unsettled: it was made with that run. So is this one, if a
    look that says to be newer has put one of these runs elsewhere: only another look can tell (clocks differ).
    """
    for some in _portions(sightings.present):
        connection.execute(
            "INSERT INTO trajectory.run_locations (run_id, partition_key, seen_at)"
            " SELECT run_id, %s, %s FROM unnest(%s::text[]) AS run_id ON CONFLICT DO NOTHING",
            [partition_key, sightings.taken_at, some],
        )
    # Locked in one order, so that two partitions that exchange runs wait for each other instead of deadlocking; for
    # the same reason not before all are inserted.
    absent = [*sightings.pending_move, *sightings.departed]
    rows: list[tuple[str, str | None, datetime]] = []
    for some in _portions(pa.concat_arrays([sightings.present, pa.array(absent, pa.string())]).sort()):
        rows += connection.execute(
            "SELECT run_id, partition_key, seen_at FROM trajectory.run_locations WHERE run_id = ANY(%(some)s)"
            " AND CASE WHEN run_id = ANY(%(absent)s) THEN partition_key = %(key)s"
            ' ELSE partition_key IS DISTINCT FROM %(key)s END ORDER BY run_id COLLATE "C" FOR UPDATE',
            {"some": some, "absent": absent, "key": partition_key},
        ).fetchall()
    missing = [run_id for run_id, where, _ in rows if where == partition_key]
    taken = {
        run_id: where
        for run_id, where, seen_at in rows
        if where is None or (where != partition_key and seen_at <= sightings.taken_at)
    }
    if taken or missing:
        # An awaited run stays, and the next look that sees it takes it, also by a clock that was put back.
        connection.execute(
            "UPDATE trajectory.run_locations SET seen_at = %s,"
            " partition_key = CASE WHEN NOT run_id = ANY(%s) THEN %s END WHERE run_id = ANY(%s)",
            [sightings.taken_at, list(sightings.departed), partition_key, [*taken, *missing]],
        )
    for left_behind in sorted({where for where in taken.values() if where is not None}):
        # Its raw rows too: of a deleted run that was kept there and came back here, no fingerprint of that hour tells.
        for asset in (TERMINAL_RUNS.name, TRAJECTORIES.name):
            note(connection, asset, left_behind, "a run moved away")
    if sightings.pending_move:
        # Another look is due even if nothing changes here: it may have been deleted before it was seen there.
        note(connection, TERMINAL_RUNS.name, partition_key, "a run moved away and was not seen elsewhere yet")
    newer = {where for _, where, seen_at in rows if where is not None and seen_at > sightings.taken_at}
    newer.discard(partition_key)
    for other in sorted(newer):
        # Of a deleted run that it carries forward and that is back here, no fingerprint of that hour tells.
        note(connection, TERMINAL_RUNS.name, other, "another partition sees one of its runs by an older look")
    if newer:
        note(connection, TERMINAL_RUNS.name, partition_key, "another partition holds one of its runs by a newer look")


def unaccounted_runs(connection: psycopg.Connection, partition_key: str, run_ids: "pa.Array[Any]") -> Iterator[str]:
    """Yield the runs that were seen last in a partition and are not among these, sorted; both are read as they come.

    Args:
        connection: not to be used for anything else before the last is given.
        partition_key: of the partition.
        run_ids: sorted strings.
    """
    others = (run_id for some in _portions(run_ids) for run_id in some)
    other = next(others, None)
    with connection.cursor() as cursor:
        for (run_id,) in cursor.stream(
            'SELECT run_id FROM trajectory.run_locations WHERE partition_key = %s ORDER BY run_id COLLATE "C"',
            [partition_key],
        ):
            while other is not None and other < run_id:
                other = next(others, None)
            if other != run_id:
                yield run_id


def _portions(run_ids: "pa.Array[Any]") -> Iterator[list[str]]:
    """Yield ids in portions: of half a million at once, what is sent and what is held to send it are 200 MB."""
    for first in range(0, len(run_ids), _IDS_AT_ONCE):
        yield cast(list[str], run_ids.slice(first, _IDS_AT_ONCE).to_pylist())


MOVED: LiteralString = (
    "SELECT run_id FROM trajectory.run_locations WHERE run_id = ANY(%(ids)s) AND partition_key <> %(key)s ORDER BY 1"
)
"""Which of these runs are in another partition."""


def note(connection: psycopg.Connection, asset: str, partition_key: str, reason: str) -> str:
    """Note that a partition is to be materialised again; returns the note's id."""
    invalidation_id = uuid.uuid4().hex
    connection.execute(
        "INSERT INTO trajectory.invalidations (invalidation_id, asset, partition_key, reason, invalidated_at)"
        " VALUES (%s, %s, %s, %s, clock_timestamp())",
        [invalidation_id, asset, partition_key, reason],
    )
    return invalidation_id


def invalidate(connection: psycopg.Connection, asset: str, partition_key: str) -> list[str]:
    """Return the ids of the notes on a partition."""
    rows = connection.execute(
        "SELECT invalidation_id FROM trajectory.invalidations WHERE asset = %s AND partition_key = %s",
        [asset, partition_key],
    )
    return [row[0] for row in rows]


def clear_invalidations(connection: psycopg.Connection, note_ids: Sequence[str]) -> None:
    """Drop notes: what they ask for is done when this transaction is."""
    if note_ids:
        connection.execute("DELETE FROM trajectory.invalidations WHERE invalidation_id = ANY(%s)", [list(note_ids)])


UNSETTLED: LiteralString = (
    "SELECT partition_key, string_agg(DISTINCT reason, '; ' ORDER BY reason) AS reasons FROM ("
    "SELECT partition_key, reason FROM trajectory.invalidations WHERE asset = ANY(%(assets)s)"
    " UNION ALL SELECT k, 'its trajectories were not made of its raw rows, or are not there'"
    " FROM unnest(%(keys)s::text[]) k"
    " LEFT JOIN trajectory.partitions r ON r.asset = %(raw)s AND r.partition_key = k"
    " LEFT JOIN trajectory.partitions t ON t.asset = %(converted)s AND t.partition_key = k"
    " WHERE (r.asset IS NULL) <> (t.asset IS NULL) OR r.content_digest IS DISTINCT FROM t.upstream_digest"
    " UNION ALL SELECT k, 'what it holds is not in the ledger' FROM unnest(%(keys)s::text[]) k"
    " WHERE NOT EXISTS (SELECT FROM trajectory.partitions p WHERE p.asset = %(raw)s AND p.partition_key = k)"
    " AND (EXISTS (SELECT FROM trajectory.trajectories h WHERE h.partition_key = k)"
    " OR EXISTS (SELECT FROM trajectory.quarantine h WHERE h.partition_key = k)"
    " OR EXISTS (SELECT FROM trajectory.run_locations h WHERE h.partition_key = k))"
    ") found WHERE partition_key = ANY(%(keys)s) AND NOT EXISTS (SELECT FROM trajectory.partitions p"
    " WHERE p.partition_key = found.partition_key AND p.asset = ANY(%(assets)s) AND p.result = %(pruned)s) GROUP BY 1"
)
"""Partitions, of those asked about, that must be materialised again whatever the source holds, and why.

One of which anything was pruned must not: it would come back.
"""


def invalidations_of(partition_keys: Iterable[str]) -> Mapping[str, Any]:
    """Return the parameters of ``UNSETTLED``."""
    return {
        "assets": [TERMINAL_RUNS.name, TRAJECTORIES.name],
        "raw": TERMINAL_RUNS.name,
        "converted": TRAJECTORIES.name,
        "keys": list(partition_keys),
        "pruned": PartitionResult.PRUNED,
    }
