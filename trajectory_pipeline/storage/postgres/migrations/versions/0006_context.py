"""What the judge is shown beside the transcript: the digest of a run's context, and how much of it a verdict rests on.

Revision ID: 0006_context
Revises: 0005_labels
"""

from alembic import op

revision = "0006_context"
down_revision = "0005_labels"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE trajectory.trajectories ADD COLUMN context_digest TEXT",
    "ALTER TABLE trajectory.verdicts ADD COLUMN context_coverage JSONB",
    "CREATE INDEX ix_trajectories_agent_id_conversation_id_start_time ON trajectory.trajectories"
    " (agent_id, conversation_id, start_time)",
)


def upgrade() -> None:
    """Add the columns, and the index by which the earlier runs of a conversation are found."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: without them, it would be forgotten what verdicts rest on."""
    raise NotImplementedError("downgrading would forget what verdicts rest on: restore a backup instead")
