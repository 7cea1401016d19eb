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
    """The runs of a partition in one snapshot of the source.

    Attributes:
        taken_at: by the source's clock.
        present: sorted ids of runs that the source has there, and of deleted ones that are carried forward there.
        pending_move: runs that stay there until the partition that they moved to has captured them.
        departed: runs that were there before and are in no partition now.
    """

    taken_at: datetime
    present: "pa.Array[Any]"
    pending_move: Sequence[str]
    departed: Sequence[str]


def record_locations(connection: psycopg.Connection, partition_key: str, observation: SnapshotObservation) -> None:
    """Record that runs are in a partition, or are no longer; the newest observation of the source counts.

    A partition that a run is moved from is invalidated: it was made with that run. So is this one if an observation
    with a later time has put one of its runs elsewhere: because clocks differ, only another observation can decide.
    """
    for batch in _portions(observation.present):
        connection.execute(
            "INSERT INTO trajectory.run_locations (run_id, partition_key, seen_at)"
            " SELECT run_id, %s, %s FROM unnest(%s::text[]) AS run_id ON CONFLICT DO NOTHING",
            [partition_key, observation.taken_at, batch],
        )
    # Locked in one order, so that two partitions that exchange runs wait for each other instead of deadlocking; for
    # the same reason not before all are inserted.
    absent = [*observation.pending_move, *observation.departed]
    rows: list[tuple[str, str | None, datetime]] = []
    for batch in _portions(pa.concat_arrays([observation.present, pa.array(absent, pa.string())]).sort()):
        rows += connection.execute(
            "SELECT run_id, partition_key, seen_at FROM trajectory.run_locations WHERE run_id = ANY(%(some)s)"
            " AND CASE WHEN run_id = ANY(%(absent)s) THEN partition_key = %(key)s"
            ' ELSE partition_key IS DISTINCT FROM %(key)s END ORDER BY run_id COLLATE "C" FOR UPDATE',
            {"some": batch, "absent": absent, "key": partition_key},
        ).fetchall()
    missing = [run_id for run_id, where, _ in rows if where == partition_key]
    moved = {
        run_id: where
        for run_id, where, seen_at in rows
        if where is None or (where != partition_key and seen_at <= observation.taken_at)
    }
    if moved or missing:
        # A run with a pending move stays here; the next snapshot that has it moves it, even with an earlier clock.
        connection.execute(
            "UPDATE trajectory.run_locations SET seen_at = %s,"
            " partition_key = CASE WHEN NOT run_id = ANY(%s) THEN %s END WHERE run_id = ANY(%s)",
            [observation.taken_at, list(observation.departed), partition_key, [*moved, *missing]],
        )
    for former in sorted({where for where in moved.values() if where is not None}):
        # Its raw rows too: if a deleted run that it carried forward is back here, its own fingerprint does not change.
        for asset in (TERMINAL_RUNS.name, TRAJECTORIES.name):
            invalidate(connection, asset, former, "a run moved away")
    if observation.pending_move:
        # Even if nothing changes here: the run may have been deleted before the other partition captured it.
        invalidate(connection, TERMINAL_RUNS.name, partition_key, "a run moved away and was not seen elsewhere yet")
    newer = {where for _, where, seen_at in rows if where is not None and seen_at > observation.taken_at}
    newer.discard(partition_key)
    for other in sorted(newer):
        # If a deleted run that it carries forward is back here, its own fingerprint does not change.
        invalidate(connection, TERMINAL_RUNS.name, other, "an older snapshot has one of its runs in another partition")
    if newer:
        invalidate(
            connection, TERMINAL_RUNS.name, partition_key, "a newer snapshot has one of its runs in another partition"
        )


def unaccounted_runs(connection: psycopg.Connection, partition_key: str, run_ids: "pa.Array[Any]") -> Iterator[str]:
    """Yield the runs recorded in a partition that are not among these sorted ids, sorted; streams both.

    The connection cannot be used for anything else before the last is read.
    """
    others = (run_id for batch in _portions(run_ids) for run_id in batch)
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
    # Half a million ids at once would take 200 MB to send.
    for first in range(0, len(run_ids), _IDS_AT_ONCE):
        yield cast(list[str], run_ids.slice(first, _IDS_AT_ONCE).to_pylist())


def find_moved_runs(connection: psycopg.Connection, partition_key: str, run_ids: Sequence[str]) -> list[str]:
    """Return which of these runs are in another partition, by the newest observation of the source, sorted."""
    rows = connection.execute(
        "SELECT run_id FROM trajectory.run_locations WHERE run_id = ANY(%s) AND partition_key <> %s ORDER BY 1",
        [list(run_ids), partition_key],
    )
    return [row[0] for row in rows]
