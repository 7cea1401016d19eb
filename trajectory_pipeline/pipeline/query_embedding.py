"""The embedding of what is searched for, by the model that search uses."""

from collections.abc import Callable
from dataclasses import dataclass

from trajectory_pipeline.pipeline.embed import Embedder
from trajectory_pipeline.search.embedding_models import Vector
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.meaning_index import SearchedSpace, find_space


@dataclass(frozen=True)
class QueryEmbedding:
    """The embedding of a query; or None, and why only words can be searched, as a sentence."""

    vector: Vector | None
    reason: str = ""


def searched_space(database: TrajectoryDatabase) -> SearchedSpace:
    """Return what can be searched by meaning.

    Raises:
        SinkError: the database cannot be read.
    """
    with database.connect() as connection:
        return find_space(connection)


def embed_query(
    database: TrajectoryDatabase,
    embedder: Embedder | None,
    redact: Callable[[str], str],
    text: str,
    *,
    disabled_reason: str = "",
    searched: SearchedSpace | None = None,
) -> QueryEmbedding:
    """Return the embedding of a query by the model that search uses.

    Args:
        database: where it is searched.
        embedder: the model of the settings; None where there is none, for ``disabled_reason``.
        redact: replaces secrets in the query, as in the texts that are searched.
        text: the query.
        disabled_reason: why there is no embedder, as a sentence.
        searched: what ``searched_space`` returned lately; read where it is not given.

    Raises:
        PipelineError: the model cannot be asked, or gives no embedding.
    """
    space = searched or searched_space(database)
    if space.pgvector.missing:
        return QueryEmbedding(None, f"{space.pgvector.missing}.")
    if embedder is None:
        return QueryEmbedding(None, disabled_reason)
    if space.model is None:
        return QueryEmbedding(None, "No embedding is stored yet: materialize trajectory_embeddings.")
    if space.model.model_id != embedder.model.model_id:
        return QueryEmbedding(
            None,
            f"Search uses the embedding model {space.model.model_id}, and the settings name"
            f" {embedder.model.model_id}, which has not caught up yet: the embedding sensor requests what is missing.",
        )
    return QueryEmbedding(embedder.embed_query(database, space.pgvector, redact(text)))
