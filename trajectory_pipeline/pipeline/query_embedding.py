"""The embedding of what is searched for, by the model that search uses."""

from dataclasses import dataclass

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.pipeline.embed import Embedder
from trajectory_pipeline.search.embedding_models import Vector
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.embeddings import EmbeddingStore, current_model
from trajectory_pipeline.storage.postgres.pgvector import find_pgvector


@dataclass(frozen=True)
class QueryEmbedding:
    """The embedding of a query; or None, and why only words can be searched, as a sentence."""

    vector: Vector | None
    reason: str = ""


def embed_query(
    database: TrajectoryDatabase, embedder: Embedder | None, redactor: Redactor, text: str, *, disabled_reason: str = ""
) -> QueryEmbedding:
    """Return the embedding of a query by the model that search uses.

    ``embedder`` is the model of the settings; None where there is none, for ``disabled_reason``. Secrets are replaced
    in the query as in the texts that are searched.

    Raises:
        PipelineError: the model cannot be asked, or gives no embedding.
    """
    with database.connect() as connection:
        pgvector = find_pgvector(connection)
    if pgvector.schema is None:
        return QueryEmbedding(None, f"{pgvector.missing}.")
    searched = current_model(database)
    if embedder is None:
        return QueryEmbedding(None, disabled_reason)
    if searched is None:
        return QueryEmbedding(None, "No embedding is stored yet: materialize trajectory_embeddings.")
    if searched["model_id"] != embedder.model.model_id:
        return QueryEmbedding(
            None,
            f"Search uses the embedding model {searched['model_id']}, and the settings name"
            f" {embedder.model.model_id}, which has not caught up yet: the embedding sensor requests what is missing.",
        )
    with database.retrying() as connection:
        store = EmbeddingStore(connection, pgvector, embedder.model)
        return QueryEmbedding(embedder.embed_query(store, database, redactor(text)))
