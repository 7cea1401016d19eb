"""Views over turns, messages and tool calls, and counts by tool, agent and day.

This revision is frozen. To change the schema, add a revision after it.

Revision ID: 0002_analyst_views
Revises: 0001_initial
"""

from alembic import op

revision = "0002_analyst_views"
down_revision = "0001_initial"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE VIEW trajectory.turns AS
    SELECT t.run_id, t.agent_id, t.agent_name, t.organization_id, t.end_time, turn.index AS turn_index,
        turn.data ->> 'step_id' AS step_id, turn.data ->> 'step_run_id' AS step_run_id,
        (turn.data ->> 'timestamp')::timestamptz AS timestamp, turn.data ->> 'model' AS model,
        turn.data ->> 'provider' AS provider, turn.data ->> 'status' AS status,
        turn.data ->> 'stop_reason' AS stop_reason, (turn.data ->> 'input_tokens')::bigint AS input_tokens,
        (turn.data ->> 'output_tokens')::bigint AS output_tokens, turn.data ->> 'feedback' AS feedback,
        turn.data -> 'error' ->> 'type' AS error_type, jsonb_array_length(turn.data -> 'messages')::bigint AS messages
    FROM trajectory.trajectories t, jsonb_array_elements(t.data -> 'turns') WITH ORDINALITY turn (data, index)
    WHERE t.deleted_at IS NULL""",
    """CREATE VIEW trajectory.messages AS
    SELECT t.run_id, t.agent_id, t.agent_name, t.organization_id, t.end_time, turn.index AS turn_index,
        message.index AS message_index, message.data ->> 'message_id' AS message_id, message.data ->> 'role' AS role,
        message.data ->> 'kind' AS kind, (message.data ->> 'timestamp')::timestamptz AS timestamp,
        (message.data ->> 'is_deleted')::boolean AS is_deleted,
        (SELECT string_agg(part.data ->> 'text', E'\\n' ORDER BY part.index)
            FROM jsonb_array_elements(message.data -> 'content') WITH ORDINALITY part (data, index)
            WHERE part.data ->> 'type' = 'text') AS text,
        message.data ->> 'assistant_text' AS assistant_text,
        coalesce(jsonb_array_length(message.data -> 'tool_calls'), 0)::bigint AS tool_calls,
        coalesce(jsonb_array_length(message.data -> 'tool_returns'), 0)::bigint AS tool_returns
    FROM trajectory.trajectories t, jsonb_array_elements(t.data -> 'turns') WITH ORDINALITY turn (data, index),
        jsonb_array_elements(turn.data -> 'messages') WITH ORDINALITY message (data, index)
    WHERE t.deleted_at IS NULL""",
    # Joined within the one run: ids of calls repeat between runs.
    """CREATE VIEW trajectory.tool_calls AS
    SELECT t.run_id, t.agent_id, t.agent_name, t.organization_id, t.end_time, turn.index AS turn_index,
        message.data ->> 'message_id' AS message_id, (message.data ->> 'timestamp')::timestamptz AS called_at,
        call.index AS call_index, call.data ->> 'id' AS tool_call_id, call.data -> 'function' ->> 'name' AS tool,
        call.data -> 'function' ->> 'arguments' AS arguments, answer.message_id AS return_message_id,
        answer.data ->> 'status' AS return_status,
        CASE WHEN answer.data IS NOT NULL THEN coalesce((answer.data ->> 'denied')::boolean, false) END AS denied,
        answer.data ->> 'text' AS return_text
    FROM trajectory.trajectories t, jsonb_array_elements(t.data -> 'turns') WITH ORDINALITY turn (data, index),
        jsonb_array_elements(turn.data -> 'messages') WITH ORDINALITY message (data, index),
        jsonb_array_elements(message.data -> 'tool_calls') WITH ORDINALITY call (data, index)
        LEFT JOIN LATERAL (
            SELECT later.data ->> 'message_id' AS message_id, back.data
            FROM jsonb_array_elements(t.data -> 'turns') WITH ORDINALITY later_turn (data, index),
                jsonb_array_elements(later_turn.data -> 'messages') WITH ORDINALITY later (data, index),
                jsonb_array_elements(later.data -> 'tool_returns') WITH ORDINALITY back (data, index)
            WHERE back.data ->> 'tool_call_id' = call.data ->> 'id'
                AND (later_turn.index, later.index) > (turn.index, message.index)
            ORDER BY later_turn.index, later.index, back.index LIMIT 1
        ) answer ON true
    WHERE t.deleted_at IS NULL""",
    """CREATE VIEW trajectory.tool_usage AS
    SELECT agent_id, agent_name, tool, count(DISTINCT run_id) AS runs, count(*) AS calls,
        count(*) FILTER (WHERE return_status = 'success' AND denied IS NOT TRUE) AS succeeded,
        count(*) FILTER (WHERE return_status = 'error' AND denied IS NOT TRUE) AS failed,
        count(*) FILTER (WHERE denied) AS denied,
        count(*) FILTER (WHERE return_message_id IS NULL) AS unanswered,
        count(*) FILTER (WHERE return_status = 'error' AND denied IS NOT TRUE)::double precision
            / nullif(count(*) FILTER (WHERE return_status IN ('success', 'error') AND denied IS NOT TRUE), 0)
            AS error_rate
    FROM trajectory.tool_calls GROUP BY agent_id, agent_name, tool""",
    """CREATE VIEW trajectory.agent_days AS
    SELECT o.agent_id, o.agent_name, o.organization_id, to_char(o.end_time AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day,
        count(*) AS runs,
        count(*) FILTER (WHERE o.execution_status = 'completed') AS completed,
        count(*) FILTER (WHERE o.execution_status = 'failed') AS failed,
        count(*) FILTER (WHERE o.verdict_status = 'judged') AS judged,
        count(*) FILTER (WHERE o.outcome = 'success') AS success,
        count(*) FILTER (WHERE o.outcome = 'partial_success') AS partial_success,
        count(*) FILTER (WHERE o.outcome = 'failure') AS failure,
        count(*) FILTER (WHERE o.outcome = 'unknown') AS unknown,
        sum(t.total_tokens)::bigint AS total_tokens, sum(o.judge_cost_usd)::numeric(18, 9) AS judge_cost_usd
    FROM trajectory.outcomes o JOIN trajectory.trajectories t USING (run_id)
    GROUP BY 1, 2, 3, 4""",
    """CREATE VIEW trajectory.judging_days AS
    SELECT budget_day AS day, model, count(*) AS calls, count(*) FILTER (WHERE result = 'lost') AS lost,
        sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
        sum(cost_usd)::numeric(18, 9) AS cost_usd
    FROM trajectory.verdict_attempts GROUP BY 1, 2""",
)


def upgrade() -> None:
    """Create the views."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
