"""What else a partition depends on, so that one that nothing changed for is left alone.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; partitions from before are made anew once when they are asked for."""
    op.execute("ALTER TABLE trajectory.partitions ADD COLUMN inputs_digest TEXT, ADD COLUMN rows_checksum TEXT")


def downgrade() -> None:
    """Refuse: going back would drop what was paid for."""
    raise NotImplementedError("going back would drop trajectories and verdicts; restore a backup instead")
