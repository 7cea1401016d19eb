"""Exported datasets, the runs in them, and what keeps runs in one split.

Revision ID: 0018_exports
Revises: 0017_extra_answers
"""

from alembic import op

revision = "0018_exports"
down_revision = "0017_extra_answers"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.exports (
        export_id TEXT NOT NULL,
        location TEXT NOT NULL,
        format TEXT NOT NULL,
        is_asset BOOLEAN NOT NULL,
        filters JSONB NOT NULL,
        written_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (export_id)
    )""",
    """CREATE TABLE trajectory.export_runs (
        export_id TEXT NOT NULL,
        run_id TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        content_digest TEXT NOT NULL,
        text_digest TEXT NOT NULL,
        split TEXT NOT NULL,
        PRIMARY KEY (export_id, run_id)
    )""",
    "CREATE INDEX ON trajectory.export_runs (run_id)",
    "CREATE INDEX ON trajectory.export_runs (export_id, partition_key)",
    "CREATE INDEX ON trajectory.export_runs (export_id, text_digest)",
    """CREATE TABLE trajectory.export_groups (
        group_key TEXT NOT NULL,
        group_name TEXT NOT NULL,
        PRIMARY KEY (group_key)
    )""",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: nothing else tells which datasets hold a run that must be erased."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
