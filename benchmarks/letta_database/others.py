"""Messages that no partition needs, as a busy server has them; generated in the database itself."""

import psycopg

MESSAGES_IN_A_RUN = 100
STEPS_IN_A_RUN = 10
_RUNS_AT_ONCE = 10_000

# Ids as random as Letta's own, so that indexes grow as they do there.
_ID = """
    CREATE FUNCTION pg_temp.new_id(prefix text, number bigint) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT prefix || '-' || md5(prefix || number)::uuid $$
"""
# One ends every minute, up to a day before the first generated hour.
_OTHERS = """
    CREATE TEMP TABLE others AS
    SELECT number, pg_temp.new_id('run', number) AS run_id, a.id AS agent_id, a.organization_id,
        %(before)s::timestamptz - interval '1 day' - number * interval '1 minute' AS ended
    FROM generate_series(0, %(runs)s::bigint - 1) number
    JOIN (SELECT id, organization_id, row_number() OVER (ORDER BY id) - 1 AS place, count(*) OVER () AS agents
        FROM public.agents) a ON a.place = number %% a.agents
"""
_RUNS = """
    INSERT INTO public.runs (id, status, completed_at, stop_reason, background, metadata_, agent_id, organization_id,
        created_at, updated_at)
    SELECT run_id, 'completed', ended AT TIME ZONE 'UTC', 'end_turn', false, '{"run_type": "send_message"}', agent_id,
        organization_id, ended - interval '5 minutes', ended
    FROM others
"""
_STEPS = """
    INSERT INTO public.steps (id, run_id, agent_id, organization_id, model, prompt_tokens, completion_tokens,
        total_tokens, status, created_at, updated_at)
    SELECT pg_temp.new_id('step', number * %(steps)s + step), run_id, agent_id, organization_id, 'gpt-4o-mini', 1000,
        100, 1100, 'SUCCESS', ended, ended
    FROM others, generate_series(0, %(steps)s - 1) step
    WHERE number >= %(first)s AND number < %(end)s
"""
_MESSAGES = """
    INSERT INTO public.messages (id, run_id, step_id, agent_id, organization_id, role, content, tool_calls,
        tool_returns, approvals, sequence_id, created_at, updated_at)
    SELECT pg_temp.new_id('message', number * %(messages)s + message), run_id,
        pg_temp.new_id('step', number * %(steps)s + message / (%(messages)s / %(steps)s)), agent_id, organization_id,
        'assistant',
        ('[{"type": "text", "text": "Message ' || message || ' of another run.", "signature": null}]')::json,
        '[]', '[]', '[]', %(sequence)s::bigint + number * %(messages)s + message, ended, ended
    FROM others, generate_series(0, %(messages)s - 1) message
    WHERE number >= %(first)s AND number < %(end)s
"""


def insert_others(connection: psycopg.Connection, messages: int, before: str) -> None:
    """Insert completed runs with their steps and so many messages (rounded up to whole runs of 100).

    Called while the tables have no indexes: keeping those would take many times as long.

    Args:
        connection: to a database with Letta's agents and other messages in it.
        messages: how many.
        before: ISO 8601 time of the first generated hour; all of these runs end a day or more earlier.
    """
    runs = -(-messages // MESSAGES_IN_A_RUN)
    sequence = connection.execute("SELECT max(sequence_id) + 1 FROM public.messages").fetchone()
    values = {
        "before": before,
        "runs": runs,
        "steps": STEPS_IN_A_RUN,
        "messages": MESSAGES_IN_A_RUN,
        "sequence": sequence and sequence[0],
    }
    # Sent as text, one by one: a statement of several would take no parameters.
    cursor = psycopg.ClientCursor(connection)
    for statement in (_ID, _OTHERS, _RUNS):
        cursor.execute(statement, values if "%(" in statement else None)
    for first in range(0, runs, _RUNS_AT_ONCE):
        for statement in (_STEPS, _MESSAGES):
            cursor.execute(statement, {**values, "first": first, "end": first + _RUNS_AT_ONCE})
        connection.commit()
