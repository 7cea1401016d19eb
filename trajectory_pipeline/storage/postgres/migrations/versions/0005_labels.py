"""Labels of people, and the samples that say which runs to label.

Revision ID: 0005_labels
Revises: 0004_repetitions
"""

from alembic import op

revision = "0005_labels"
down_revision = "0004_repetitions"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.labels (
        run_id TEXT NOT NULL,
        criterion TEXT NOT NULL,
        item TEXT NOT NULL,
        annotator TEXT NOT NULL,
        revision BIGINT NOT NULL,
        value TEXT NOT NULL,
        statement TEXT,
        evidence TEXT[] NOT NULL,
        note TEXT,
        source TEXT NOT NULL,
        labelled_at TIMESTAMP WITH TIME ZONE,
        split TEXT,
        sampling_design TEXT,
        inclusion_probability DOUBLE PRECISION,
        content_digest TEXT,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        superseded_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (run_id, criterion, item, annotator, revision)
    )""",
    "CREATE INDEX ON trajectory.labels (criterion, source)",
    # At most one label of a key holds.
    "CREATE UNIQUE INDEX ON trajectory.labels (run_id, criterion, item, annotator) WHERE superseded_at IS NULL",
    """CREATE TABLE trajectory.label_samples (
        run_id TEXT NOT NULL,
        sample TEXT NOT NULL,
        place BIGINT NOT NULL,
        design TEXT NOT NULL,
        stratum TEXT NOT NULL,
        inclusion_probability DOUBLE PRECISION NOT NULL,
        seed BIGINT NOT NULL,
        drawn_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (run_id)
    )""",
    "CREATE INDEX ON trajectory.label_samples (sample, place)",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does: labels are work of people."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
