"""Runs of other sources than the Letta database: each row says its source.

Revision ID: 0019_source_names
Revises: 0018_exports
"""

from alembic import op

revision = "0019_source_names"
down_revision = "0018_exports"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # With a default, so that no row is written again: all that there is came from the Letta database.
    "ALTER TABLE trajectory.trajectories ADD COLUMN source TEXT DEFAULT 'letta'",
    "CREATE INDEX ix_trajectories_source_end_time ON trajectory.trajectories (source, end_time)",
    "ALTER TABLE trajectory.sources ADD COLUMN source TEXT NOT NULL DEFAULT 'letta'",
    """CREATE OR REPLACE VIEW trajectory.outcomes AS
    SELECT t.run_id, t.trajectory_id, t.agent_id, t.agent_name, t.agent_type, t.organization_id, t.start_time,
        t.end_time, t.duration_ns, t.partition_key, t.tools_used, t.models, t.execution_status, t.execution_cause,
        t.heuristic_outcome, t.heuristic_confidence, v.verdict_status, v.outcome, v.outcome_confidence,
        v.disagrees, v.failure_owner, v.failure_mode, v.failed_step_id, v.learning_value, v.tags, v.task_category,
        v.complexity, v.summary, v.lesson, v.requirements, v.decisions, v.coverage, v.model AS judge_model,
        v.simulated, v.input_tokens AS judge_input_tokens, v.output_tokens AS judge_output_tokens,
        v.cost_usd AS judge_cost_usd, v.error_class, v.error_message, v.judged_at, v.policy_id, v.verdict_key,
        v.failure_mode_description, v.interaction_depth, v.task_complexity, v.tool_use, v.reference_value,
        v.failure, v.learning, v.windows, v.response_format, v.shown_run_ids, v.cached_input_tokens AS
        judge_cached_input_tokens, v.attempts AS judge_calls, v.failures, v.next_attempt_at, v.raw_response,
        (SELECT count(*) FROM trajectory.verdict_attempts a WHERE a.verdict_key = ANY(v.verdict_keys)
            AND a.run_id = v.run_id AND a.purpose = 'repair') AS judge_repairs,
        (SELECT count(*) FROM trajectory.verdict_attempts a WHERE a.verdict_key = ANY(v.verdict_keys)
            AND a.run_id = v.run_id AND a.purpose = 'fallback') AS judge_fallbacks,
        (SELECT count(*) FROM trajectory.verdict_attempts a WHERE a.verdict_key = ANY(v.verdict_keys)
            AND a.run_id = v.run_id AND a.result = 'lost') AS judge_calls_lost,
        v.votes, v.vote_agreement, v.escalation, v.extra_answers, t.source
    FROM trajectory.trajectories t
    LEFT JOIN LATERAL (
        SELECT v.*, v.verdict_key || ARRAY(
            SELECT vote ->> 'verdict_key' FROM jsonb_array_elements(v.votes) vote
        ) AS verdict_keys FROM trajectory.verdicts v
        JOIN trajectory.policies p ON p.policy_id = v.policy_id AND p.is_current
        WHERE v.run_id = t.run_id AND v.content_digest = t.content_digest AND v.repetition = 0
        ORDER BY v.updated_at DESC, v.verdict_key LIMIT 1
    ) v ON true
    WHERE t.deleted_at IS NULL""",
)


def upgrade() -> None:
    """Add the columns, one of them also to the view."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: runs of several sources would be taken for those of one."""
    raise NotImplementedError("downgrading would mix the runs of several sources: restore a backup instead")
