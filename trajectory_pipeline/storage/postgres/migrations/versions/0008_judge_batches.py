"""Batches of calls at the judge's provider, and the batch that a call was a line of.

Revision ID: 0008_judge_batches
Revises: 0007_votes
"""

from alembic import op

revision = "0008_judge_batches"
down_revision = "0007_votes"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.judge_batches (
        batch_id TEXT NOT NULL,
        state TEXT NOT NULL,
        policy_id TEXT NOT NULL,
        model TEXT NOT NULL,
        base_url TEXT NOT NULL,
        options JSONB NOT NULL,
        materialization_id TEXT NOT NULL,
        sha256 TEXT,
        bytes BIGINT,
        lines BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        input_file_id TEXT,
        provider_batch_id TEXT,
        provider_status TEXT,
        output_file_id TEXT,
        error_file_id TEXT,
        completed BIGINT,
        failed BIGINT,
        counts JSONB,
        reserved_usd NUMERIC(18, 9),
        booked_usd NUMERIC(18, 9),
        token_limit BIGINT,
        note TEXT,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        submitted_at TIMESTAMP WITH TIME ZONE,
        polled_at TIMESTAMP WITH TIME ZONE,
        ended_at TIMESTAMP WITH TIME ZONE,
        files_deleted_at TIMESTAMP WITH TIME ZONE,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (batch_id)
    )""",
    "CREATE INDEX judge_batches_state_idx ON trajectory.judge_batches (state)",
    "ALTER TABLE trajectory.verdict_attempts ADD COLUMN batch_id TEXT",
    "CREATE INDEX verdict_attempts_batch_id_idx ON trajectory.verdict_attempts (batch_id)",
)


def upgrade() -> None:
    """Add the table, the column and their indexes."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: batches that run would be sent, and paid for, again."""
    raise NotImplementedError("downgrading would forget batches that are paid for: restore a backup instead")
