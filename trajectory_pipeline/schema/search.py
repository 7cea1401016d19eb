"""What search reads: a text of each trajectory, embedding models, and embeddings of these texts."""

from trajectory_pipeline.schema.types import (
    BOOL,
    INT,
    STRING,
    TIMESTAMP,
    VECTOR,
    WORDS,
    Column,
    Table,
    postgres_only,
)

_EMBEDDED = "it has an embedding"
_TENANTS = (
    Column("organization_id", STRING, "The trajectory's organization, kept by triggers.", null="it has none"),
    Column("agent_id", STRING, "The trajectory's agent, kept by triggers.", null="there is no trajectory"),
)

SEARCH_TEXTS = Table(
    name="search_texts",
    description="The text by which each trajectory is found: task, summary and lesson where judged, tools, errors;"
    " redacted.",
    row="one run",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column("partition_key", STRING, "Dagster's partition key of the trajectory."),
        Column("text", STRING, "The text; each part begins with its name."),
        Column("rendering_version", STRING, "Versions of rendering and redaction."),
        Column("text_digest", STRING, "SHA-256 (hex) of the text."),
        Column(
            "words", WORDS, "Words of the text, lower-cased, in no particular language: `to_tsvector('simple', …)`."
        ),
        Column("content_digest", STRING, "`content_digest` of the trajectory that it was made from."),
        Column("verdict_key", STRING, "The verdict with the summary and lesson in it.", null="not judged"),
        Column("rendered_at", TIMESTAMP, "When the text last changed."),
        *_TENANTS,
    ),
    indexes=(("partition_key",), ("organization_id",), ("agent_id",)),
)

EMBEDDING_MODELS = Table(
    name="embedding_models",
    description="Embedding models in use now or before. Embeddings of several models are kept beside each other.",
    row="one model",
    columns=postgres_only(
        Column("model_id", STRING, "Name, and the first 12 hex digits of the SHA-256 of what defines it.", key=True),
        Column("name", STRING, "The model's name."),
        Column("base_url", STRING, "Endpoint that is asked, without credentials.", null="it runs in this process"),
        Column("weights_digest", STRING, "SHA-256 (hex) of its weights.", null="the endpoint does not tell"),
        Column("dimensions", INT, "Numbers of an embedding.", unit="numbers"),
        Column("is_current", BOOL, "Whether search uses it: a changed model has to catch up first."),
        Column("created_at", TIMESTAMP, "When its first embedding was stored."),
    ),
)

TRAJECTORY_EMBEDDINGS = Table(
    name="trajectory_embeddings",
    description="Embeddings of search texts, by model. The table is there where the extension pgvector is.",
    row="one run and model",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column("model_id", STRING, "The model: see `embedding_models`.", key=True),
        Column("partition_key", STRING, "Dagster's partition key of the trajectory."),
        Column("text_digest", STRING, "`text_digest` of the text that was embedded."),
        Column("rendering_version", STRING, "`rendering_version` of that text."),
        Column(
            "embedding",
            VECTOR,
            "The embedding in the model's own dimensions, scaled to length 1.",
            null="the model gave none for this text: see `error_message`",
        ),
        Column("embedded_at", TIMESTAMP, "When it was stored."),
        Column("error_class", STRING, "Why there is none: see [error classes](#error-classes).", null=_EMBEDDED),
        Column("error_message", STRING, "The error as a sentence.", null=_EMBEDDED),
        Column("failures", INT, "Times in a row that the model gave none for this text.", unit="times"),
        Column(
            "next_attempt_at",
            TIMESTAMP,
            "When it is tried again.",
            null=f"{_EMBEDDED}, or trying again would not help",
        ),
        *_TENANTS,
    ),
    indexes=(("partition_key",), ("model_id", "text_digest"), ("organization_id",), ("agent_id",)),
    extension="vector",
)
