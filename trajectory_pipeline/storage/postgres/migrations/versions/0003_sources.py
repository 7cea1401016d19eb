"""The databases that were captured from, and the state of the source that each partition was captured in.

Revision ID: 0003_sources
Revises: 0002_analyst_views
"""

from alembic import op

revision = "0003_sources"
down_revision = "0002_analyst_views"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.sources (
        identity TEXT NOT NULL,
        accepted BOOLEAN NOT NULL,
        accepted_at TIMESTAMP WITH TIME ZONE,
        first_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (identity)
    )""",
    "ALTER TABLE trajectory.partitions ADD COLUMN source_identity TEXT",
    "ALTER TABLE trajectory.partitions ADD COLUMN source_position BIGINT",
)


def upgrade() -> None:
    """Add the table and the columns."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: without it, a wrong source would go unnoticed."""
    raise NotImplementedError("downgrading would forget which source is the right one: restore a backup instead")
