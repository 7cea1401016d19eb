"""Tools requested and denied, and the views on tool calls that find an approved call's return in the run that ran it.

This revision is frozen. To change the schema, add a revision after it.

Revision ID: 0009_tools
Revises: 0008_judge_batches
"""

from alembic import op

revision = "0009_tools"
down_revision = "0008_judge_batches"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE trajectory.trajectories ADD COLUMN tools_requested TEXT[], ADD COLUMN tools_denied TEXT[]",
    "DROP VIEW trajectory.tool_usage",
    "DROP VIEW trajectory.tool_calls",
    # Ids of calls repeat between runs. A run that answers has its return in a turn of the step that asked.
    """CREATE VIEW trajectory.tool_calls AS
    SELECT t.run_id, t.agent_id, t.agent_name, t.organization_id, t.end_time, turn.index AS turn_index,
        message.data ->> 'message_id' AS message_id, (message.data ->> 'timestamp')::timestamptz AS called_at,
        call.index AS call_index, call.data ->> 'id' AS tool_call_id, call.data -> 'function' ->> 'name' AS tool,
        call.data -> 'function' ->> 'arguments' AS arguments, answer.message_id AS return_message_id,
        answer.data ->> 'status' AS return_status,
        CASE WHEN answer.data IS NOT NULL THEN coalesce((answer.data ->> 'denied')::boolean, false) END AS denied,
        answer.data ->> 'text' AS return_text, answer.run_id AS return_run_id
    FROM trajectory.trajectories t, jsonb_array_elements(t.data -> 'turns') WITH ORDINALITY turn (data, index),
        jsonb_array_elements(turn.data -> 'messages') WITH ORDINALITY message (data, index),
        jsonb_array_elements(message.data -> 'tool_calls') WITH ORDINALITY call (data, index)
        LEFT JOIN LATERAL (
            SELECT answering.run_id, later.data ->> 'message_id' AS message_id, back.data
            FROM (
                    SELECT t.run_id, t.start_time, t.data, false AS continues
                    UNION ALL
                    SELECT c.run_id, c.start_time, c.data, true FROM trajectory.trajectories c
                    WHERE c.continues_run_id = t.run_id AND c.deleted_at IS NULL
                ) answering,
                jsonb_array_elements(answering.data -> 'turns') WITH ORDINALITY later_turn (data, index),
                jsonb_array_elements(later_turn.data -> 'messages') WITH ORDINALITY later (data, index),
                jsonb_array_elements(later.data -> 'tool_returns') WITH ORDINALITY back (data, index)
            WHERE back.data ->> 'tool_call_id' = call.data ->> 'id' AND CASE WHEN answering.continues
                THEN later_turn.data ->> 'step_id' = turn.data ->> 'step_id'
                ELSE (later_turn.index, later.index) > (turn.index, message.index) END
            ORDER BY answering.continues, answering.start_time, answering.run_id,
                later_turn.index, later.index, back.index
            LIMIT 1
        ) answer ON true
    WHERE t.deleted_at IS NULL""",
    """CREATE VIEW trajectory.tool_usage AS
    SELECT agent_id, agent_name, tool, count(DISTINCT coalesce(return_run_id, run_id)) AS runs, count(*) AS calls,
        count(*) FILTER (WHERE return_status = 'success' AND denied IS NOT TRUE) AS succeeded,
        count(*) FILTER (WHERE return_status = 'error' AND denied IS NOT TRUE) AS failed,
        count(*) FILTER (WHERE denied) AS denied,
        count(*) FILTER (WHERE return_message_id IS NULL) AS unanswered,
        count(*) FILTER (WHERE return_status = 'error' AND denied IS NOT TRUE)::double precision
            / nullif(count(*) FILTER (WHERE return_status IN ('success', 'error') AND denied IS NOT TRUE), 0)
            AS error_rate
    FROM trajectory.tool_calls GROUP BY agent_id, agent_name, tool""",
)


def upgrade() -> None:
    """Add the columns and make the views anew."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse, as every revision does."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
