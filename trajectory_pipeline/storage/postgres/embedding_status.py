"""Which partitions have texts or embeddings that are missing or stale, by the ledger."""

from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection

_STALE: LiteralString = """
SELECT t.partition_key FROM trajectory.partitions t
LEFT JOIN trajectory.partitions r ON r.asset = %(refined)s AND r.partition_key = t.partition_key
LEFT JOIN trajectory.partitions e ON e.asset = %(embeddings)s AND e.partition_key = t.partition_key
WHERE t.asset = %(trajectories)s AND t.result <> %(pruned)s AND CASE
    WHEN e.partition_key IS NULL THEN
        EXISTS (SELECT FROM trajectory.trajectories x WHERE x.partition_key = t.partition_key AND x.deleted_at IS NULL)
    ELSE e.result = %(pruned)s OR e.upstream_digest IS DISTINCT FROM t.content_digest
        OR e.inputs_digest IS DISTINCT FROM encode(sha256(convert_to(
            array_to_string(ARRAY[%(version)s, %(identity)s, coalesce(r.content_digest, '')], E'\\n'), 'UTF8')), 'hex')
        OR %(pending)s AND (e.counts ->> 'pending')::bigint > 0
    END
ORDER BY 1"""
_DUE: LiteralString = (
    "SELECT DISTINCT partition_key FROM trajectory.trajectory_embeddings"
    " WHERE model_id = %s AND next_attempt_at <= %s ORDER BY 1"
)


@dataclass(frozen=True)
class StaleQuery:
    """What a partition's entry is compared with; see ``pipeline.embed.inputs_digest``.

    ``include_pending``: whether partitions count whose texts were left without an embedding, for want of budget.
    """

    version: str
    identity: str
    include_pending: bool


def stale_partitions(connection: RetryingConnection, wanted: StaleQuery) -> list[str]:
    """Return the keys of partitions whose texts or embeddings are missing or stale, sorted."""
    rows = connection.rows(
        "Looking for stale embeddings",
        _STALE,
        {
            "trajectories": TRAJECTORIES.name,
            "refined": REFINED_OUTCOMES.name,
            "embeddings": TRAJECTORY_EMBEDDINGS.name,
            "pruned": PartitionResult.PRUNED,
            "version": wanted.version,
            "identity": wanted.identity,
            "pending": wanted.include_pending,
        },
    )
    return [row["partition_key"] for row in rows]


def partitions_due_again(connection: RetryingConnection, model_id: str, now: datetime) -> list[str]:
    """Return the keys of partitions with texts that had no embedding, and are to be tried again now, sorted."""
    return [row["partition_key"] for row in connection.rows("Looking for failed embeddings", _DUE, [model_id, now])]
