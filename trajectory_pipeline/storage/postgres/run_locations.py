"""Where each captured run is: every statement against ``run_locations``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import psycopg
import pyarrow as pa

from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres.invalidations import invalidate

_IDS_AT_ONCE = 10_000


@dataclass(frozen=True)
class SnapshotObservation:
    """What one look at the source says of the runs of a partition.

    Attributes:
        taken_at: when it was taken, by the source's clock.
        present: ids of runs that the source holds there, and of deleted ones that are carried forward there; sorted
            strings.
        pending_move: runs that stay there until the partition that they moved to has seen them.
        departed: runs that were there before and are in no partition now.
    """

    taken_at: datetime
    present: "pa.Array[Any]"
    pending_move: Sequence[str]
    departed: Sequence[str]


def record_locations(connection: psycopg.Connection, partition_key: str, observation: SnapshotObservation) -> None:
    """Record that runs are in a partition, or are not any more; the newest look at the source counts.

    A partition that a run is taken from is invalidated: it was made with that run. So is this one, if a look with a
    later time has put one of these runs elsewhere: only another look can tell, because clocks differ.
    """
    for some in _portions(observation.present):
        connection.execute(
            "INSERT INTO trajectory.run_locations (run_id, partition_key, seen_at)"
            " SELECT run_id, %s, %s FROM unnest(%s::text[]) AS run_id ON CONFLICT DO NOTHING",
            [partition_key, observation.taken_at, some],
        )
    # Locked in one order, so that two partitions that exchange runs wait for each other instead of deadlocking; for
    # the same reason not before all are inserted.
    absent = [*observation.pending_move, *observation.departed]
    rows: list[tuple[str, str | None, datetime]] = []
    for some in _portions(pa.concat_arrays([observation.present, pa.array(absent, pa.string())]).sort()):
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
        if where is None or (where != partition_key and seen_at <= observation.taken_at)
    }
    if taken or missing:
        # An awaited run stays, and the next look that sees it takes it, also by a clock that was put back.
        connection.execute(
            "UPDATE trajectory.run_locations SET seen_at = %s,"
            " partition_key = CASE WHEN NOT run_id = ANY(%s) THEN %s END WHERE run_id = ANY(%s)",
            [observation.taken_at, list(observation.departed), partition_key, [*taken, *missing]],
        )
    for left_behind in sorted({where for where in taken.values() if where is not None}):
        # Its raw rows too: of a deleted run that was kept there and came back here, no fingerprint of that hour tells.
        for asset in (TERMINAL_RUNS.name, TRAJECTORIES.name):
            invalidate(connection, asset, left_behind, "a run moved away")
    if observation.pending_move:
        # Another look is due even if nothing changes here: it may have been deleted before it was seen there.
        invalidate(connection, TERMINAL_RUNS.name, partition_key, "a run moved away and was not seen elsewhere yet")
    newer = {where for _, where, seen_at in rows if where is not None and seen_at > observation.taken_at}
    newer.discard(partition_key)
    for other in sorted(newer):
        # Of a deleted run that it carries forward and that is back here, no fingerprint of that hour tells.
        invalidate(connection, TERMINAL_RUNS.name, other, "another partition sees one of its runs by an older look")
    if newer:
        invalidate(
            connection, TERMINAL_RUNS.name, partition_key, "another partition holds one of its runs by a newer look"
        )


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


def find_moved_runs(connection: psycopg.Connection, partition_key: str, run_ids: Sequence[str]) -> list[str]:
    """Return which of these runs are in another partition, by the newest look at the source, sorted."""
    rows = connection.execute(
        "SELECT run_id FROM trajectory.run_locations WHERE run_id = ANY(%s) AND partition_key <> %s ORDER BY 1",
        [list(run_ids), partition_key],
    )
    return [row[0] for row in rows]
