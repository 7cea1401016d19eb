"""The tables of the report, counted in SQL, and the trajectories that are most worth reading."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

Row = dict[str, Any]

_BASE = """
WITH base AS MATERIALIZED (
    SELECT o.run_id, coalesce(o.agent_name, o.agent_id) AS agent, o.models, o.tools_used, o.start_time, o.end_time,
        o.execution_status, o.heuristic_outcome, o.verdict_status, o.outcome, o.outcome_confidence, o.coverage,
        o.disagrees, o.failure_owner, o.failure_mode, o.learning_value, o.judge_model, o.simulated, o.judge_cost_usd,
        to_char(date_trunc(%(period)s, coalesce(o.end_time, o.start_time) AT TIME ZONE 'UTC'), 'YYYY-MM-DD') AS period
    FROM trajectory.outcomes o
    WHERE (%(first)s::text IS NULL OR o.partition_key >= %(first)s)
        AND (%(after_last)s::text IS NULL OR o.partition_key < %(after_last)s)
)
"""
_OUTCOMES = """
    count(*) AS runs,
    count(*) FILTER (WHERE verdict_status = 'judged') AS judged,
    count(*) FILTER (WHERE outcome = 'success') AS success,
    count(*) FILTER (WHERE outcome = 'partial_success') AS partial_success,
    count(*) FILTER (WHERE outcome = 'failure') AS failure,
    count(*) FILTER (WHERE outcome = 'unknown') AS unknown
"""
_TABLES = {
    "totals": f"""
        SELECT {_OUTCOMES}, count(DISTINCT agent) AS agents, min(coalesce(end_time, start_time)) AS first_end,
            max(coalesce(end_time, start_time)) AS last_end, sum(judge_cost_usd) AS judge_cost_usd,
            avg(outcome_confidence) AS mean_confidence, avg(coverage) AS mean_coverage,
            count(*) FILTER (WHERE disagrees) AS disagrees, coalesce(bool_or(simulated), false) AS simulated,
            array_remove(array_agg(DISTINCT judge_model), NULL) AS judges
        FROM base""",
    "endings": """
        SELECT execution_status, count(*) AS runs FROM base GROUP BY 1 ORDER BY 2 DESC, 1""",
    "verdict_statuses": """
        SELECT coalesce(verdict_status, 'no verdict') AS verdict_status, count(*) AS runs
        FROM base GROUP BY 1 ORDER BY 2 DESC, 1""",
    "periods": f"SELECT period, {_OUTCOMES}, sum(judge_cost_usd) AS judge_cost_usd FROM base GROUP BY 1 ORDER BY 1",
    "agents": f"SELECT agent, {_OUTCOMES} FROM base GROUP BY 1 ORDER BY runs DESC, agent",
    "models": f"""
        SELECT model, {_OUTCOMES} FROM base, unnest(models) AS model GROUP BY 1 ORDER BY runs DESC, model""",
    "tools": f"""
        SELECT tool, {_OUTCOMES} FROM base, unnest(tools_used) AS tool GROUP BY 1 ORDER BY runs DESC, tool""",
    # The example is the newest judged run.
    "families": f"""
        SELECT c.*, o.summary AS example FROM (
            SELECT f.family_id AS family, {_OUTCOMES}, (array_agg(run_id ORDER BY (verdict_status = 'judged') DESC
                NULLS LAST, end_time DESC NULLS LAST, run_id))[1] AS example_run_id
            FROM base JOIN trajectory.task_family_runs f USING (run_id) GROUP BY 1
        ) c LEFT JOIN trajectory.outcomes o ON o.run_id = c.example_run_id ORDER BY runs DESC, family""",
    "failures": """
        SELECT period, failure_owner, failure_mode, count(*) AS runs FROM base
        WHERE failure_mode <> 'none' GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3""",
}
# Where the heuristic is wrong there is most to learn; then by how useful the judge found the run.
_WORTH_READING = """
    SELECT run_id FROM base WHERE verdict_status = 'judged'
    ORDER BY (disagrees AND outcome = 'failure') DESC, learning_value DESC, outcome_confidence DESC, run_id
    LIMIT %(count)s"""


@dataclass(frozen=True)
class ReportRun:
    """A trajectory with its row of ``trajectory.outcomes``."""

    trajectory: Row
    outcome: Row


def report_tables(
    database: TrajectoryDatabase, first: str | None, after_last: str | None, period: str
) -> dict[str, list[Row]]:
    """Return each table's rows by its name.

    Args:
        database: the trajectory database.
        first: first partition key; None for no limit.
        after_last: the partition key after the last one; None for no limit.
        period: ``day`` or ``week``: the periods that are counted.

    Raises:
        SinkError: the database cannot be read.
    """
    parameters = {"first": first, "after_last": after_last, "period": period}
    return {name: database.rows(_BASE + query, parameters) for name, query in _TABLES.items()}


def runs_worth_reading(
    database: TrajectoryDatabase, first: str | None, after_last: str | None, count: int
) -> list[ReportRun]:
    """Return the judged trajectories that are most worth reading, best first.

    Failures that the heuristic took for something else come first, then those with the highest learning value.
    """
    parameters = {"first": first, "after_last": after_last, "period": "day", "count": count}
    return runs_by_id(database, [row["run_id"] for row in database.rows(_BASE + _WORTH_READING, parameters)])


def runs_by_id(database: TrajectoryDatabase, run_ids: Sequence[str]) -> list[ReportRun]:
    """Return trajectories by run id, in this order; those that are not there are left out."""
    trajectories = {
        row["run_id"]: row
        for row in database.rows("SELECT * FROM trajectory.trajectories WHERE run_id = ANY(%s)", [list(run_ids)])
    }
    outcomes = {
        row["run_id"]: row
        for row in database.rows("SELECT * FROM trajectory.outcomes WHERE run_id = ANY(%s)", [list(run_ids)])
    }
    return [
        ReportRun(trajectories[run_id], outcomes[run_id])
        for run_id in run_ids
        if run_id in trajectories and run_id in outcomes
    ]


def reported_range(database: TrajectoryDatabase) -> tuple[datetime, datetime] | None:
    """Return the end of the first and of the last run that is not deleted; None where there is none."""
    (row,) = database.rows(
        "SELECT min(coalesce(end_time, start_time)) AS first, max(coalesce(end_time, start_time)) AS last"
        " FROM trajectory.trajectories WHERE deleted_at IS NULL"
    )
    return None if row["first"] is None else (row["first"], row["last"])
