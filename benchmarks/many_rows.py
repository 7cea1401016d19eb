"""A table of trajectories with any number of rows, multiplied in SQL from converted ones."""

import psycopg

AGENTS = 2_000
DAYS = 365
RARE_TOOL = "rare_tool"
RARE_MODEL = "rare-model"
_RARE_ONE_IN = 2_000
_ROWS_AT_ONCE = 50_000

# What differs from the row that is multiplied; all else is as it was.
_CHANGED = {
    "run_id": "'run-' || md5('run' || n)::uuid",
    "trajectory_id": "md5('trajectory' || n)::uuid::text",
    "agent_id": f"'agent-' || md5('agent' || n %% {AGENTS})::uuid",
    "agent_name": f"agent_name || ' ' || n %% {AGENTS}",
    "end_time": "ended",
    "start_time": "ended - duration_ns / 1000 * interval '1 microsecond'",
    "partition_key": "to_char(ended AT TIME ZONE 'UTC', 'YYYY-MM-DD-HH24:00')",
    "tools_used": f"CASE n %% {_RARE_ONE_IN} WHEN 7 THEN tools_used || ARRAY['{RARE_TOOL}'] ELSE tools_used END",
    "models": f"CASE n %% {_RARE_ONE_IN} WHEN 11 THEN ARRAY['{RARE_MODEL}'] ELSE models END",
    "continues_run_id": "CASE WHEN continues_run_id IS NOT NULL THEN 'run-' || md5('run' || n - 1)::uuid END",
}


def multiply(connection: psycopg.Connection, rows: int) -> None:
    """Fill ``trajectory.trajectories`` up to so many rows, and gather statistics.

    Args:
        connection: in autocommit, to a database that holds some trajectories.
        rows: how many there are to be, of 2,000 agents, spread over a year; one in 2,000 uses a tool and one a model
            that no other does.
    """
    names = [
        str(row[0])
        for row in connection.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = 'trajectory' AND table_name = 'trajectories'"
        )
    ]
    there = [str(row[0]) for row in connection.execute("SELECT run_id FROM trajectory.trajectories ORDER BY run_id")]
    ended = f"timestamptz '2025-01-01 00:00+00' + (n::bigint * 7919 %% {DAYS * 86_400}) * interval '1 second'"
    for first in range(len(there), rows, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, rows) - 1
        connection.execute(
            f"INSERT INTO trajectory.trajectories ({', '.join(names)})"
            f" SELECT {', '.join(_CHANGED.get(name, name) for name in names)}"
            f" FROM generate_series(%s::int, %s) n CROSS JOIN LATERAL (SELECT {ended} AS ended) e"
            " JOIN trajectory.trajectories t ON t.run_id = (%s::text[])[1 + n %% cardinality(%s::text[])]".encode(),
            [first, last, there, there],
        )
    connection.execute("VACUUM (ANALYZE) trajectory.trajectories")


def multiply_verdicts(connection: psycopg.Connection, rows: int) -> None:
    """Give each trajectory that ``multiply`` made the verdict of the one that it was made from."""
    names = [
        str(row[0])
        for row in connection.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = 'trajectory' AND table_name = 'verdicts'"
        )
    ]
    made = "'run-' || md5('run' || n)::uuid"
    chosen = ", ".join({"run_id": made}.get(name, f"v.{name}") for name in names)
    connection.execute(
        f"INSERT INTO trajectory.verdicts ({', '.join(names)}) SELECT {chosen} FROM generate_series(1, %s) n"
        f" JOIN trajectory.trajectories t ON t.run_id = {made}"
        " JOIN trajectory.verdicts v ON v.content_digest = t.content_digest".encode(),
        [rows],
    )
    connection.execute("VACUUM (ANALYZE) trajectory.verdicts")
