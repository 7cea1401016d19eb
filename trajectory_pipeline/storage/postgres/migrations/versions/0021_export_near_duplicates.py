"""By what exported assets find runs that are almost the same as one in another partition.

Revision ID: 0021_export_near_duplicates
Revises: 0020_search_speed
"""

from alembic import op

revision = "0021_export_near_duplicates"
down_revision = "0020_search_speed"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE trajectory.export_runs ADD COLUMN outcome TEXT, ADD COLUMN signature TEXT",
    """CREATE TABLE trajectory.export_bands (
        export_id TEXT NOT NULL,
        run_id TEXT NOT NULL,
        band BIGINT NOT NULL,
        PRIMARY KEY (export_id, run_id, band),
        FOREIGN KEY (export_id, run_id) REFERENCES trajectory.export_runs ON DELETE CASCADE
    )""",
    "CREATE INDEX ON trajectory.export_bands (export_id, band)",
)


def upgrade() -> None:
    """Add the columns and the table."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
