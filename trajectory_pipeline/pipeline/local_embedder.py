"""Embeds texts by a model that runs in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from trajectory_pipeline.pipeline.embed import EmbeddingStats, usable_embedding, usable_embeddings
from trajectory_pipeline.search.embedding_models import EmbeddingModel, Vector
from trajectory_pipeline.search.embedding_models.wordllama import load_wordllama, wordllama_model
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.embeddings import EmbeddingStore
from trajectory_pipeline.storage.postgres.pgvector import PgVector
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection

_TEXTS_AT_ONCE = 1000


def _by_wordllama(texts: Sequence[str]) -> Sequence[Vector]:
    return load_wordllama().embed(texts)


@dataclass(frozen=True)
class LocalEmbedder:
    """A model that costs nothing and can be asked again at any time: WordLlama, unless another one is given.

    Attributes:
        embed_texts: returns an embedding of each text.
    """

    model: EmbeddingModel = field(default_factory=wordllama_model)
    embed_texts: Callable[[Sequence[str]], Sequence[Vector]] = _by_wordllama

    @property
    def identity(self) -> str:
        """What decides which texts have an embedding."""
        return self.model.model_id

    def require_price(self) -> None:
        """Do nothing: it costs nothing."""

    def shortfall(self, connection: RetryingConnection) -> None:  # noqa: ARG002 - it costs nothing
        """Return no cap."""
        return

    def embed_query(self, database: TrajectoryDatabase, pgvector: PgVector, text: str) -> Vector:  # noqa: ARG002
        """Return the embedding of what is searched for.

        Raises:
            JudgeError: it has no direction, as that of a text without a word may.
        """
        return usable_embedding(self.embed_texts([text])[0])

    def embed(
        self,
        store: EmbeddingStore,
        database: TrajectoryDatabase,  # noqa: ARG002 - for models that are paid for
        partition_keys: Sequence[str],
        materialization_id: str,  # noqa: ARG002
        progress: Callable[[str], None],
    ) -> EmbeddingStats:
        """Embed the texts of partitions that have no embedding.

        Raises:
            SinkError: embeddings cannot be stored; what is stored stays.
        """
        stats = EmbeddingStats()
        wanted = store.wanted(partition_keys)
        waiting = iter(wanted)
        while texts := list(islice(waiting, _TEXTS_AT_ONCE)):
            distinct = {text.text_digest: text.text for text in texts}
            found = usable_embeddings(distinct, self.embed_texts(list(distinct.values())), is_retried=False)
            stats.count(found)
            store.save(texts, found)
            progress(f"{stats.embedded} of {len(wanted)} texts embedded")
        return stats
