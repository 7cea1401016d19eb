"""What the agents of many runs were told, from the Parquet of ``trajectories``: a file is read once, not once a run."""

import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.judge.transcript.context import AgentContext
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.pipeline.documents import MissingDocumentError
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate

_MAX_CHARACTERS = 32 * 2**20
"""Of the texts that are held: beyond it, a file is read once more for the runs that are left."""
_COLUMNS = ["run_id", "context_digest", "context"]


class AgentContexts:
    """The contexts of trajectories that are about to be judged; may be asked from several threads."""

    def __init__(self, store: ParquetStore, candidates: Iterable[JudgingCandidate]) -> None:
        self._store = store
        self._wanted: dict[str, set[str]] = defaultdict(set)
        for candidate in candidates:
            if candidate.context_digest is not None:
                self._wanted[candidate.partition_key].add(candidate.run_id)
        self._digests: dict[str, str] = {}
        self._held: dict[str, AgentContext] = {}
        self._characters = 0
        self._lock = threading.Lock()

    def of(self, candidate: JudgingCandidate) -> AgentContext | None:
        """Return what the agent of a run was told; None where that is not known.

        Raises:
            MissingDocumentError: the file of its partition lacks it, or has another: it is to be materialized.
            SinkError: the file cannot be read.
        """
        digest = candidate.context_digest
        if digest is None:
            return None
        with self._lock:
            if self._digests.get(candidate.run_id) != digest or digest not in self._held:
                self._read(candidate)
            self._wanted[candidate.partition_key].discard(candidate.run_id)
            if self._digests.pop(candidate.run_id, None) != digest:
                what = f"what the agent of {candidate.run_id} was told is not in Parquet as Postgres has it"
                raise MissingDocumentError(candidate.run_id, candidate.partition_key, what)
            return self._held[digest]

    def _read(self, asked: JudgingCandidate) -> None:
        wanted = {asked.run_id, *self._wanted[asked.partition_key]}
        ids = pa.array(sorted(wanted), pa.string())
        if self._characters > _MAX_CHARACTERS:
            self._digests, self._held, self._characters = {}, {}, 0
        for batch in self._store.read(TRAJECTORIES, parse_partition_key(asked.partition_key), _COLUMNS):
            rows: Any = batch.filter(pc.is_in(batch.column("run_id"), value_set=ids))
            for row in rows.to_pylist():
                full = self._characters > _MAX_CHARACTERS and row["run_id"] != asked.run_id
                if row["context"] is not None and not full:
                    self._keep(row["run_id"], row["context_digest"], row["context"])

    def _keep(self, run_id: str, digest: str, context: dict[str, str | None]) -> None:
        if digest not in self._held:
            self._held[digest] = AgentContext(**context)
            self._characters += sum(len(text or "") for text in context.values())
        self._digests[run_id] = digest
