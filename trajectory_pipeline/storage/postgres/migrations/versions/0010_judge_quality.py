"""How far the judge agrees with people, and with itself.

Revision ID: 0010_judge_quality
Revises: 0009_tools
"""

from alembic import op

revision = "0010_judge_quality"
down_revision = "0009_tools"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.judge_quality (
        policy_id TEXT NOT NULL,
        comparison TEXT NOT NULL,
        criterion TEXT NOT NULL,
        slice TEXT NOT NULL,
        slice_value TEXT NOT NULL,
        metric TEXT NOT NULL,
        value DOUBLE PRECISION,
        low DOUBLE PRECISION,
        high DOUBLE PRECISION,
        runs BIGINT NOT NULL,
        pairs BIGINT NOT NULL,
        clusters BIGINT NOT NULL,
        weighting TEXT NOT NULL,
        measured_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (policy_id, comparison, criterion, slice, slice_value, metric)
    )""",
    """CREATE TABLE trajectory.judge_confusions (
        policy_id TEXT NOT NULL,
        comparison TEXT NOT NULL,
        criterion TEXT NOT NULL,
        person_value TEXT NOT NULL,
        judge_value TEXT NOT NULL,
        pairs BIGINT NOT NULL,
        weight DOUBLE PRECISION NOT NULL,
        measured_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (policy_id, comparison, criterion, person_value, judge_value)
    )""",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
