"""What raw rows were made of, run by run, so that only what changed is read and converted again.

Revision ID: 0022_run_versions
Revises: 0021_export_near_duplicates
"""

from alembic import op

revision = "0022_run_versions"
down_revision = "0021_export_near_duplicates"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.run_versions (
        partition_key TEXT NOT NULL,
        raw_digest TEXT NOT NULL,
        scope TEXT NOT NULL,
        versions TEXT NOT NULL,
        base_digest TEXT,
        changed_run_ids TEXT[],
        reference_run_ids TEXT[],
        PRIMARY KEY (partition_key)
    )""",
    # Hashes do not compress.
    "ALTER TABLE trajectory.run_versions ALTER COLUMN versions SET STORAGE EXTERNAL",
)


def upgrade() -> None:
    """Create the table; partitions get an entry when they are captured next."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
