"""What was erased, and which runs a verdict showed: so that a deletion at the source reaches every text.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE trajectory.trajectories ADD COLUMN erased BOOLEAN NOT NULL DEFAULT false",
    "ALTER TABLE trajectory.trajectories ALTER COLUMN erased DROP DEFAULT",
    """ALTER TABLE trajectory.verdicts
        ADD COLUMN shown_run_ids TEXT[] NOT NULL DEFAULT '{}',
        ADD COLUMN shown_digests TEXT[] NOT NULL DEFAULT '{}',
        ADD COLUMN erased BOOLEAN NOT NULL DEFAULT false""",
    # Verdicts from before: the runs of the chain as it stands, whose digests of then nobody wrote down.
    """WITH RECURSIVE chain AS (
        SELECT v.run_id, v.verdict_key, ARRAY[v.run_id] AS runs, t.continues_run_id AS earlier
        FROM trajectory.verdicts v LEFT JOIN trajectory.trajectories t ON t.run_id = v.run_id
        UNION ALL
        SELECT c.run_id, c.verdict_key, t.run_id || c.runs, t.continues_run_id
        FROM chain c JOIN trajectory.trajectories t ON t.run_id = c.earlier
        WHERE cardinality(c.runs) < 50 AND NOT (t.run_id = ANY(c.runs))
    ), longest AS (
        SELECT DISTINCT ON (run_id, verdict_key) * FROM chain
        ORDER BY run_id, verdict_key, cardinality(runs) DESC
    )
    UPDATE trajectory.verdicts v SET shown_run_ids = l.runs,
        shown_digests = array_fill(''::text, ARRAY[cardinality(l.runs) - 1]) || v.content_digest
    FROM longest l WHERE l.run_id = v.run_id AND l.verdict_key = v.verdict_key""",
    """ALTER TABLE trajectory.verdicts
        ALTER COLUMN shown_run_ids DROP DEFAULT,
        ALTER COLUMN shown_digests DROP DEFAULT,
        ALTER COLUMN erased DROP DEFAULT""",
    "CREATE INDEX ix_verdicts_shown_run_ids ON trajectory.verdicts USING gin (shown_run_ids)",
)


def upgrade() -> None:
    """Add the columns, and fill them for the verdicts that are there."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: what was erased cannot be told from what was not, without them."""
    raise NotImplementedError("going back would forget what was erased; restore a backup instead")
