"""Reading the ledger (``partitions``) across partitions.

Every function raises ``SinkError`` if the database cannot be read.
"""

from collections.abc import Sequence
from datetime import datetime

from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.partition_writer import StoredEntry


def entries_since(database: TrajectoryDatabase, moment: datetime, at_most: int) -> list[StoredEntry]:
    """Return the newest entries, none older than a moment, the newest first."""
    return database.entries("WHERE materialized_at >= %s ORDER BY materialized_at DESC LIMIT %s", [moment, at_most])


def entries_of_runs(database: TrajectoryDatabase, dagster_run_ids: Sequence[str]) -> list[StoredEntry]:
    """Return the entries that these Dagster runs wrote last."""
    return database.entries("WHERE dagster_run_id = ANY(%s) ORDER BY asset, partition_key", [list(dagster_run_ids)])


def entries_after(database: TrajectoryDatabase, position: str | None, at_most: int) -> list[StoredEntry]:
    """Return the entries after a position (``asset key``), in order; from the beginning without one."""
    asset, _, key = (position or "").partition(" ")
    condition = "WHERE (asset, partition_key) > (%s, %s) ORDER BY asset, partition_key LIMIT %s"
    return database.entries(condition, [asset, key, at_most])


def count_entries_since(
    database: TrajectoryDatabase, moment: datetime, assets: Sequence[str], partition_keys: Sequence[str]
) -> int:
    """Return how many partitions of these assets were recorded at or after a moment, by the database's clock."""
    rows = database.rows(
        "SELECT count(*) AS entries FROM trajectory.partitions WHERE asset = ANY(%s) AND partition_key = ANY(%s)"
        " AND materialized_at >= %s",
        [list(assets), list(partition_keys), moment],
    )
    return int(rows[0]["entries"])


def partitions_counting(database: TrajectoryDatabase, count: str) -> dict[str, int]:
    """Return the partitions whose raw rows have a count (``deleted_and_kept``) above zero, with it, sorted by key.

    Pruned partitions are left out.
    """
    rows = database.rows(
        "SELECT partition_key, (counts ->> %(count)s)::bigint AS runs FROM trajectory.partitions r"
        " WHERE asset = %(raw)s AND (counts ->> %(count)s)::bigint > 0 AND (result <> %(pruned)s OR EXISTS ("
        "SELECT FROM trajectory.partitions t WHERE t.asset = %(converted)s AND t.partition_key = r.partition_key"
        " AND t.result <> %(pruned)s)) ORDER BY 1",
        {"count": count, "raw": TERMINAL_RUNS.name, "converted": TRAJECTORIES.name, "pruned": PartitionResult.PRUNED},
    )
    return {row["partition_key"]: row["runs"] for row in rows}
