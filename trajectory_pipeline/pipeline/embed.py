"""The asset ``trajectory_embeddings``: a search text of each trajectory of a partition, and its embedding.

Texts are made with or without verdicts, and again when a verdict arrives. What has not changed is not embedded again.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import uuid4

from trajectory_pipeline.budget.caps import BudgetShortfall
from trajectory_pipeline.errors import JudgeError, PipelineError
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.judging_stats import JudgingStats
from trajectory_pipeline.pipeline.search_texts import render_stale_texts, rendering_version
from trajectory_pipeline.pipeline.search_upkeep import keep_search
from trajectory_pipeline.schema.enums import ErrorClass, PartitionResult
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.search.embedding_models import EmbeddingModel, Vector, unit_vector
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.embeddings import EmbeddingStore, FailedText
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry, StoredEntry
from trajectory_pipeline.storage.postgres.pgvector import PgVector, ensure_embeddings_table
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection
from trajectory_pipeline.storage.postgres.search_texts import count_texts, mark_if_stale, mark_stale_continuations
from trajectory_pipeline.storage.storage import Storage


@dataclass
class EmbeddingStats(JudgingStats):
    """What asking for embeddings did: the calls as for judging, and the texts.

    Attributes:
        embedded: texts for which the model was asked, and gave an embedding.
        refused: texts that may not be sent, by the access lists.
    """

    embedded: int = 0
    refused: int = 0

    def count(self, found: Mapping[str, Vector | FailedText]) -> None:
        """Count what ``usable_embeddings`` found."""
        self.embedded += sum(not isinstance(one, FailedText) for one in found.values())

    def add(self, other: JudgingStats) -> None:
        """Count what another one did as well."""
        super().add(other)
        if isinstance(other, EmbeddingStats):
            self.embedded += other.embedded
            self.refused += other.refused


class Embedder(Protocol):
    """A model that embeds texts, and stores each embedding as soon as it is there."""

    @property
    def model(self) -> EmbeddingModel:
        """The model."""
        ...

    @property
    def identity(self) -> str:
        """What decides which texts have an embedding: where it changes, all partitions are looked at again."""
        ...

    def require_price(self) -> None:
        """Raise JudgeError where it has no known price, and that is not allowed."""
        ...

    def shortfall(self, connection: RetryingConnection) -> BudgetShortfall | None:
        """Return the cap that has no headroom today for the smallest call; None where there is none."""
        ...

    def embed_query(self, database: TrajectoryDatabase, pgvector: PgVector, text: str) -> Vector:
        """Return the embedding of what is searched for, of length 1.

        Raises:
            PipelineError: the model cannot be asked, or gives none.
        """
        ...

    def embed(
        self,
        store: EmbeddingStore,
        database: TrajectoryDatabase,
        partition_keys: Sequence[str],
        materialization_id: str,
        progress: Callable[[str], None],
    ) -> EmbeddingStats:
        """Embed the texts of partitions that have no embedding, as far as the budget goes.

        Raises:
            PipelineError: the model cannot be asked, or its embeddings cannot be stored; what is stored stays.
        """
        ...


@dataclass
class EmbeddingResult:
    """What a partition holds.

    Attributes:
        texts: trajectories with a text that is not empty; ``texts_digest`` is a digest of these.
        embedded: those of them with an embedding of the model.
        failed: those for which the model gave none.
        denied: those that may not be sent to the model, by the access lists.
        pending: those that were not asked for yet, such as where a budget is used up.
        model_id: of the model; None where there is none.
        is_searched: whether search uses the model: a changed one has to catch up first.
        reason: why there are no embeddings, as a sentence; empty where there are.
        errors: why a text has no embedding, by run.
    """

    texts: int
    texts_digest: str
    embedded: int = 0
    failed: int = 0
    denied: int = 0
    pending: int = 0
    model_id: str | None = None
    is_searched: bool = False
    reason: str = ""
    errors: dict[str, str] = field(default_factory=dict)


@dataclass
class EmbeddingRun:
    """Makes texts and embeddings of partitions together, so that one call takes texts of several.

    Attributes:
        embedder: the model; None for texts alone, by which words are found.
        disabled_reason: why there is no model, as a sentence.
        redactor: replaces secrets, as it does for the judge.
        dagster_run_id: for the ledger; all partitions of a Dagster run are one materialization to the budget.
        progress: takes a progress line now and then.
    """

    storage: Storage
    embedder: Embedder | None
    redactor: Redactor
    disabled_reason: str = ""
    dagster_run_id: str | None = None
    progress: Callable[[str], None] = field(default=lambda _: None, repr=False)

    def __post_init__(self) -> None:
        self.stats = EmbeddingStats()
        """What all partitions together took."""
        self.rendered = 0
        self.reused = 0
        self._pgvector = PgVector(None)
        self._inputs: dict[str, tuple[StoredEntry, str]] = {}
        self._failures: dict[str, Exception] = {}

    def embed_partitions(self, hours: Sequence[datetime]) -> None:
        """Make the texts and embeddings that are missing or stale.

        An error that keeps a partition from being completed is raised by its ``publish``.

        Raises:
            SinkError: the database cannot be read or written.
        """
        database, keys = self.storage.postgres, list(map(partition_key, hours))
        with database.connect() as connection:
            self._pgvector = ensure_embeddings_table(connection)
        # Read first: what changes from here on makes the partition stale.
        converted, judged = database.ledger(TRAJECTORIES.name, keys), database.ledger(REFINED_OUTCOMES.name, keys)
        identity = stored_identity(self.embedder, self._pgvector)
        for key in keys:
            entry = converted.get(key)
            if entry is None or entry.result == PartitionResult.PRUNED:
                self._failures[key] = PipelineError(
                    f"There are no trajectories of {key}: materialize trajectories of that partition first."
                )
                continue
            digest = inputs_digest(rendering_version(self.redactor), identity, judged.get(key))
            self._inputs[key] = entry, digest
        keys = list(self._inputs)
        with database.retrying() as connection:
            self.rendered = render_stale_texts(connection, self.storage.parquet, keys, self.redactor)
            mark_stale_continuations(connection, keys)
            if self.embedder is None or self._pgvector.schema is None or not keys:
                return
            store = EmbeddingStore(connection, self._pgvector, self.embedder.model)
            self.reused = store.reuse(keys)
            try:
                self.stats = self.embedder.embed(
                    store, database, keys, self.dagster_run_id or str(uuid4()), self.progress
                )
            except PipelineError as error:
                # Texts are stored, so that words are found; what is missing is asked for again.
                self._failures |= dict.fromkeys(keys, error)
            store.make_current()
        keep_search(database)

    def publish(self, hour: datetime) -> EmbeddingResult:
        """Record what a partition holds in the ledger, and return it.

        Raises:
            SinkError: the database cannot be read or written.
            PipelineError: the model could not be asked; texts are stored, and embeddings so far.
        """
        key = partition_key(hour)
        if key not in self._inputs:
            raise self._failures[key]
        result = self._result(key)
        entry, digest = self._inputs[key]
        with self.storage.postgres.partition(TRAJECTORY_EMBEDDINGS.name, key) as partition:
            partition.record(
                LedgerEntry(
                    asset=TRAJECTORY_EMBEDDINGS.name,
                    partition_key=key,
                    result=PartitionResult.COMPLETE,
                    counts={
                        name: getattr(result, name) for name in ("texts", "embedded", "failed", "denied", "pending")
                    },
                    content_digest=result.texts_digest,
                    schema_version=SCHEMA_VERSION,
                    upstream_digest=entry.content_digest,
                    dagster_run_id=self.dagster_run_id,
                    inputs_digest=digest,
                )
            )
            mark_if_stale(partition.connection, key)
        if key in self._failures:
            raise self._failures[key]
        return result

    def _result(self, key: str) -> EmbeddingResult:
        with self.storage.postgres.retrying() as connection:
            texts, texts_digest = count_texts(connection, key)
            if self.embedder is None or self._pgvector.schema is None:
                reason = self.disabled_reason if self.embedder is None else f"{self._pgvector.missing}."
                return EmbeddingResult(texts, texts_digest, reason=reason)
            store = EmbeddingStore(connection, self._pgvector, self.embedder.model)
            counts = store.counts(key)
            return EmbeddingResult(
                texts,
                texts_digest,
                embedded=counts["embedded"],
                failed=counts["failed"],
                denied=counts["denied"],
                pending=texts - sum(counts.values()),
                model_id=store.model.model_id,
                is_searched=store.is_current(),
                errors=store.failed([key]),
            )


def usable_embeddings(
    text_digests: Iterable[str], embeddings: Iterable[Sequence[float] | Vector], *, is_retried: bool
) -> dict[str, Vector | FailedText]:
    """Return the embedding of each text, of length 1, or why it has none; there is one for each digest.

    ``is_retried`` says whether the model may give another one when it is asked again.
    """
    found: dict[str, Vector | FailedText] = {}
    for digest, numbers in zip(text_digests, embeddings, strict=True):
        unit = unit_vector(numbers)
        if isinstance(unit, str):
            found[digest] = FailedText(ErrorClass.OUT_OF_RANGE, f"The embedding is unusable: {unit}.", is_retried)
        else:
            found[digest] = unit
    return found


def usable_embedding(embedding: Sequence[float] | Vector) -> Vector:
    """Return the embedding of what is searched for, of length 1.

    Raises:
        JudgeError: it has no direction, as that of a text without a word may.
    """
    unit = unit_vector(embedding)
    if isinstance(unit, str):
        raise JudgeError(f"The embedding of what is searched for is unusable: {unit}.")
    return unit


def stored_identity(embedder: Embedder | None, pgvector: PgVector) -> str:
    """Return the identity of the model whose embeddings can be stored; empty where there is none."""
    return "" if embedder is None or pgvector.schema is None else embedder.identity


def inputs_digest(version: str, identity: str, judged: StoredEntry | None) -> str:
    """Return what a partition's texts and embeddings depend on beside its trajectories.

    ``storage.postgres.embedding_status`` computes it in SQL.
    """
    return hashlib.sha256("\n".join((version, identity, judged.content_digest if judged else "")).encode()).hexdigest()
