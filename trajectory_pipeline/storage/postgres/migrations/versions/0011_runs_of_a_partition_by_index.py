"""Which runs were seen last in a partition is asked whenever it is read.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.execute("CREATE INDEX ix_captured_runs_partition_key ON trajectory.run_locations (partition_key)")


def downgrade() -> None:
    """Refuse: going back would drop what was paid for."""
    raise NotImplementedError("going back would drop trajectories and verdicts; restore a backup instead")
