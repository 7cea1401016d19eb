"""What each call to a judge was for, and in which form it asked.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE trajectory.verdict_attempts ADD COLUMN purpose TEXT",
    # There was one format, and always a temperature of 0.
    "ALTER TABLE trajectory.verdict_attempts ADD COLUMN response_format TEXT NOT NULL DEFAULT 'json_schema'",
    "ALTER TABLE trajectory.verdict_attempts ALTER COLUMN response_format DROP DEFAULT",
    "ALTER TABLE trajectory.verdict_attempts ADD COLUMN temperature DOUBLE PRECISION DEFAULT 0",
    "ALTER TABLE trajectory.verdict_attempts ALTER COLUMN temperature DROP DEFAULT",
    "ALTER TABLE trajectory.verdicts ADD COLUMN response_format TEXT",
    "UPDATE trajectory.verdicts SET response_format = 'json_schema' WHERE attempts > 0",
)


def upgrade() -> None:
    """Add the columns, with what is known of older rows."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Take the columns away again."""
    op.execute("ALTER TABLE trajectory.verdict_attempts DROP COLUMN purpose, DROP COLUMN response_format")
    op.execute("ALTER TABLE trajectory.verdict_attempts DROP COLUMN temperature")
    op.execute("ALTER TABLE trajectory.verdicts DROP COLUMN response_format")
