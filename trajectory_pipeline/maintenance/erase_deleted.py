"""Erases content that is deleted at the source from partitions that were captured with ``keep``, without the source."""

from collections.abc import Collection, Iterator
from datetime import datetime

import pyarrow as pa

from trajectory_pipeline.conversion.erase import count_kept, erase_deleted
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture_counts import DELETED_AND_KEPT
from trajectory_pipeline.pipeline.convert import TrajectoriesResult, materialize_trajectories
from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.ledger import partitions_counting
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry
from trajectory_pipeline.storage.storage import Storage


def partitions_to_erase(database: TrajectoryDatabase) -> dict[str, int]:
    """Return how many runs hold content that is deleted at the source, by partition key."""
    return partitions_counting(database, DELETED_AND_KEPT)


def erase_partition(
    hour: datetime, storage: Storage, *, dagster_run_id: str | None = None, only: Collection[str] | None = None
) -> TrajectoriesResult:
    """Erase a partition's content that is deleted at the source from every sink, without reading the source.

    ``only``: the content of these runs; None: of all.

    Raises:
        SinkError: a sink cannot be read or written; erasing again completes it.
        PipelineError: its raw rows were pruned, and only they tell what is deleted; or its deletions are withheld.
    """
    key = partition_key(hour)
    with storage.postgres.partition(TERMINAL_RUNS.name, key) as partition:
        entry = storage.postgres.ledger(TERMINAL_RUNS.name, [key])[key]
        if entry.result == PartitionResult.PRUNED:
            raise PipelineError(
                f"The raw rows of {key} were pruned, and only they tell what is deleted: materialize"
                " terminal_runs and trajectories of that partition, or prune its trajectories too"
                " (TRAJECTORY_RETENTION_DAYS)."
            )
        if key in storage.postgres.withheld_deletions():
            raise PipelineError(
                f"Deletions in {key} are withheld, so nothing is erased there: `trajectory-pipeline doctor` says why,"
                " and what to do."
            )
        kept = 0

        def rows() -> Iterator[pa.RecordBatch]:
            nonlocal kept
            for batch in storage.parquet.read(TERMINAL_RUNS, hour):
                erased = erase_deleted(batch, only)
                kept += count_kept(erased)
                yield erased

        with storage.parquet.stage(TERMINAL_RUNS, hour, rows()) as staged:
            partition.record(
                LedgerEntry(
                    asset=TERMINAL_RUNS.name,
                    partition_key=key,
                    result=entry.result,
                    counts={**entry.counts, DELETED_AND_KEPT: kept},
                    content_digest=staged.sha256,
                    schema_version=entry.schema_version,
                    fingerprint=entry.fingerprint,
                    snapshot_at=entry.snapshot_at,
                    dagster_run_id=dagster_run_id,
                    source_identity=entry.source_identity,
                    source_position=entry.source_position,
                )
            )
            partition.publish(staged)
    return materialize_trajectories(hour, storage, dagster_run_id=dagster_run_id)
