"""Removing a partition's rows from Postgres because of its age, and recording that in the ledger.

``run_locations`` stays: a run that moves out of a pruned partition, or comes back, keeps its first date, and older raw
rows of it elsewhere do not take it back. Calls to judges stay with their cost.

Every function raises ``SinkError`` if the database cannot be read or refuses.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import LiteralString

from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.postgres import invalidations
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.erasure import erase_attempts_of
from trajectory_pipeline.storage.postgres.failure_modes import forget_failure_titles
from trajectory_pipeline.storage.postgres.labels import erase_label_texts
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction, StoredEntry
from trajectory_pipeline.storage.postgres.search_texts import remove_texts
from trajectory_pipeline.storage.postgres.spend_ledger import PANEL, SEARCH

_OLD_TOTALS = timedelta(days=7)
_EMPTY_DIGEST = hashlib.sha256(b"").hexdigest()

# A verdict keeps the key of the partition in which it was reached; its run may have moved to a younger one since.
_OLD_ROWS: LiteralString = """
SELECT partition_key, sum(rows)::bigint AS rows FROM (
    SELECT partition_key, 0 AS rows FROM trajectory.partitions
    WHERE asset = ANY(%(assets)s) AND result <> %(pruned)s AND partition_key <= %(last)s
    UNION ALL
    SELECT partition_key, 0 FROM trajectory.partitions r WHERE asset = %(raw)s AND partition_key <= %(last)s
    AND NOT EXISTS (SELECT FROM trajectory.partitions t
        WHERE t.asset = %(converted)s AND t.partition_key = r.partition_key)
    UNION ALL
    SELECT partition_key, count(*) FROM trajectory.trajectories WHERE partition_key <= %(last)s GROUP BY 1
    UNION ALL
    SELECT partition_key, count(*) FROM trajectory.quarantine WHERE partition_key <= %(last)s GROUP BY 1
    UNION ALL
    SELECT coalesce(t.partition_key, v.partition_key), count(*) FROM trajectory.verdicts v
    LEFT JOIN trajectory.trajectories t ON t.run_id = v.run_id
    LEFT JOIN trajectory.run_locations c ON c.run_id = v.run_id
    WHERE coalesce(t.partition_key, v.partition_key) <= %(last)s
    AND coalesce(c.partition_key, t.partition_key, v.partition_key) = coalesce(t.partition_key, v.partition_key)
    GROUP BY 1
    UNION ALL
    SELECT partition_key, 0 FROM trajectory.search_texts WHERE partition_key <= %(last)s GROUP BY 1
) old GROUP BY 1
"""

_RUNS: LiteralString = """
SELECT run_id FROM (
    SELECT run_id FROM trajectory.trajectories WHERE partition_key = %(key)s
    UNION SELECT run_id FROM trajectory.quarantine WHERE partition_key = %(key)s
    UNION SELECT run_id FROM trajectory.verdicts WHERE partition_key = %(key)s
    UNION SELECT run_id FROM trajectory.search_texts WHERE partition_key = %(key)s
) h WHERE NOT EXISTS (
    SELECT FROM trajectory.run_locations c WHERE c.run_id = h.run_id AND c.partition_key <> %(key)s
)
"""
"""The runs of a partition, without those that are in another one now, to which their verdicts belong."""


def pruned_partitions(database: TrajectoryDatabase, partition_keys: Sequence[str]) -> set[str]:
    """Return those of these partitions of which raw rows or trajectories were pruned.

    Whatever happens at the source, only an explicit materialization restores them.
    """
    if not partition_keys:
        return set()
    assets = [TERMINAL_RUNS.name, TRAJECTORIES.name]
    rows = database.rows(
        "SELECT DISTINCT partition_key FROM trajectory.partitions"
        " WHERE partition_key = ANY(%s) AND asset = ANY(%s) AND result = %s",
        [list(partition_keys), assets, PartitionResult.PRUNED],
    )
    return {row["partition_key"] for row in rows}


def old_trajectories(database: TrajectoryDatabase, last: str) -> dict[str, int]:
    """Return the number of rows (trajectories, verdicts, quarantine) of the partitions up to a key.

    Partitions that only the ledger knows have 0; those whose raw rows were never converted are included.
    """
    parameters = {
        "assets": [TRAJECTORIES.name, REFINED_OUTCOMES.name],
        "raw": TERMINAL_RUNS.name,
        "converted": TRAJECTORIES.name,
        "pruned": PartitionResult.PRUNED,
        "last": last,
    }
    rows = database.rows(_OLD_ROWS, parameters)
    return {row["partition_key"]: row["rows"] for row in rows}


def old_raw_rows(database: TrajectoryDatabase, last: str) -> list[str]:
    """Return the partitions up to a key whose raw rows are in the ledger."""
    rows = database.rows(
        "SELECT partition_key FROM trajectory.partitions WHERE asset = %s AND result <> %s AND partition_key <= %s",
        [TERMINAL_RUNS.name, PartitionResult.PRUNED, last],
    )
    return [row["partition_key"] for row in rows]


def remove_rows(partition: PartitionTransaction) -> int:
    """Remove a partition's trajectories, quarantine and verdicts; returns the number of rows. Search texts go too.

    Calls for its runs stay with their tokens and cost, labels with their values; both lose their texts.
    """
    key = {"key": partition.partition_key}
    connection = partition.connection
    with translating_database_errors(partition.url, f"Pruning {partition.partition_key}"):
        run_ids = [row[0] for row in connection.execute(_RUNS, key)]
        verdicts = connection.execute("DELETE FROM trajectory.verdicts WHERE run_id = ANY(%s)", [run_ids]).rowcount
        erase_attempts_of(connection, run_ids)
        erase_label_texts(connection, run_ids, changed_only=False)
        quarantined = connection.execute("DELETE FROM trajectory.quarantine WHERE partition_key = %(key)s", key)
        removed = partition.remove("t.partition_key = %s", key["key"])
        forget_failure_titles(connection)
        remove_texts(connection, run_ids)
        return verdicts + quarantined.rowcount + removed


def record_pruned(partition: PartitionTransaction, asset: str, *, known_only: bool = False) -> None:
    """Mark a partition of an asset as pruned in the ledger, and clear its invalidations.

    The other columns of the entry stay. With ``known_only``, no entry is made where there is none.
    """
    key = partition.partition_key
    connection = partition.connection
    with translating_database_errors(partition.url, f"Writing the ledger of {key}"):
        invalidations.clear_invalidations(connection, invalidations.invalidation_ids(connection, asset, key))
        if not known_only:
            connection.execute(
                "INSERT INTO trajectory.partitions (asset, partition_key, result, counts, content_digest,"
                " materialized_at, schema_version) VALUES (%s, %s, %s, '{}', %s, clock_timestamp(), %s)"
                " ON CONFLICT (asset, partition_key) DO NOTHING",
                [asset, key, PartitionResult.PRUNED, _EMPTY_DIGEST, SCHEMA_VERSION],
            )
        connection.execute(
            "UPDATE trajectory.partitions SET result = %s, materialized_at = clock_timestamp()"
            " WHERE asset = %s AND partition_key = %s AND result <> %s",
            [PartitionResult.PRUNED, asset, key, PartitionResult.PRUNED],
        )


def record_files_removed(partition: PartitionTransaction, asset: str) -> None:
    """Note that the files of a pruned partition are gone: its entry has no checksum of their rows any more."""
    with translating_database_errors(partition.url, f"Writing the ledger of {partition.partition_key}"):
        partition.connection.execute(
            "UPDATE trajectory.partitions SET rows_checksum = NULL WHERE asset = %s AND partition_key = %s",
            [asset, partition.partition_key],
        )


def remove_bookkeeping(database: TrajectoryDatabase, dagster_run_ids: Sequence[str]) -> None:
    """Remove what nothing reads any more: totals of Dagster runs that go, and reasons and locks that are void.

    Totals of searches and panels, which have no Dagster run, go after a week.

    Totals by day and organization stay, and so do the calls: what was spent can always be added up.
    """
    with database.connect() as connection, translating_database_errors(database.url, "Removing bookkeeping"):
        connection.execute(
            "DELETE FROM trajectory.spend_totals WHERE scope = 'materialization' AND (scope_key = ANY(%s)"
            " OR split_part(scope_key, ' ', 1) = ANY(%s) AND updated_at < now() - %s)",
            [list(dagster_run_ids), [PANEL, SEARCH], _OLD_TOTALS],
        )
        # Of a partition that is pruned even in part, they are not looked at: see ``INVALIDATED_PARTITIONS``.
        connection.execute(
            "DELETE FROM trajectory.invalidations i USING trajectory.partitions p"
            " WHERE p.partition_key = i.partition_key AND p.asset = ANY(%s) AND p.result = %s",
            [[TERMINAL_RUNS.name, TRAJECTORIES.name], PartitionResult.PRUNED],
        )
        # Left by killed workers.
        connection.execute("DELETE FROM trajectory.verdict_locks WHERE expires_at < now() - interval '1 day'")


def is_pruned(entries: Mapping[str, StoredEntry], partition_key: str) -> bool:
    """Whether a partition is pruned by an asset's ledger entries, or has none."""
    entry = entries.get(partition_key)
    return entry is None or entry.result == PartitionResult.PRUNED
