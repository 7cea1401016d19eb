"""Quarantined verdicts are tried again after a day; those from before as well.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of quarantined verdicts when they are due."""
    op.execute(
        "UPDATE trajectory.verdicts SET failures = failures + 1, next_attempt_at = updated_at + interval '1 day'"
        " WHERE verdict_status = 'quarantined' AND next_attempt_at IS NULL"
    )


def downgrade() -> None:
    """Refuse: going back would drop what was paid for."""
    raise NotImplementedError("going back would drop trajectories and verdicts; restore a backup instead")
