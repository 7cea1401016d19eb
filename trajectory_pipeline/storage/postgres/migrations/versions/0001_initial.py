"""The schema of the first release: trajectories, verdicts, budget, ledger and quarantine.

This revision is frozen. To change the schema, add a revision after it.

Revision ID: 0001_initial
Revises:
"""

from alembic import op

revision = "0001_initial"
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
        erased BOOLEAN NOT NULL,
        PRIMARY KEY (run_id)
    )""",
    "CREATE INDEX ix_trajectories_agent_id_end_time ON trajectory.trajectories (agent_id, end_time)",
    "CREATE INDEX ix_trajectories_continues_run_id ON trajectory.trajectories (continues_run_id)",
    "CREATE INDEX ix_trajectories_end_time ON trajectory.trajectories (end_time)",
    "CREATE INDEX ix_trajectories_execution_status_end_time ON trajectory.trajectories (execution_status, end_time)",
    "CREATE INDEX ix_trajectories_heuristic_outcome_end_time ON trajectory.trajectories (heuristic_outcome, end_time)",
    # Lists are searched by containment: tools_used @> ARRAY['search'].
    "CREATE INDEX ix_trajectories_models ON trajectory.trajectories USING gin (models)",
    "CREATE INDEX ix_trajectories_partition_key ON trajectory.trajectories (partition_key)",
    "CREATE INDEX ix_trajectories_tools_used ON trajectory.trajectories USING gin (tools_used)",
    "CREATE INDEX ix_trajectories_trajectory_id ON trajectory.trajectories (trajectory_id)",
    # A server built without lz4 keeps its default.
    """DO $$ BEGIN
        ALTER TABLE trajectory.trajectories ALTER COLUMN data SET COMPRESSION lz4;
    EXCEPTION WHEN feature_not_supported THEN NULL; END $$""",
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
        upstream_digest TEXT,
        inputs_digest TEXT,
        rows_checksum TEXT,
        PRIMARY KEY (asset, partition_key)
    )""",
    "CREATE INDEX ix_partitions_partition_key ON trajectory.partitions (partition_key)",
    """CREATE TABLE trajectory.run_locations (
        run_id TEXT NOT NULL,
        partition_key TEXT,
        seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        first_captured_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (run_id)
    )""",
    "CREATE INDEX ix_run_locations_partition_key ON trajectory.run_locations (partition_key)",
    """CREATE TABLE trajectory.invalidations (
        invalidation_id TEXT NOT NULL,
        asset TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        reason TEXT NOT NULL,
        invalidated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (invalidation_id)
    )""",
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
    "CREATE UNIQUE INDEX uq_policies_is_current ON trajectory.policies (is_current) WHERE is_current",
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
        shown_run_ids TEXT[] NOT NULL,
        shown_digests TEXT[] NOT NULL,
        erased BOOLEAN NOT NULL,
        response_format TEXT,
        failures BIGINT NOT NULL,
        next_attempt_at TIMESTAMP WITH TIME ZONE,
        deferred_usd NUMERIC(18, 9),
        deferred_tokens BIGINT,
        failure JSONB,
        learning JSONB,
        windows BIGINT,
        shown_sha256 TEXT,
        PRIMARY KEY (run_id, verdict_key)
    )""",
    "CREATE INDEX ix_verdicts_outcome ON trajectory.verdicts (outcome)",
    "CREATE INDEX ix_verdicts_partition_key ON trajectory.verdicts (partition_key)",
    "CREATE INDEX ix_verdicts_policy_id_verdict_status ON trajectory.verdicts (policy_id, verdict_status)",
    "CREATE INDEX ix_verdicts_shown_run_ids ON trajectory.verdicts USING gin (shown_run_ids)",
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
        purpose TEXT,
        response_format TEXT NOT NULL,
        temperature DOUBLE PRECISION,
        reserved_usd NUMERIC(18, 9),
        reserved_tokens BIGINT NOT NULL,
        budget_day TEXT NOT NULL,
        organization_id TEXT,
        materialization_id TEXT NOT NULL,
        PRIMARY KEY (attempt_id)
    )""",
    "CREATE INDEX ix_verdict_attempts_run_id ON trajectory.verdict_attempts (run_id)",
    "CREATE INDEX ix_verdict_attempts_budget_day ON trajectory.verdict_attempts (budget_day)",
    "CREATE INDEX ix_verdict_attempts_started_at ON trajectory.verdict_attempts (started_at)",
    "CREATE INDEX ix_verdict_attempts_verdict_key ON trajectory.verdict_attempts (verdict_key)",
    """CREATE TABLE trajectory.verdict_locks (
        verdict_key TEXT NOT NULL,
        worker TEXT NOT NULL,
        claimed_at TIMESTAMP WITH TIME ZONE NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (verdict_key)
    )""",
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
    """CREATE TABLE trajectory.rate_limits (
        base_url TEXT NOT NULL,
        model TEXT NOT NULL,
        next_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (base_url, model)
    )""",
    """CREATE TABLE trajectory.redaction_keys (
        name TEXT NOT NULL,
        secret TEXT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (name)
    )""",
    """CREATE VIEW trajectory.outcomes AS
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
        (SELECT count(*) FROM trajectory.verdict_attempts a WHERE a.verdict_key = v.verdict_key
            AND a.run_id = v.run_id AND a.purpose = 'repair') AS judge_repairs,
        (SELECT count(*) FROM trajectory.verdict_attempts a WHERE a.verdict_key = v.verdict_key
            AND a.run_id = v.run_id AND a.purpose = 'fallback') AS judge_fallbacks,
        (SELECT count(*) FROM trajectory.verdict_attempts a WHERE a.verdict_key = v.verdict_key
            AND a.run_id = v.run_id AND a.result = 'lost') AS judge_calls_lost
    FROM trajectory.trajectories t
    LEFT JOIN LATERAL (
        SELECT v.* FROM trajectory.verdicts v
        JOIN trajectory.policies p ON p.policy_id = v.policy_id AND p.is_current
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
    """Create all tables, indexes and views."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: it would drop trajectories and verdicts that were paid for."""
    raise NotImplementedError("downgrading would drop trajectories and verdicts: restore a backup instead")
