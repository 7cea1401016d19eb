"""Erases the texts of verdicts and labels whose runs were erased; of verdicts also in ``refined_outcomes``."""

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
    RETAINED_VERDICT_COLUMNS,
    erasable_columns,
    erase_messages_of_embedding_calls,
    erase_verdicts_that_showed,
    erased_runs,
    record_rewritten,
    verdicts_that_showed,
)
from trajectory_pipeline.storage.postgres.failure_modes import forget_failure_titles
from trajectory_pipeline.storage.postgres.labels import erase_label_texts
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline.storage.postgres.search_texts import remove_erased_texts

_TEXT_COLUMNS = frozenset(erasable_columns(VERDICTS, RETAINED_VERDICT_COLUMNS)) & frozenset(
    REFINED_OUTCOMES.names(Sink.PARQUET)
)

Keys = set[tuple[str, str]]


def erase_verdicts(partition: PartitionTransaction, store: ParquetStore) -> int:
    """Erase the texts of all verdicts that showed a run of this partition before it was erased, and of its labels.

    Failure modes lose the titles that came from these, and search texts with their embeddings are removed.

    Postgres changes in the partition's transaction. Parquet is rewritten before the commit: after a crash in between,
    the partition is as before, and materializing it again erases the texts again.

    Returns:
        How many verdicts are without texts.

    Raises:
        SinkError: a sink cannot be read or written.
    """
    with translating_database_errors(
        partition.url, f"Looking for verdicts on erased runs of {partition.partition_key}"
    ):
        run_ids = erased_runs(partition.connection, partition.partition_key)
        if not run_ids:
            return 0
        erase_label_texts(partition.connection, run_ids, changed_only=True)
        shown_in = verdicts_that_showed(partition.connection, run_ids)
    by_partition: dict[str, Keys] = defaultdict(set)
    for verdict in shown_in:
        for key in verdict.partition_keys:
            by_partition[key].add((verdict.run_id, verdict.verdict_key))
    # Held to the commit, and taken before any row lock: whoever writes these files afterwards reads erased verdicts.
    for key in sorted(by_partition):
        partition.lock(REFINED_OUTCOMES.name, key)
    with translating_database_errors(partition.url, f"Erasing verdicts on runs of {partition.partition_key}"):
        erase_verdicts_that_showed(partition.connection, run_ids)
        forget_failure_titles(partition.connection)
        remove_erased_texts(partition.connection, run_ids)
        erase_messages_of_embedding_calls(partition.connection)
    for key in sorted(by_partition):
        written = _rewrite(parse_partition_key(key), by_partition[key], store)
        if written is not None:
            with translating_database_errors(partition.url, f"Writing the ledger of {key}"):
                record_rewritten(partition.connection, REFINED_OUTCOMES.name, key, written.sha256)
    return len(shown_in)


def _rewrite(hour: datetime, keys: Keys, store: ParquetStore) -> WrittenFile | None:
    """Rewrite a partition's file without the texts of these verdicts, if it holds any."""
    rows = (row for batch in store.read(REFINED_OUTCOMES, hour) for row in batch.to_pylist())
    shown = (row for row in rows if (row["run_id"], row["verdict_key"]) in keys)
    if any(row[name] is not None for row in shown for name in _TEXT_COLUMNS):
        return store.write(REFINED_OUTCOMES, hour, _without_texts(store.read(REFINED_OUTCOMES, hour), keys))
    return None


def _without_texts(batches: Iterator[pa.RecordBatch], keys: Keys) -> Iterator[pa.RecordBatch]:
    erased = {**dict.fromkeys(_TEXT_COLUMNS), "erased": True}
    for batch in batches:
        rows = [{**row, **erased} if (row["run_id"], row["verdict_key"]) in keys else row for row in batch.to_pylist()]
        yield pa.RecordBatch.from_pylist(rows, schema=arrow_schema(REFINED_OUTCOMES))
