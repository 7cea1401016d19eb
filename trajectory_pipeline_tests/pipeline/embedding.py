"""The stage ``trajectory_embeddings`` in tests, without Dagster."""

from datetime import datetime

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.pipeline.embed import Embedder, EmbeddingResult, EmbeddingRun
from trajectory_pipeline.pipeline.local_embedder import LocalEmbedder
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row

REDACTOR = Redactor(key=b"a key of tests")


def embedding_run(pipeline: Pipeline, embedder: Embedder | None = None, reason: str = "") -> EmbeddingRun:
    return EmbeddingRun(pipeline.storage, embedder, REDACTOR, disabled_reason=reason)


def embed(pipeline: Pipeline, *hours: datetime, embedder: Embedder | None = None) -> list[EmbeddingResult]:
    """Make texts and embeddings of partitions; by WordLlama unless another model is given."""
    run = embedding_run(pipeline, embedder or LocalEmbedder())
    run.embed_partitions(hours)
    return [run.publish(hour) for hour in hours]


def texts(pipeline: Pipeline) -> dict[str, Row]:
    return {row["run_id"]: row for row in pipeline.ask("SELECT * FROM trajectory.search_texts")}


def embeddings(pipeline: Pipeline) -> dict[str, Row]:
    rows = pipeline.ask("SELECT *, vector_dims(embedding) AS dimensions FROM trajectory.trajectory_embeddings")
    return {row["run_id"]: row for row in rows}
