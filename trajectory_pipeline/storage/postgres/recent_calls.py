"""What became of the latest calls to a judge, whoever made them."""

from psycopg import sql

from trajectory_pipeline.schema.types import SCHEMA_NAME
from trajectory_pipeline.schema.verdicts import VERDICT_ATTEMPTS
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection

_LATEST = sql.SQL(
    "SELECT error_class FROM (SELECT * FROM {} ORDER BY started_at DESC LIMIT %s) latest"
    " WHERE base_url = %s AND model = %s AND duration_ns IS NOT NULL ORDER BY started_at DESC LIMIT %s"
).format(sql.Identifier(SCHEMA_NAME, VERDICT_ATTEMPTS.name))
_LOOKED_AT = 1000
"""Attempts that are looked at: those of other models may lie between, and a table of millions is not searched."""


def latest_error_classes(connection: RetryingConnection, base_url: str, model: str, calls: int) -> list[str | None]:
    """Return the error classes of the latest calls that ended, the newest first; None for one that was answered.

    Args:
        connection: to the trajectory database.
        base_url: of the endpoint, without credentials.
        model: that was asked.
        calls: how many at most.

    Raises:
        SinkError: the database cannot be reached.
    """
    rows = connection.rows("Looking at the latest calls", _LATEST, [_LOOKED_AT, base_url, model, calls])
    return [row["error_class"] for row in rows]
