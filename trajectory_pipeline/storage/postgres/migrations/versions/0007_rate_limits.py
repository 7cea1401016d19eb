"""A limit of calls and tokens a minute that all workers share.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.execute(
        """CREATE TABLE trajectory.rate_limits (
            base_url TEXT NOT NULL,
            model TEXT NOT NULL,
            next_at TIMESTAMP WITH TIME ZONE NOT NULL,
            PRIMARY KEY (base_url, model)
        )"""
    )


def downgrade() -> None:
    """Take it away again: nothing in it outlasts a minute."""
    op.execute("DROP TABLE trajectory.rate_limits")
