"""Erasing the texts of verdicts whose runs were erased, in Postgres and in the Parquet of ``refined_outcomes``.

Belongs here: what follows for verdicts when trajectories of a partition are erased. Does not belong here: which texts
(``storage.postgres.erasure``).
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime

import pyarrow as pa

from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.types import Sink
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES, VERDICTS
from trajectory_pipeline.storage.parquet.store import ParquetStore, WrittenFile
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.erasure import (
    KEPT_OF_VERDICT,
    erase_verdicts_that_showed,
    erased_runs,
    record_rewritten,
    texts_of,
    verdicts_that_showed,
)
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction

_EMPTIED = frozenset(texts_of(VERDICTS, KEPT_OF_VERDICT)) & frozenset(REFINED_OUTCOMES.names(Sink.PARQUET))

Keys = set[tuple[str, str]]


def erase_verdicts(partition: PartitionTransaction, store: ParquetStore) -> int:
    """Erase the texts of all verdicts that showed a run of this partition before it was erased.

    In Postgres with the partition's transaction; Parquet is rewritten before it is committed, so that a crash in
    between leaves the partition as it was, to be materialised again.

    Args:
        partition: whose trajectories are merged and not yet committed.
        store: where the files of ``refined_outcomes`` are.

    Returns:
        Verdicts without texts.

    Raises:
        SinkError: a sink cannot be read or written.
    """
    with translating_database_errors(
        partition.url, f"Looking for verdicts on erased runs of {partition.partition_key}"
    ):
        run_ids = erased_runs(partition.connection, partition.partition_key)
        if not run_ids:
            return 0
        showing = verdicts_that_showed(partition.connection, run_ids)
    by_partition: dict[str, Keys] = defaultdict(set)
    for verdict in showing:
        for key in verdict.partition_keys:
            by_partition[key].add((verdict.run_id, verdict.verdict_key))
    # Held to the commit, and taken before any row is: who writes these files meanwhile reads the verdicts as they are
    # afterwards.
    for key in sorted(by_partition):
        partition.lock(REFINED_OUTCOMES.name, key)
    with translating_database_errors(partition.url, f"Erasing verdicts on runs of {partition.partition_key}"):
        erase_verdicts_that_showed(partition.connection, run_ids)
    for key in sorted(by_partition):
        written = _rewrite(parse_partition_key(key), by_partition[key], store)
        if written is not None:
            with translating_database_errors(partition.url, f"Writing the ledger of {key}"):
                record_rewritten(partition.connection, REFINED_OUTCOMES.name, key, written.sha256)
    return len(showing)


def _rewrite(hour: datetime, keys: Keys, store: ParquetStore) -> WrittenFile | None:
    """Take the texts of these verdicts out of a partition's file, if it holds any."""
    rows = (row for batch in store.read(REFINED_OUTCOMES, hour) for row in batch.to_pylist())
    if any(_holds(row) for row in rows if (row["run_id"], row["verdict_key"]) in keys):
        return store.write(REFINED_OUTCOMES, hour, _without_texts(store.read(REFINED_OUTCOMES, hour), keys))
    return None


def _holds(row: dict[str, object]) -> bool:
    return any(row[name] is not None for name in _EMPTIED)


def _without_texts(batches: Iterator[pa.RecordBatch], keys: Keys) -> Iterator[pa.RecordBatch]:
    nothing = {**dict.fromkeys(_EMPTIED), "erased": True}
    for batch in batches:
        rows = [{**row, **nothing} if (row["run_id"], row["verdict_key"]) in keys else row for row in batch.to_pylist()]
        yield pa.RecordBatch.from_pylist(rows, schema=arrow_schema(REFINED_OUTCOMES))
