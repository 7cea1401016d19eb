"""Partitions that must be materialized again, whatever their fingerprint is: the table ``invalidations``."""

import uuid
from collections.abc import Sequence

import psycopg

from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES

WITHHELD = "withheld deletions"
"""What the id of an invalidation begins with that waits for a person."""
_ASSETS = f"('{TERMINAL_RUNS.name}', '{TRAJECTORIES.name}')"


def invalidate(connection: psycopg.Connection, asset: str, partition_key: str, reason: str) -> str:
    """Record that a partition must be materialized again; returns the id of the invalidation."""
    invalidation_id = uuid.uuid4().hex
    connection.execute(
        "INSERT INTO trajectory.invalidations (invalidation_id, asset, partition_key, reason, invalidated_at)"
        " VALUES (%s, %s, %s, %s, clock_timestamp())",
        [invalidation_id, asset, partition_key, reason],
    )
    return invalidation_id


def note_withheld_deletions(connection: psycopg.Connection, partition_key: str, reason: str) -> None:
    """Record that the partition was not captured because of what is missing; a later reason replaces a former one."""
    connection.execute(
        "INSERT INTO trajectory.invalidations (invalidation_id, asset, partition_key, reason, invalidated_at)"
        " VALUES (%s, %s, %s, %s, clock_timestamp()) ON CONFLICT (invalidation_id)"
        " DO UPDATE SET reason = EXCLUDED.reason",
        [f"{WITHHELD} {partition_key}", TERMINAL_RUNS.name, partition_key, reason],
    )


def invalidation_ids(connection: psycopg.Connection, asset: str, partition_key: str) -> list[str]:
    """Return the ids of a partition's invalidations."""
    rows = connection.execute(
        "SELECT invalidation_id FROM trajectory.invalidations WHERE asset = %s AND partition_key = %s",
        [asset, partition_key],
    )
    return [row[0] for row in rows]


def clear_invalidations(connection: psycopg.Connection, ids: Sequence[str]) -> None:
    """Delete invalidations; the transaction does what they ask for."""
    if ids:
        connection.execute("DELETE FROM trajectory.invalidations WHERE invalidation_id = ANY(%s)", [list(ids)])


WITHHELD_DELETIONS = (
    f"SELECT partition_key, reason FROM trajectory.invalidations WHERE invalidation_id LIKE '{WITHHELD} %%' ORDER BY 1"
)
"""Partitions whose deletions are withheld, with the reason."""

# Pruned partitions, even in part, are left out: materializing would restore them.
INVALIDATED_PARTITIONS = (
    "SELECT partition_key, string_agg(DISTINCT reason, '; ' ORDER BY reason) AS reasons FROM ("
    f"SELECT partition_key, reason FROM trajectory.invalidations WHERE asset IN {_ASSETS}"
    " UNION ALL SELECT k, 'its trajectories were not made of its raw rows, or are not there'"
    " FROM unnest(%(keys)s::text[]) k"
    f" LEFT JOIN trajectory.partitions r ON r.asset = '{TERMINAL_RUNS.name}' AND r.partition_key = k"
    f" LEFT JOIN trajectory.partitions t ON t.asset = '{TRAJECTORIES.name}' AND t.partition_key = k"
    " WHERE (r.asset IS NULL) <> (t.asset IS NULL) OR r.content_digest IS DISTINCT FROM t.upstream_digest"
    " UNION ALL SELECT k, 'what it holds is not in the ledger' FROM unnest(%(keys)s::text[]) k"
    " WHERE NOT EXISTS (SELECT FROM trajectory.partitions p"
    f" WHERE p.asset = '{TERMINAL_RUNS.name}' AND p.partition_key = k)"
    " AND (EXISTS (SELECT FROM trajectory.trajectories h WHERE h.partition_key = k)"
    " OR EXISTS (SELECT FROM trajectory.quarantine h WHERE h.partition_key = k)"
    " OR EXISTS (SELECT FROM trajectory.run_locations h WHERE h.partition_key = k))"
    ") i WHERE partition_key = ANY(%(keys)s) AND NOT EXISTS (SELECT FROM trajectory.partitions p"
    f" WHERE p.partition_key = i.partition_key AND p.asset IN {_ASSETS}"
    f" AND p.result = '{PartitionResult.PRUNED}') GROUP BY 1"
)
"""Those of the partitions ``keys`` that must be materialized again, and the reasons."""
