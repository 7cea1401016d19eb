"""Tokens of the service, and the index by which one organization's runs are found.

Revision ID: 0015_service
Revises: 0014_task_families
"""

from alembic import op

revision = "0015_service"
down_revision = "0014_task_families"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.service_tokens (
        token_id TEXT NOT NULL,
        token_sha256 TEXT NOT NULL,
        name TEXT NOT NULL,
        scopes TEXT[] NOT NULL,
        organizations TEXT[],
        agents TEXT[],
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE,
        revoked_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (token_id)
    )""",
    "CREATE INDEX ON trajectory.trajectories (organization_id, end_time)",
)


def upgrade() -> None:
    """Create the table and the index."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does: clients would lose their tokens."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
