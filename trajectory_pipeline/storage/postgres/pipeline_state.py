"""How the pipeline is doing, in a few numbers over the whole database, for metrics."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.storage.postgres import invalidations
from trajectory_pipeline.storage.postgres.capture_lag import CaptureLag, recent_lag

LAG_AGE = timedelta(hours=1)
"""Runs that ended longer ago do not count for the lag."""
_REASONS = ("withheld_deletions", "invalidated", "not_converted", "older_version")
_STALE = f"""
SELECT CASE WHEN invalidation_id LIKE '{invalidations.WITHHELD} %%' THEN 'withheld_deletions' ELSE 'invalidated' END
    AS reason, count(DISTINCT partition_key) AS partitions
FROM trajectory.invalidations GROUP BY 1
UNION ALL
SELECT 'not_converted', count(*) FROM trajectory.partitions r LEFT JOIN trajectory.partitions t
    ON t.asset = 'trajectories' AND t.partition_key = r.partition_key
WHERE r.asset = 'terminal_runs' AND r.result <> 'pruned' AND t.result IS DISTINCT FROM 'pruned'
    AND r.content_digest IS DISTINCT FROM t.upstream_digest
UNION ALL
SELECT 'older_version', count(*) FROM trajectory.partitions
WHERE asset = 'trajectories' AND result <> 'pruned' AND schema_version <> %s
"""
_VERDICTS = """
SELECT coalesce(verdict_status, 'none') AS status, coalesce(error_class, '') AS error_class,
    count(*) AS trajectories
FROM trajectory.outcomes WHERE coalesce(end_time, start_time) > now() - %s GROUP BY 1, 2
"""


@dataclass(frozen=True)
class PipelineState:
    """What metrics are made of.

    Attributes:
        lag: of the runs that ended within ``LAG_AGE``; None where none did.
        stale: partitions to materialize again, by reason (``_REASONS``).
        materialized_at: the newest materialization of each asset.
        verdicts: recent trajectories by verdict status and error class.
        spent_usd: of a UTC day; ``reserved_usd`` and ``spent_tokens`` likewise.
    """

    lag: CaptureLag | None
    trajectories: int
    quarantined: int
    stale: dict[str, int]
    materialized_at: dict[str, datetime]
    verdicts: dict[tuple[str, str], int]
    spent_usd: Decimal
    reserved_usd: Decimal
    spent_tokens: int
    database_bytes: int


def read_pipeline_state(connection: psycopg.Connection, *, day: str, lookback: timedelta) -> PipelineState:
    """Return the state; ``day`` is of the spend totals (``2026-11-23``), ``lookback`` the age that is judged.

    The number of trajectories is Postgres's own estimate: counting reads the whole table.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        found = {row["reason"]: row["partitions"] for row in cursor.execute(_STALE.encode(), [SCHEMA_VERSION])}
        stale = {reason: found.get(reason, 0) for reason in _REASONS}
        cursor.execute("SELECT asset, max(materialized_at) AS at FROM trajectory.partitions GROUP BY 1")
        materialized_at = {row["asset"]: row["at"] for row in cursor}
        verdicts = {
            (row["status"], row["error_class"]): row["trajectories"] for row in cursor.execute(_VERDICTS, [lookback])
        }
        cursor.execute(
            "SELECT coalesce(sum(spent_usd), 0) AS spent_usd, coalesce(sum(reserved_usd), 0) AS reserved_usd,"
            " coalesce(sum(spent_tokens), 0)::bigint AS spent_tokens FROM trajectory.spend_totals"
            " WHERE scope = 'day' AND scope_key = %s",
            [day],
        )
        spent = cursor.fetchone() or {}
        cursor.execute(
            "SELECT greatest(reltuples, 0)::bigint AS trajectories,"
            " (SELECT count(*) FROM trajectory.quarantine) AS quarantined,"
            " pg_database_size(current_database()) AS database_bytes"
            " FROM pg_class WHERE oid = 'trajectory.trajectories'::regclass"
        )
        counts = cursor.fetchone() or {}
        return PipelineState(
            recent_lag(connection, LAG_AGE),
            stale=stale,
            materialized_at=materialized_at,
            verdicts=verdicts,
            **spent,
            **counts,
        )
