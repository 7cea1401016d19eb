"""Calibration maps with the view that applies them, and the registry of failure modes.

Revision ID: 0012_quality
Revises: 0011_requirement_probabilities
"""

from alembic import op

revision = "0012_quality"
down_revision = "0011_requirement_probabilities"
branch_labels = None
depends_on = None


def _calibrated(score: str, alias: str) -> str:
    """Return SQL for the value of a map at a score: a straight line between two knots, level outside of them."""
    knot = f"width_bucket({score}, {alias}.scores)"
    x, y = f"{alias}.scores", f"{alias}.probabilities"
    return f"""CASE WHEN {alias}.map_digest IS NULL THEN NULL
        WHEN {knot} = 0 THEN {y}[1]
        WHEN {knot} >= cardinality({x}) THEN {y}[cardinality({x})]
        ELSE {y}[{knot}] + ({score} - {x}[{knot}]) / ({x}[{knot} + 1] - {x}[{knot}])
            * ({y}[{knot} + 1] - {y}[{knot}]) END"""


_STATEMENTS = (
    """CREATE TABLE trajectory.calibrations (
        policy_id TEXT NOT NULL,
        target TEXT NOT NULL,
        labels_digest TEXT NOT NULL,
        map_digest TEXT NOT NULL,
        method TEXT NOT NULL,
        scores DOUBLE PRECISION[] NOT NULL,
        probabilities DOUBLE PRECISION[] NOT NULL,
        labels BIGINT NOT NULL,
        measured_labels BIGINT NOT NULL,
        cross_fitted BOOLEAN NOT NULL,
        raw_error DOUBLE PRECISION,
        raw_error_low DOUBLE PRECISION,
        raw_error_high DOUBLE PRECISION,
        error DOUBLE PRECISION NOT NULL,
        error_low DOUBLE PRECISION NOT NULL,
        error_high DOUBLE PRECISION NOT NULL,
        curve JSONB NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        is_current BOOLEAN NOT NULL,
        PRIMARY KEY (policy_id, target, labels_digest)
    )""",
    # The view reads at most one map of a policy and target.
    "CREATE UNIQUE INDEX ON trajectory.calibrations (policy_id, target) WHERE is_current",
    """CREATE TABLE trajectory.failure_modes (
        mode_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        title TEXT,
        first_run_id TEXT,
        position BIGINT NOT NULL,
        founded_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (mode_id)
    )""",
    """CREATE TABLE trajectory.failure_mode_runs (
        run_id TEXT NOT NULL,
        mode_id TEXT NOT NULL,
        text_sha256 TEXT NOT NULL,
        kind TEXT NOT NULL,
        source TEXT NOT NULL,
        PRIMARY KEY (run_id, mode_id, text_sha256)
    )""",
    "CREATE INDEX ON trajectory.failure_mode_runs (mode_id)",
    "CREATE INDEX ON trajectory.failure_mode_runs (text_sha256)",
    """CREATE VIEW trajectory.failure_mode_weeks AS
    SELECT m.mode_id, m.kind, m.title,
        to_char(date_trunc('week', t.end_time AT TIME ZONE 'UTC'), 'YYYY-MM-DD') AS week,
        count(DISTINCT r.run_id) AS runs
    FROM trajectory.failure_modes m JOIN trajectory.failure_mode_runs r USING (mode_id)
    JOIN trajectory.trajectories t USING (run_id)
    WHERE t.deleted_at IS NULL GROUP BY 1, 2, 3, 4""",
    f"""CREATE VIEW trajectory.calibrated_outcomes AS
    SELECT o.run_id, o.verdict_key, o.policy_id, o.outcome, o.outcome_confidence,
        {_calibrated("o.outcome_confidence", "c")} AS probability_correct,
        {_calibrated("CASE WHEN o.outcome = 'success' THEN o.outcome_confidence ELSE -o.outcome_confidence END", "s")}
            AS probability_success,
        c.map_digest AS correct_map, s.map_digest AS success_map
    FROM trajectory.outcomes o
    LEFT JOIN trajectory.calibrations c ON c.policy_id = o.policy_id AND c.target = 'correct' AND c.is_current
    LEFT JOIN trajectory.calibrations s ON s.policy_id = o.policy_id AND s.target = 'success' AND s.is_current
    WHERE o.outcome_confidence IS NOT NULL""",
)


def upgrade() -> None:
    """Create the tables and views."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does: ids of failure modes would not stay."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
