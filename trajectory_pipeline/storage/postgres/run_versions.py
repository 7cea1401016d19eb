"""What raw rows were made of, and which changed since trajectories were made of them: the table ``run_versions``."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg.rows import dict_row

from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction

Versions = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class RunVersions:
    """An entry; see ``schema.bookkeeping.RUN_VERSIONS``. ``reference_run_ids`` are set by ``record_reference_runs``."""

    raw_digest: str
    scope: str
    versions: Versions
    base_digest: str | None
    changed_run_ids: Sequence[str] | None
    reference_run_ids: Sequence[str] | None = None

    def changed_since(self, raw_digest: str | None) -> Sequence[str] | None:
        """Return the runs whose raw rows differ from those of another file; None where that is not known."""
        if raw_digest == self.raw_digest:
            return ()
        return None if raw_digest is None or raw_digest != self.base_digest else self.changed_run_ids


def stored_versions(partition: PartitionTransaction) -> RunVersions | None:
    """Return a partition's entry; None where there is none."""
    with (
        translating_database_errors(partition.url, f"Reading the versions of {partition.partition_key}"),
        partition.connection.cursor(row_factory=dict_row) as cursor,
    ):
        row = cursor.execute(
            "SELECT raw_digest, scope, versions, base_digest, changed_run_ids, reference_run_ids"
            " FROM trajectory.run_versions WHERE partition_key = %s",
            [partition.partition_key],
        ).fetchone()
    if row is None:
        return None
    return RunVersions(**{**row, "versions": np.frombuffer(base64.b64decode(row["versions"]), "<i8")})


def record_versions(partition: PartitionTransaction, entry: RunVersions) -> None:
    """Write a partition's entry, in its transaction; the runs that the reference converted stay as they are."""
    with translating_database_errors(partition.url, f"Writing the versions of {partition.partition_key}"):
        partition.connection.execute(
            "INSERT INTO trajectory.run_versions (partition_key, raw_digest, scope, versions, base_digest,"
            " changed_run_ids) VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (partition_key) DO UPDATE SET"
            " (raw_digest, scope, versions, base_digest, changed_run_ids) = ROW(EXCLUDED.raw_digest, EXCLUDED.scope,"
            " EXCLUDED.versions, EXCLUDED.base_digest, EXCLUDED.changed_run_ids)",
            [
                partition.partition_key,
                entry.raw_digest,
                entry.scope,
                base64.b64encode(entry.versions.astype("<i8").tobytes()).decode(),
                entry.base_digest,
                None if entry.changed_run_ids is None else list(entry.changed_run_ids),
            ],
        )


def record_reference_runs(partition: PartitionTransaction, run_ids: Sequence[str]) -> None:
    """Note, where the partition has an entry, which of its runs the reference converter converted."""
    with translating_database_errors(partition.url, f"Writing the versions of {partition.partition_key}"):
        partition.connection.execute(
            "UPDATE trajectory.run_versions SET reference_run_ids = %(ids)s WHERE partition_key = %(key)s"
            " AND reference_run_ids IS DISTINCT FROM %(ids)s::text[]",
            {"ids": list(run_ids), "key": partition.partition_key},
        )
