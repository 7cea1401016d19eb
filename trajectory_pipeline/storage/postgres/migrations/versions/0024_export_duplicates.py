"""Which runs exported assets leave out because of a run in another partition.

Revision ID: 0024_export_duplicates
Revises: 0023_search_tenants
"""

from alembic import op

revision = "0024_export_duplicates"
down_revision = "0023_search_tenants"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.export_duplicates (
        export_id TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        run_id TEXT NOT NULL,
        kept_run_id TEXT NOT NULL,
        kept_text_digest TEXT NOT NULL,
        kept_outcome TEXT,
        PRIMARY KEY (export_id, partition_key, run_id)
    )""",
    "CREATE INDEX ON trajectory.export_duplicates (export_id, kept_run_id)",
)


def upgrade() -> None:
    """Create the table. It fills as partitions are exported again, which they are after this upgrade."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
