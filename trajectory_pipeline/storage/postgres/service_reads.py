"""What the service reads of trajectories and verdicts: from tables, never from views, which would see every tenant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

Row = Mapping[str, Any]

_CURRENT_VERDICT: LiteralString = (
    " LEFT JOIN LATERAL (SELECT v.* FROM trajectory.verdicts v"
    " JOIN trajectory.policies p ON p.policy_id = v.policy_id AND p.is_current"
    " WHERE v.run_id = t.run_id AND v.content_digest = t.content_digest AND v.repetition = 0"
    " ORDER BY v.updated_at DESC, v.verdict_key LIMIT 1) v ON true"
)
"""As in the view ``outcomes``."""
_SUMMARY: LiteralString = (
    "t.run_id, t.trajectory_id, t.agent_id, t.agent_name, t.organization_id, t.project_id, t.conversation_id,"
    " t.start_time, t.end_time, t.execution_status, t.execution_cause, t.step_count, t.message_count, t.tools_used,"
    " t.models, t.total_tokens, t.heuristic_outcome, t.heuristic_confidence,"
    " v.verdict_status, v.outcome, v.outcome_confidence, v.disagrees, v.failure_owner, v.failure_mode,"
    " v.failed_step_id, v.learning_value, v.tags, v.task_category, v.summary, v.lesson, v.model AS judge_model,"
    " v.simulated, v.judged_at, v.policy_id"
)
_WHOLE: LiteralString = (
    _SUMMARY + ", t.heuristic_reasoning, t.partition_key, t.continues_run_id, t.content_digest, t.updated_at,"
    " t.data::text AS document, t.data_omitted_reason, v.requirements, v.failure, v.decisions, v.coverage,"
    " v.updated_at AS verdict_updated_at"
)


@dataclass(frozen=True)
class RunFilters:
    """Which runs are listed; empty and None ask nothing.

    Attributes:
        completed_from: start of the time in which the run ended.
        completed_to: end of that time, exclusive.
        outcomes: judged outcomes under the current policy.
        heuristic_outcomes: outcomes by rule.
    """

    agent_ids: Sequence[str] = ()
    organization_ids: Sequence[str] = ()
    project_ids: Sequence[str] = ()
    completed_from: datetime | None = None
    completed_to: datetime | None = None
    outcomes: Sequence[str] = ()
    heuristic_outcomes: Sequence[str] = ()
    execution_statuses: Sequence[str] = ()
    tools: Sequence[str] = ()
    models: Sequence[str] = ()
    failure_modes: Sequence[str] = ()
    tags: Sequence[str] = ()


_CONDITIONS: Mapping[str, LiteralString] = {
    "agent_ids": "t.agent_id = ANY(%(agent_ids)s)",
    "organization_ids": "t.organization_id = ANY(%(organization_ids)s)",
    "project_ids": "t.project_id = ANY(%(project_ids)s)",
    "completed_from": "t.end_time >= %(completed_from)s",
    "completed_to": "t.end_time < %(completed_to)s",
    "outcomes": "v.outcome = ANY(%(outcomes)s)",
    "heuristic_outcomes": "t.heuristic_outcome = ANY(%(heuristic_outcomes)s)",
    "execution_statuses": "t.execution_status = ANY(%(execution_statuses)s)",
    "tools": "t.tools_used && %(tools)s::text[]",
    "models": "t.models && %(models)s::text[]",
    "failure_modes": "v.failure_mode = ANY(%(failure_modes)s)",
    "tags": "v.tags && %(tags)s::text[]",
}


@dataclass(frozen=True)
class Position:
    """Where a page ended: the last run's end and id."""

    end_time: datetime | None
    run_id: str


def list_runs(
    connection: psycopg.Connection, filters: RunFilters, after: Position | None, limit: int
) -> list[dict[str, Any]]:
    """Return summaries of runs with their current verdict, the newest end first; runs without an end come first."""
    conditions, parameters = _conditions(filters)
    if after is not None:
        parameters |= {"end_time": after.end_time, "run_id": after.run_id}
        conditions.append(
            "(t.end_time IS NOT NULL OR t.run_id < %(run_id)s)"
            if after.end_time is None
            else "(t.end_time, t.run_id) < (%(end_time)s, %(run_id)s)"
        )
    statement = (
        f"SELECT {_SUMMARY} FROM trajectory.trajectories t{_CURRENT_VERDICT} WHERE {' AND '.join(conditions)}"
        " ORDER BY t.end_time DESC NULLS FIRST, t.run_id DESC LIMIT %(limit)s"
    )
    return _rows(connection, statement, parameters | {"limit": limit})


def read_run(connection: psycopg.Connection, run_id: str) -> dict[str, Any] | None:
    """Return a run with its document, as JSON text, and its current verdict; None where there is none, or deleted."""
    statement = (
        f"SELECT {_WHOLE} FROM trajectory.trajectories t{_CURRENT_VERDICT}"
        " WHERE t.run_id = %(run_id)s AND t.deleted_at IS NULL"
    )
    return next(iter(_rows(connection, statement, {"run_id": run_id})), None)


def _conditions(filters: RunFilters) -> tuple[list[str], dict[str, Any]]:
    given = {name: value for name in _CONDITIONS if (value := getattr(filters, name)) not in ((), [], None)}
    parameters = {name: list(value) if isinstance(value, Sequence) else value for name, value in given.items()}
    return ["t.deleted_at IS NULL", *(_CONDITIONS[name] for name in given)], parameters


def _rows(connection: psycopg.Connection, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statement.encode(), parameters)
        return cursor.fetchall()
