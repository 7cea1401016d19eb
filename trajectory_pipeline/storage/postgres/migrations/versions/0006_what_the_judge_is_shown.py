"""What a judge said of a failure and of what is to be learnt, in how many prompts, and the key of placeholders.

Revision ID: 0006
Revises: 0005
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """ALTER TABLE trajectory.verdicts
        ADD COLUMN failure JSONB,
        ADD COLUMN learning JSONB,
        ADD COLUMN windows BIGINT,
        ADD COLUMN shown_sha256 TEXT""",
    """CREATE TABLE trajectory.redaction_keys (
        name TEXT NOT NULL,
        secret TEXT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (name)
    )""",
)


def upgrade() -> None:
    """Add the columns and the table."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: going back would drop what was paid for."""
    raise NotImplementedError("going back would drop trajectories and verdicts; restore a backup instead")
