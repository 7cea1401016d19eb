"""The tables ``judge_quality`` and ``judge_confusions``, which are replaced as a whole.

Every function raises ``SinkError`` if the database refuses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trajectory_pipeline.schema.quality import JUDGE_CONFUSIONS, JUDGE_QUALITY
from trajectory_pipeline.schema.types import Sink, Table
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

Row = dict[str, Any]


def replace_quality(database: TrajectoryDatabase, tables: Mapping[Table, Sequence[Row]]) -> None:
    """Make these tables hold exactly these rows, in one transaction."""
    with (
        database.connect() as connection,
        translating_database_errors(database.url, "Writing the quality of verdicts"),
        connection.cursor() as cursor,
    ):
        for table, rows in tables.items():
            names = table.names(Sink.POSTGRES)
            cursor.execute(f"LOCK TABLE trajectory.{table.name} IN SHARE ROW EXCLUSIVE MODE".encode())
            cursor.execute(f"DELETE FROM trajectory.{table.name}".encode())
            values = ", ".join(f"%({name})s" for name in names)
            cursor.executemany(
                f"INSERT INTO trajectory.{table.name} ({', '.join(names)}) VALUES ({values})".encode(), rows
            )


def read_quality(database: TrajectoryDatabase) -> list[Row]:
    """Return the rows of ``judge_quality``, with the model of each policy."""
    return database.rows(
        f"SELECT q.*, p.model, coalesce(p.is_current, false) AS is_current FROM trajectory.{JUDGE_QUALITY.name} q"
        " LEFT JOIN trajectory.policies p USING (policy_id) ORDER BY p.is_current DESC NULLS LAST, q.policy_id,"
        " q.comparison, q.criterion, q.slice, q.slice_value, q.metric"
    )


def read_confusions(database: TrajectoryDatabase) -> list[Row]:
    """Return the rows of ``judge_confusions``, the most frequent pair of values first."""
    return database.rows(
        f"SELECT * FROM trajectory.{JUDGE_CONFUSIONS.name}"
        " ORDER BY policy_id, comparison, criterion, pairs DESC, person_value, judge_value"
    )
