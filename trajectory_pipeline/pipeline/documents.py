"""Trajectory documents by run: from Postgres, or from Parquet where ``jsonb`` cannot hold one."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow.compute as pc

from trajectory_pipeline.conversion.document import trajectory_document
from trajectory_pipeline.judge.transcript.context import Document, StoredDocument
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.pipeline.micro_batcher import MicroBatcher
from trajectory_pipeline.schema.arrow import rows_of
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore

_Shown = TypeVar("_Shown", Document, StoredDocument)


class MissingDocumentError(Exception):
    """The document of a run is in neither sink: its partition is to be materialized."""

    def __init__(self, run_id: str, partition_key: str, what: str | None = None) -> None:
        what = what or f"the document of {run_id} is neither in Postgres nor in Parquet"
        super().__init__(f"{what}: materialize trajectories of {partition_key}")
        self.run_id = run_id
        self.partition_key = partition_key


def find_row(store: ParquetStore, table: Table, run_id: str, partition_key: str) -> dict[str, Any] | None:
    """Return a run's row from the file of its partition; None if it is not there.

    Raises:
        SinkError: the file cannot be read.
    """
    wanted: Any = run_id
    for batch in store.read(table, parse_partition_key(partition_key)):
        found = rows_of(batch.filter(pc.equal(batch.column("run_id"), wanted)))
        if found:
            return found[0]
    return None


def shown_documents(
    run_ids: Sequence[str],
    partition_key: str,
    rows: Mapping[str, tuple[_Shown | None, str]],
    store: ParquetStore,
) -> list[_Shown]:
    """Return the documents of the runs that a judge is shown for one trajectory, in that order.

    ``rows`` has what Postgres holds of them: the document (None if ``jsonb`` cannot hold it) and its partition key. A
    document that it lacks is looked up in Parquet; of a run that it does not know, in the partition of the trajectory.

    Raises:
        MissingDocumentError: one of them is in neither sink.
        SinkError: a file cannot be read.
    """
    documents: list[_Shown] = []
    for run_id in run_ids:
        document, key = rows.get(run_id, (None, partition_key))
        if document is None:
            row = find_row(store, TRAJECTORIES, run_id, key)
            if row is None:
                raise MissingDocumentError(run_id, key)
            document = trajectory_document(row)
        documents.append(document)
    return documents


_Found = tuple[str | None, str] | None
"""The text of a document and its partition key."""
_Row = Callable[[str], Awaitable[_Found]]


class DocumentLoader:
    """Loads documents for many trajectories at once; look-ups that arrive together share one query.

    The lock is held while the connection of ``verdicts`` is used.
    """

    def __init__(self, store: ParquetStore, verdicts: VerdictStore, connection_lock: asyncio.Lock) -> None:
        self._store = store
        self._verdicts = verdicts
        self._row = MicroBatcher[str, _Found](connection_lock, self._rows)
        self._spoken_row = MicroBatcher[str, _Found](connection_lock, self._spoken_rows)

    async def of_task(self, candidate: JudgingCandidate) -> list[StoredDocument]:
        """Return the documents of the runs of a trajectory's task: see ``shown_documents``."""
        return await self._load(candidate.task_run_ids, candidate, self._row)

    async def of_conversation(self, candidate: JudgingCandidate) -> list[StoredDocument]:
        """Return the documents of earlier runs of its conversation, which may lack what tools returned."""
        return await self._load(candidate.conversation_run_ids, candidate, self._spoken_row)

    async def _load(self, run_ids: Sequence[str], candidate: JudgingCandidate, row: _Row) -> list[StoredDocument]:
        found = await asyncio.gather(*map(row, run_ids))
        rows = {run_id: row for run_id, row in zip(run_ids, found, strict=True) if row is not None}

        def shown() -> list[StoredDocument]:
            return shown_documents(run_ids, candidate.partition_key, rows, self._store)

        if all(row is not None and row[0] is not None for row in found):
            return shown()
        # Files are read off the loop, which has responses to handle.
        return await asyncio.to_thread(shown)

    def _rows(self, run_ids: Sequence[str]) -> list[_Found]:
        found = self._verdicts.documents(run_ids)
        return [found.get(run_id) for run_id in run_ids]

    def _spoken_rows(self, run_ids: Sequence[str]) -> list[_Found]:
        found = self._verdicts.spoken_documents(run_ids)
        return [found.get(run_id) for run_id in run_ids]
