"""Texts by which trajectories are found, embedding models, and calls for embeddings.

The table of embeddings is not made here: its type needs the extension pgvector, which may be installed later. See
``storage.postgres.pgvector``.

Revision ID: 0013_search
Revises: 0012_quality
"""

from alembic import op

revision = "0013_search"
down_revision = "0012_quality"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.search_texts (
        run_id TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        text TEXT NOT NULL,
        rendering_version TEXT NOT NULL,
        text_digest TEXT NOT NULL,
        words TSVECTOR NOT NULL GENERATED ALWAYS AS (to_tsvector('pg_catalog.simple'::regconfig, text)) STORED,
        content_digest TEXT NOT NULL,
        verdict_key TEXT,
        rendered_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (run_id)
    )""",
    "CREATE INDEX ON trajectory.search_texts (partition_key)",
    "CREATE INDEX ON trajectory.search_texts USING gin (words)",
    """CREATE TABLE trajectory.embedding_models (
        model_id TEXT NOT NULL,
        name TEXT NOT NULL,
        base_url TEXT,
        weights_digest TEXT,
        dimensions BIGINT NOT NULL,
        is_current BOOLEAN NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (model_id)
    )""",
    "CREATE UNIQUE INDEX ON trajectory.embedding_models (is_current) WHERE is_current",
    # One call embeds texts of several runs.
    "ALTER TABLE trajectory.verdict_attempts ALTER COLUMN run_id DROP NOT NULL",
    "ALTER TABLE trajectory.verdict_attempts ALTER COLUMN verdict_key DROP NOT NULL",
    "ALTER TABLE trajectory.verdict_attempts ADD COLUMN texts BIGINT",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does: embeddings were paid for."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
