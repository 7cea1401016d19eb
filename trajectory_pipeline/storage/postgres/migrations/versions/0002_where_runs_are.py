"""Where each captured run is, what each partition was made of, and which ones are to be materialised again.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE trajectory.partitions ADD COLUMN upstream_digest TEXT",
    # What was converted after it was read was made of it.
    """UPDATE trajectory.partitions t SET upstream_digest = r.content_digest FROM trajectory.partitions r
    WHERE t.asset = 'trajectories' AND r.asset = 'terminal_runs' AND r.partition_key = t.partition_key
        AND t.materialized_at >= r.materialized_at""",
    """CREATE TABLE trajectory.run_locations (
        run_id TEXT NOT NULL,
        partition_key TEXT,
        seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        first_captured_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (run_id)
    )""",
    """INSERT INTO trajectory.run_locations (run_id, partition_key, seen_at)
    SELECT held.run_id, held.partition_key, coalesce(p.snapshot_at, '-infinity')
    FROM (
        SELECT run_id, partition_key FROM trajectory.trajectories
        UNION ALL SELECT run_id, partition_key FROM trajectory.quarantine
    ) held
    LEFT JOIN trajectory.partitions p ON p.asset = 'terminal_runs' AND p.partition_key = held.partition_key
    ON CONFLICT DO NOTHING""",
    """CREATE TABLE trajectory.invalidations (
        invalidation_id TEXT NOT NULL,
        asset TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        reason TEXT NOT NULL,
        invalidated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (invalidation_id)
    )""",
)


def upgrade() -> None:
    """Make the tables, and fill them with what is known."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: going back would drop what was paid for."""
    raise NotImplementedError("going back would drop trajectories and verdicts; restore a backup instead")
