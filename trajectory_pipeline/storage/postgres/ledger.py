"""Reading the ledger across partitions: what was written lately, by whom, and all of it in turn.

Belongs here: queries over many entries. Does not belong here: a partition's own entry (``storage.postgres.database``).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase


def entries_since(database: TrajectoryDatabase, moment: datetime, at_most: int) -> list[dict[str, Any]]:
    """Return the newest entries, none older than a moment, the newest first.

    Raises:
        SinkError: the ledger cannot be read.
    """
    return database.rows(
        "SELECT * FROM trajectory.partitions WHERE materialized_at >= %s ORDER BY materialized_at DESC LIMIT %s",
        [moment, at_most],
    )


def entries_of_runs(database: TrajectoryDatabase, dagster_run_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entries that these Dagster runs wrote last.

    Raises:
        SinkError: the ledger cannot be read.
    """
    return database.rows(
        "SELECT * FROM trajectory.partitions WHERE dagster_run_id = ANY(%s) ORDER BY asset, partition_key",
        [list(dagster_run_ids)],
    )


def entries_after(database: TrajectoryDatabase, place: str | None, at_most: int) -> list[dict[str, Any]]:
    """Return the entries that follow a place (``asset key``), in order; from the beginning without one.

    Raises:
        SinkError: the ledger cannot be read.
    """
    asset, _, key = (place or "").partition(" ")
    return database.rows(
        "SELECT * FROM trajectory.partitions WHERE (asset, partition_key) > (%s, %s)"
        " ORDER BY asset, partition_key LIMIT %s",
        [asset, key, at_most],
    )
