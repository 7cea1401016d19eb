"""The first schema: trajectories, verdicts, the ledger and the quarantine.

Revision ID: 0001
Revises:
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE trajectory.trajectories (
        run_id TEXT NOT NULL,
        trajectory_id TEXT NOT NULL,
        agent_id TEXT NOT NULL,
        agent_name TEXT,
        agent_type TEXT,
        organization_id TEXT,
        conversation_id TEXT,
        project_id TEXT,
        tags TEXT[] NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE,
        end_time TIMESTAMP WITH TIME ZONE,
        duration_ns BIGINT,
        run_ns BIGINT,
        ttft_ns BIGINT,
        status TEXT NOT NULL,
        stop_reason TEXT,
        run_type TEXT,
        background BOOLEAN,
        error JSONB,
        step_count BIGINT NOT NULL,
        message_count BIGINT NOT NULL,
        tools_used TEXT[] NOT NULL,
        models TEXT[] NOT NULL,
        input_tokens BIGINT NOT NULL,
        output_tokens BIGINT NOT NULL,
        total_tokens BIGINT NOT NULL,
        cached_input_tokens BIGINT,
        cache_write_tokens BIGINT,
        reasoning_tokens BIGINT,
        usage_reported BOOLEAN NOT NULL,
        cost_usd NUMERIC(18, 9),
        continues_run_id TEXT,
        execution_status TEXT NOT NULL,
        execution_cause TEXT,
        heuristic_outcome TEXT NOT NULL,
        heuristic_confidence DOUBLE PRECISION NOT NULL,
        heuristic_reasoning TEXT[] NOT NULL,
        signals JSONB NOT NULL,
        data JSONB,
        data_omitted_reason TEXT,
        escaped TEXT[] NOT NULL,
        content_digest TEXT NOT NULL,
        schema_version TEXT NOT NULL,
        signals_version TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        deleted_at TIMESTAMP WITH TIME ZONE,
        first_captured_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (run_id)
    )""",
    "CREATE INDEX ix_trajectories_partition_key ON trajectory.trajectories (partition_key)",
    "CREATE INDEX ix_trajectories_agent_id_end_time ON trajectory.trajectories (agent_id, end_time)",
    "CREATE INDEX ix_trajectories_end_time ON trajectory.trajectories (end_time)",
    "CREATE INDEX ix_trajectories_heuristic_outcome_end_time ON trajectory.trajectories (heuristic_outcome, end_time)",
    "CREATE INDEX ix_trajectories_execution_status_end_time ON trajectory.trajectories (execution_status, end_time)",
    "CREATE INDEX ix_trajectories_continues_run_id ON trajectory.trajectories (continues_run_id)",
    "CREATE INDEX ix_trajectories_trajectory_id ON trajectory.trajectories (trajectory_id)",
    """CREATE TABLE trajectory.partitions (
        asset TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        result TEXT NOT NULL,
        fingerprint TEXT,
        counts JSONB NOT NULL,
        content_digest TEXT NOT NULL,
        snapshot_at TIMESTAMP WITH TIME ZONE,
        materialized_at TIMESTAMP WITH TIME ZONE NOT NULL,
        schema_version TEXT NOT NULL,
        dagster_run_id TEXT,
        PRIMARY KEY (asset, partition_key)
    )""",
    "CREATE INDEX ix_partitions_partition_key ON trajectory.partitions (partition_key)",
    """CREATE TABLE trajectory.quarantine (
        run_id TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        json_path TEXT NOT NULL,
        error TEXT NOT NULL,
        raw TEXT NOT NULL,
        steps BIGINT NOT NULL,
        messages BIGINT NOT NULL,
        first_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        last_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (run_id)
    )""",
    "CREATE INDEX ix_quarantine_partition_key ON trajectory.quarantine (partition_key)",
    """CREATE TABLE trajectory.policies (
        policy_id TEXT NOT NULL,
        definition JSONB NOT NULL,
        model TEXT NOT NULL,
        is_current BOOLEAN NOT NULL,
        first_used_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (policy_id)
    )""",
    """CREATE TABLE trajectory.verdicts (
        run_id TEXT NOT NULL,
        verdict_key TEXT NOT NULL,
        policy_id TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        content_digest TEXT NOT NULL,
        verdict_status TEXT NOT NULL,
        outcome TEXT,
        outcome_confidence DOUBLE PRECISION,
        disagrees BOOLEAN,
        requirements JSONB,
        failure_owner TEXT,
        failure_mode TEXT,
        failure_mode_description TEXT,
        failed_step_id TEXT,
        learning_value DOUBLE PRECISION,
        interaction_depth BIGINT,
        task_complexity BIGINT,
        tool_use BIGINT,
        reference_value BIGINT,
        tags TEXT[],
        task_category TEXT,
        complexity TEXT,
        summary TEXT,
        lesson TEXT,
        decisions JSONB,
        coverage DOUBLE PRECISION,
        model TEXT,
        simulated BOOLEAN NOT NULL,
        input_tokens BIGINT,
        cached_input_tokens BIGINT,
        output_tokens BIGINT,
        cost_usd NUMERIC(18, 9),
        attempts BIGINT NOT NULL,
        error_class TEXT,
        error_message TEXT,
        raw_response TEXT,
        judged_at TIMESTAMP WITH TIME ZONE,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (run_id, verdict_key)
    )""",
    "CREATE INDEX ix_verdicts_policy_id_verdict_status ON trajectory.verdicts (policy_id, verdict_status)",
    "CREATE INDEX ix_verdicts_partition_key ON trajectory.verdicts (partition_key)",
    "CREATE INDEX ix_verdicts_outcome ON trajectory.verdicts (outcome)",
    """CREATE TABLE trajectory.verdict_attempts (
        attempt_id TEXT NOT NULL,
        run_id TEXT NOT NULL,
        verdict_key TEXT NOT NULL,
        policy_id TEXT NOT NULL,
        started_at TIMESTAMP WITH TIME ZONE NOT NULL,
        duration_ns BIGINT,
        model TEXT NOT NULL,
        response_model TEXT,
        base_url TEXT NOT NULL,
        prompt_characters BIGINT NOT NULL,
        http_status BIGINT,
        request_id TEXT,
        finish_reason TEXT,
        result TEXT NOT NULL,
        error_class TEXT,
        error_message TEXT,
        input_tokens BIGINT,
        cached_input_tokens BIGINT,
        output_tokens BIGINT,
        cost_usd NUMERIC(18, 9),
        PRIMARY KEY (attempt_id)
    )""",
    "CREATE INDEX ix_verdict_attempts_run_id ON trajectory.verdict_attempts (run_id)",
    "CREATE INDEX ix_verdict_attempts_verdict_key ON trajectory.verdict_attempts (verdict_key)",
    "CREATE INDEX ix_verdict_attempts_started_at ON trajectory.verdict_attempts (started_at)",
    # Lists are looked into by containment: tools_used @> ARRAY['search'].
    "CREATE INDEX ix_trajectories_tools_used ON trajectory.trajectories USING gin (tools_used)",
    "CREATE INDEX ix_trajectories_models ON trajectory.trajectories USING gin (models)",
    "CREATE UNIQUE INDEX uq_policies_is_current ON trajectory.policies (is_current) WHERE is_current",
    # A server built without lz4 keeps its default.
    """DO $$ BEGIN
        ALTER TABLE trajectory.trajectories ALTER COLUMN data SET COMPRESSION lz4;
    EXCEPTION WHEN feature_not_supported THEN NULL; END $$""",
    """CREATE VIEW trajectory.outcomes AS
    SELECT t.run_id, t.trajectory_id, t.agent_id, t.agent_name, t.agent_type, t.organization_id, t.start_time,
        t.end_time, t.duration_ns, t.partition_key, t.tools_used, t.models, t.execution_status, t.execution_cause,
        t.heuristic_outcome, t.heuristic_confidence, v.verdict_status, v.outcome, v.outcome_confidence, v.disagrees,
        v.failure_owner, v.failure_mode, v.failed_step_id, v.learning_value, v.tags, v.task_category, v.complexity,
        v.summary, v.lesson, v.requirements, v.decisions, v.coverage, v.model AS judge_model, v.simulated,
        v.input_tokens AS judge_input_tokens, v.output_tokens AS judge_output_tokens, v.cost_usd AS judge_cost_usd,
        v.error_class, v.error_message, v.judged_at, v.policy_id, v.verdict_key
    FROM trajectory.trajectories t
    LEFT JOIN LATERAL (
        SELECT v.* FROM trajectory.verdicts v JOIN trajectory.policies p ON p.policy_id = v.policy_id AND p.is_current
        WHERE v.run_id = t.run_id AND v.content_digest = t.content_digest
        ORDER BY v.updated_at DESC, v.verdict_key LIMIT 1
    ) v ON true
    WHERE t.deleted_at IS NULL""",
    """CREATE VIEW trajectory.chains AS
    SELECT asking.run_id, asking.partition_key, answering.run_id AS continued_by_run_id,
        answering.partition_key AS continued_by_partition_key, answering.start_time AS continued_at
    FROM trajectory.trajectories answering
    JOIN trajectory.trajectories asking ON asking.run_id = answering.continues_run_id""",
    """CREATE VIEW trajectory.agent_comparison AS
    SELECT t.run_id, t.agent_id, m.runs AS agent_runs,
        t.duration_ns, m.duration_ns AS agent_median_duration_ns,
        t.total_tokens, m.total_tokens AS agent_median_total_tokens,
        (t.signals ->> 'tool_calls')::bigint AS tool_calls, m.tool_calls AS agent_median_tool_calls
    FROM trajectory.trajectories t
    JOIN (
        SELECT agent_id, count(*) AS runs,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_ns) AS duration_ns,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY total_tokens) AS total_tokens,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY (signals ->> 'tool_calls')::bigint) AS tool_calls
        FROM trajectory.trajectories WHERE deleted_at IS NULL GROUP BY agent_id
    ) m ON m.agent_id = t.agent_id
    WHERE t.deleted_at IS NULL""",
)


def upgrade() -> None:
    """Make all of it."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: going back would drop what was paid for."""
    raise NotImplementedError("going back would drop trajectories and verdicts; restore a backup instead")
