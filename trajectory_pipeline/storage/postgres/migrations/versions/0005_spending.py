"""Accounts that caps are kept by, claims on verdicts, and when a failed or held back verdict is due again.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.spend_totals (
        scope TEXT NOT NULL,
        scope_key TEXT NOT NULL,
        calls BIGINT NOT NULL,
        reserved_usd NUMERIC(18, 9) NOT NULL,
        spent_usd NUMERIC(18, 9) NOT NULL,
        reserved_tokens BIGINT NOT NULL,
        spent_tokens BIGINT NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (scope, scope_key)
    )""",
    """CREATE TABLE trajectory.verdict_locks (
        verdict_key TEXT NOT NULL,
        worker TEXT NOT NULL,
        claimed_at TIMESTAMP WITH TIME ZONE NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (verdict_key)
    )""",
    # Calls from before there were caps: what they may have cost at most was never worked out.
    """ALTER TABLE trajectory.verdict_attempts
        ADD COLUMN reserved_usd NUMERIC(18, 9),
        ADD COLUMN reserved_tokens BIGINT NOT NULL DEFAULT 0,
        ADD COLUMN budget_day TEXT NOT NULL DEFAULT '',
        ADD COLUMN organization_id TEXT,
        ADD COLUMN materialization_id TEXT NOT NULL DEFAULT ''""",
    """UPDATE trajectory.verdict_attempts SET
        budget_day = to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), materialization_id = 'before 0005'""",
    """ALTER TABLE trajectory.verdict_attempts
        ALTER COLUMN reserved_tokens DROP DEFAULT,
        ALTER COLUMN budget_day DROP DEFAULT,
        ALTER COLUMN materialization_id DROP DEFAULT""",
    "CREATE INDEX ix_verdict_attempts_spending_day ON trajectory.verdict_attempts (budget_day)",
    # What was spent today counts against today's cap.
    """INSERT INTO trajectory.spend_totals
        SELECT 'day', budget_day, count(*), 0, coalesce(sum(cost_usd), 0), 0,
            coalesce(sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)), 0), now()
        FROM trajectory.verdict_attempts GROUP BY budget_day""",
    """ALTER TABLE trajectory.verdicts
        ADD COLUMN failures BIGINT NOT NULL DEFAULT 0,
        ADD COLUMN next_attempt_at TIMESTAMP WITH TIME ZONE,
        ADD COLUMN deferred_usd NUMERIC(18, 9),
        ADD COLUMN deferred_tokens BIGINT""",
    """UPDATE trajectory.verdicts SET failures = 1,
        next_attempt_at = CASE WHEN error_class IS DISTINCT FROM 'too_long' THEN now() END
        WHERE verdict_status = 'failed'""",
    "ALTER TABLE trajectory.verdicts ALTER COLUMN failures DROP DEFAULT",
)


def upgrade() -> None:
    """Make all of it."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: going back would forget what was spent."""
    raise NotImplementedError("going back would forget what was spent; restore a backup instead")
