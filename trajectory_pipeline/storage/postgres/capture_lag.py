"""How long after their end runs were captured."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction


@dataclass(frozen=True)
class CaptureLag:
    """Time from the end of runs, by the source's clock, to their rows in Postgres, by that server's."""

    runs: int
    median: timedelta
    longest: timedelta


_LAG = (
    "SELECT count(*) AS runs,"
    " percentile_cont(0.5) WITHIN GROUP (ORDER BY {at} - coalesce(end_time, start_time)) AS median,"
    " max({at} - coalesce(end_time, start_time)) AS longest"
    " FROM trajectory.trajectories WHERE deleted_at IS NULL AND {condition}"
)


def lag_of_runs(partition: PartitionTransaction) -> CaptureLag | None:
    """Return the lag of the runs that a partition's transaction captures first; None where there are none.

    Runs that moved here from another partition are not counted.
    """
    # now() is when the transaction began, and what it writes as first_captured_at; it is committed at the end of it.
    condition = "partition_key = %s AND first_captured_at = now()"
    with partition.connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(_LAG.format(at="clock_timestamp()", condition=condition).encode(), [partition.partition_key])
        return _lag(cursor.fetchone())


def lag_since(database: TrajectoryDatabase, age: timedelta) -> CaptureLag | None:
    """Return the lag of the runs that ended within this age; None where none did."""
    with database.connect() as connection, translating_database_errors(database.url, "Reading"):
        return recent_lag(connection, age)


def recent_lag(connection: psycopg.Connection, age: timedelta) -> CaptureLag | None:
    """Return the lag of the runs that ended within this age; None where none did."""
    condition = "coalesce(end_time, start_time) > now() - %s"
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(_LAG.format(at="first_captured_at", condition=condition).encode(), [age])
        return _lag(cursor.fetchone())


def _lag(row: dict[str, Any] | None) -> CaptureLag | None:
    return CaptureLag(**row) if row and row["runs"] and row["median"] is not None else None
