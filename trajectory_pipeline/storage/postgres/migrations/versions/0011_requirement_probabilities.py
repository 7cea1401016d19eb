"""Probabilities of a decision endpoint, beside what judges say in words.

Revision ID: 0011_requirement_probabilities
Revises: 0010_judge_quality
"""

from alembic import op

revision = "0011_requirement_probabilities"
down_revision = "0010_judge_quality"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE trajectory.verdicts ADD COLUMN requirement_probabilities JSONB")


def downgrade() -> None:
    """Refuse: probabilities were paid for."""
    raise NotImplementedError("downgrading would drop probabilities that were paid for: restore a backup instead")
