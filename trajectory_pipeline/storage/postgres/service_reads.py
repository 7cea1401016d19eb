"""What the service reads of trajectories and verdicts: from tables, never from views, which would see every tenant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.storage.postgres.current_verdicts import CURRENT_VERDICT
from trajectory_pipeline.storage.postgres.search import SearchFilters, filter_conditions

Row = Mapping[str, Any]

_SUMMARY: LiteralString = (
    "t.run_id, t.trajectory_id, t.agent_id, t.agent_name, t.organization_id, t.project_id, t.conversation_id,"
    " t.start_time, t.end_time, t.execution_status, t.execution_cause, t.step_count, t.message_count, t.tools_used,"
    " t.models, t.total_tokens, t.heuristic_outcome, t.heuristic_confidence,"
    " o.verdict_status, o.outcome, o.outcome_confidence, o.disagrees, o.failure_owner, o.failure_mode,"
    " o.failed_step_id, o.learning_value, o.tags, o.task_category, o.summary, o.lesson, o.model AS judge_model,"
    " o.simulated, o.judged_at, o.policy_id"
)
_WHOLE: LiteralString = (
    _SUMMARY + ", t.heuristic_reasoning, t.partition_key, t.continues_run_id, t.content_digest, t.updated_at,"
    " t.data::text AS document, t.data_omitted_reason, o.requirements, o.failure, o.decisions, o.coverage,"
    " o.updated_at AS verdict_updated_at"
)


@dataclass(frozen=True)
class Position:
    """Where a page ended: the last run's end and id."""

    end_time: datetime | None
    run_id: str


def list_runs(
    connection: psycopg.Connection,
    filters: SearchFilters,
    execution_statuses: Sequence[str],
    after: Position | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return summaries of runs with their current verdict, the newest end first; runs without an end come first."""
    conditions, parameters = filter_conditions(filters)
    if execution_statuses:
        conditions.append("t.execution_status = ANY(%(execution_statuses)s)")
        parameters["execution_statuses"] = list(execution_statuses)
    if after is not None:
        parameters |= {"end_time": after.end_time, "run_id": after.run_id}
        conditions.append(
            "(t.end_time IS NOT NULL OR t.run_id < %(run_id)s)"
            if after.end_time is None
            else "(t.end_time, t.run_id) < (%(end_time)s, %(run_id)s)"
        )
    statement = (
        f"SELECT {_SUMMARY} FROM trajectory.trajectories t{CURRENT_VERDICT} WHERE {' AND '.join(conditions)}"
        " ORDER BY t.end_time DESC NULLS FIRST, t.run_id DESC LIMIT %(limit)s"
    )
    return _rows(connection, statement, parameters | {"limit": limit})


def read_run(connection: psycopg.Connection, run_id: str) -> dict[str, Any] | None:
    """Return a run with its document, as JSON text, and its current verdict; None where there is none, or deleted."""
    statement = (
        f"SELECT {_WHOLE} FROM trajectory.trajectories t{CURRENT_VERDICT}"
        " WHERE t.run_id = %(run_id)s AND t.deleted_at IS NULL"
    )
    return next(iter(_rows(connection, statement, {"run_id": run_id})), None)


def _rows(connection: psycopg.Connection, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statement.encode(), parameters)
        return cursor.fetchall()
