"""Erasing at once what was deleted at the source, in partitions that were captured while it was kept.

Belongs here: which partitions, and rewriting their raw rows without the source. Does not belong here: which words go
(``trajectories.erasure``, ``sinks.erasing``), and how one learns of a deletion (``stages.terminal_runs``).
"""

from datetime import datetime

from trajectory_pipeline.hours import key_of
from trajectory_pipeline.schema.letta import TERMINAL_RUNS
from trajectory_pipeline.sinks.database import LedgerEntry, TrajectoryDatabase
from trajectory_pipeline.sinks.parquet import ParquetStore
from trajectory_pipeline.stages.terminal_runs import DELETED_AND_KEPT
from trajectory_pipeline.stages.trajectories import TrajectoriesResult, materialize_trajectories
from trajectory_pipeline.trajectories.erasure import erase_deleted


def partitions_to_erase(database: TrajectoryDatabase) -> dict[str, int]:
    """Return the partitions that hold what is deleted at the source, and in how many runs, by partition key."""
    rows = database.rows(
        "SELECT partition_key, (counts ->> %s)::bigint AS runs FROM trajectory.partitions WHERE asset = %s"
        " AND (counts ->> %s)::bigint > 0 ORDER BY 1",
        [DELETED_AND_KEPT, TERMINAL_RUNS.name, DELETED_AND_KEPT],
    )
    return {row["partition_key"]: row["runs"] for row in rows}


def erase_partition(
    hour: datetime, store: ParquetStore, database: TrajectoryDatabase, *, dagster_run_id: str | None = None
) -> TrajectoriesResult:
    """Erase what a partition holds of deleted content, in every sink, without asking the source.

    Raises:
        SinkError: a sink cannot be read or written; asking again finishes it.
    """
    key = key_of(hour)
    with database.partition(TERMINAL_RUNS.name, key) as partition:
        entry = database.ledger(TERMINAL_RUNS.name, [key])[key]
        rows = (erase_deleted(batch) for batch in store.read(TERMINAL_RUNS, hour))
        with store.prepare(TERMINAL_RUNS, hour, rows) as prepared:
            partition.record(
                LedgerEntry(
                    asset=TERMINAL_RUNS.name,
                    partition_key=key,
                    result=entry["result"],
                    counts={**entry["counts"], DELETED_AND_KEPT: 0},
                    content_digest=prepared.sha256,
                    schema_version=entry["schema_version"],
                    fingerprint=entry["fingerprint"],
                    snapshot_at=entry["snapshot_at"],
                    dagster_run_id=dagster_run_id,
                )
            )
            partition.publish(prepared)
    return materialize_trajectories(hour, store, database, dagster_run_id=dagster_run_id)
