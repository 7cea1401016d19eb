"""Task families, the runs in them, similar earlier runs, and how often the tasks of a family succeed.

Revision ID: 0014_task_families
Revises: 0013_search
"""

from alembic import op

revision = "0014_task_families"
down_revision = "0013_search"
branch_labels = None
depends_on = None

_Z = 1.959963984540054


def _wilson(sign: str) -> str:
    """Return SQL for an end of the 95 % interval of ``success`` of ``decided``."""
    z2 = _Z * _Z
    edge = "WHEN success = 0 THEN 0" if sign == "-" else "WHEN success = decided THEN 1"
    return f"""CASE WHEN decided = 0 THEN NULL {edge} ELSE
        (success::float8 / decided + {z2} / (2 * decided) {sign} {_Z} * sqrt(
            success::float8 / decided * (1 - success::float8 / decided) / decided
            + {z2} / (4 * decided::float8 * decided))) / (1 + {z2} / decided) END"""


_STATEMENTS = (
    """CREATE TABLE trajectory.task_families (
        family_id TEXT NOT NULL,
        organization_id TEXT,
        representative_run_id TEXT,
        position BIGINT NOT NULL,
        founded_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (family_id)
    )""",
    "CREATE INDEX ON trajectory.task_families (organization_id)",
    """CREATE TABLE trajectory.task_family_runs (
        run_id TEXT NOT NULL,
        family_id TEXT NOT NULL,
        similarity DOUBLE PRECISION,
        model_id TEXT NOT NULL,
        assigned_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (run_id)
    )""",
    "CREATE INDEX ON trajectory.task_family_runs (family_id)",
    """CREATE TABLE trajectory.similar_runs (
        run_id TEXT NOT NULL,
        similar_run_id TEXT NOT NULL,
        similarity DOUBLE PRECISION NOT NULL,
        model_id TEXT NOT NULL,
        PRIMARY KEY (run_id, similar_run_id)
    )""",
    "CREATE INDEX ON trajectory.similar_runs (similar_run_id)",
    """CREATE TABLE trajectory.task_family_bars (
        organization_id TEXT NOT NULL,
        model_id TEXT NOT NULL,
        similarity DOUBLE PRECISION NOT NULL,
        median DOUBLE PRECISION NOT NULL,
        deviation DOUBLE PRECISION NOT NULL,
        mean DOUBLE PRECISION NOT NULL,
        nearest DOUBLE PRECISION NOT NULL,
        runs BIGINT NOT NULL,
        measured_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (organization_id, model_id)
    )""",
    f"""CREATE VIEW trajectory.task_family_outcomes AS
    WITH counted AS (
        SELECT r.family_id, count(*) AS runs,
            count(*) FILTER (WHERE o.outcome = 'success') AS success,
            count(*) FILTER (WHERE o.outcome = 'partial_success') AS partial_success,
            count(*) FILTER (WHERE o.outcome = 'failure') AS failure,
            count(*) FILTER (WHERE o.outcome = 'unknown') AS unknown,
            count(*) FILTER (WHERE o.outcome IS NULL) AS not_judged,
            count(*) FILTER (WHERE o.outcome IN ('success', 'partial_success', 'failure')) AS decided,
            max(o.end_time) AS last_end
        FROM trajectory.task_family_runs r JOIN trajectory.outcomes o USING (run_id) GROUP BY 1
    )
    SELECT c.family_id, f.organization_id, f.representative_run_id, c.runs, c.success, c.partial_success, c.failure,
        c.unknown, c.not_judged, c.success::float8 / nullif(c.decided, 0) AS success_rate,
        {_wilson("-")} AS success_low, {_wilson("+")} AS success_high, c.last_end
    FROM counted c JOIN trajectory.task_families f USING (family_id)""",
)


def upgrade() -> None:
    """Create the tables and the view."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does: ids of families would not stay."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
