"""What the service reads of trajectories and verdicts: from tables, never from views, which would see every tenant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.storage.postgres.current_verdicts import CURRENT_VERDICT, CURRENT_VERDICTS
from trajectory_pipeline.storage.postgres.prepared import Prepared
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters, filter_conditions

Row = Mapping[str, Any]

_SUMMARY: LiteralString = (
    "t.run_id, t.source, t.trajectory_id, t.agent_id, t.agent_name, t.organization_id, t.project_id,"
    " t.conversation_id, t.start_time, t.end_time, t.execution_status, t.execution_cause, t.step_count,"
    " t.message_count, t.tools_used, t.models, t.total_tokens, t.heuristic_outcome, t.heuristic_confidence,"
    " o.verdict_status, o.outcome, o.outcome_confidence, o.disagrees, o.failure_owner, o.failure_mode,"
    " o.failed_step_id, o.learning_value, o.tags, o.task_category, o.summary, o.lesson, o.model AS judge_model,"
    " o.simulated, o.judged_at, o.policy_id"
)
_WHOLE: LiteralString = (
    _SUMMARY + ", t.heuristic_reasoning, t.partition_key, t.continues_run_id, t.content_digest, t.updated_at,"
    " t.data_omitted_reason, o.requirements, o.failure, o.decisions, o.coverage,"
    " (SELECT f.family_id FROM trajectory.task_family_runs f WHERE f.run_id = t.run_id) AS task_family,"
    " (SELECT coalesce(json_agg(json_build_object('run_id', s.similar_run_id, 'similarity', s.similarity)"
    " ORDER BY s.similarity DESC, s.similar_run_id), '[]') FROM trajectory.similar_runs s"
    " JOIN trajectory.trajectories u ON u.run_id = s.similar_run_id AND u.deleted_at IS NULL"
    " WHERE s.run_id = t.run_id) AS similar_runs"
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
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    if execution_statuses:
        conditions.append("t.execution_status = ANY(%(execution_statuses)s)")
        parameters["execution_statuses"] = list(execution_statuses)
    return _list(connection, filters, conditions, parameters, after, limit)


def _list(
    connection: psycopg.Connection,
    filters: SearchFilters,
    more: Sequence[str],
    values: Mapping[str, Any],
    after: Position | None,
    limit: int,
) -> list[dict[str, Any]]:
    conditions, parameters = filter_conditions(filters)
    conditions += more
    parameters |= values
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
    """Return a run with its current verdict; None where there is none, or it is deleted."""
    statement = (
        f"SELECT {_WHOLE} FROM trajectory.trajectories t{CURRENT_VERDICT}"
        " WHERE t.run_id = %(run_id)s AND t.deleted_at IS NULL"
    )
    return next(iter(_rows(connection, statement, {"run_id": run_id})), None)


RUN_WITH_DOCUMENT = Prepared(
    f"SELECT {_WHOLE}, CASE WHEN t.updated_at IS DISTINCT FROM $2::timestamptz THEN t.data::text END AS data"
    f" FROM trajectory.trajectories t{CURRENT_VERDICT} WHERE t.run_id = $1::text AND t.deleted_at IS NULL"
)
"""A run as ``read_run`` returns it, and the text of its document, unless it has not changed since a time."""


def list_lessons(
    connection: psycopg.Connection, filters: SearchFilters, after: Position | None, limit: int
) -> list[dict[str, Any]]:
    """Return runs whose current verdict has a lesson, as ``list_runs`` does."""
    return _list(connection, filters, ["o.lesson IS NOT NULL"], {}, after, limit)


_GROUPS: Mapping[str, tuple[LiteralString, LiteralString]] = {
    "none": ("NULL::text", ""),
    "agent": ("t.agent_id", ""),
    "organization": ("t.organization_id", ""),
    "day": ("to_char(t.end_time AT TIME ZONE 'UTC', 'YYYY-MM-DD')", ""),
    "week": ("to_char(date_trunc('week', t.end_time AT TIME ZONE 'UTC'), 'YYYY-MM-DD')", ""),
    "tool": ("tool", " CROSS JOIN LATERAL (SELECT DISTINCT unnest(t.tools_used) AS tool) g"),
    "model": ("model_name", " CROSS JOIN LATERAL (SELECT DISTINCT unnest(t.models) AS model_name) g"),
    "failure_mode": ("o.failure_mode", ""),
    "task_category": ("o.task_category", ""),
    "task_family": ("f.family_id", " LEFT JOIN trajectory.task_family_runs f ON f.run_id = t.run_id"),
}
"""What is counted by: an expression, and what to join for it."""
_OUTCOMES = ("success", "partial_success", "failure", "unknown")


def count_outcomes(
    connection: psycopg.Connection, filters: SearchFilters, group_by: str, limit: int
) -> list[dict[str, Any]]:
    """Return runs by judged and by heuristic outcome for each group, those with most runs first."""
    key, join = _GROUPS[group_by]
    name = "max(t.agent_name)" if group_by == "agent" else "NULL::text"
    conditions, parameters = filter_conditions(filters)
    counts = ", ".join(
        f"count(*) FILTER (WHERE {column} = '{outcome}') AS {kind}_{outcome}"
        for kind, column in (("judged", "o.outcome"), ("heuristic", "t.heuristic_outcome"))
        for outcome in _OUTCOMES
    )
    statement = (
        f"SELECT {key} AS key, {name} AS name, count(*) AS runs, {counts},"
        " avg(o.outcome_confidence) AS mean_confidence, coalesce(sum(t.total_tokens), 0)::bigint AS total_tokens"
        f" FROM trajectory.trajectories t{CURRENT_VERDICTS}{join}"
        f" WHERE {' AND '.join(conditions)} GROUP BY 1 ORDER BY 3 DESC, 1 NULLS LAST LIMIT %(limit)s"
    )
    return _rows(connection, statement, parameters | {"limit": limit})


def read_document(connection: psycopg.Connection, run_id: str) -> str | None:
    """Return the document of a run as JSON text; None where it has none."""
    statement = "SELECT data::text AS data FROM trajectory.trajectories WHERE run_id = %(run_id)s"
    (row,) = _rows(connection, statement, {"run_id": run_id})
    text: str | None = row["data"]
    return text


def newest_of_families(connection: psycopg.Connection, family_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return of each task family the newest run, one with a summary before all others: its id, summary and lesson."""
    statement = (
        "SELECT DISTINCT ON (f.family_id) f.family_id, t.run_id, t.agent_name, t.end_time, o.outcome, o.summary,"
        " o.lesson, coalesce(o.simulated, false) AS simulated"
        f" FROM trajectory.task_family_runs f JOIN trajectory.trajectories t USING (run_id){CURRENT_VERDICT}"
        " WHERE f.family_id = ANY(%(ids)s) AND t.deleted_at IS NULL"
        " ORDER BY f.family_id, o.summary IS NULL, t.end_time DESC NULLS LAST, t.run_id"
    )
    return {row.pop("family_id"): row for row in _rows(connection, statement, {"ids": list(family_ids)})}


def partitions_of(connection: psycopg.Connection, run_ids: Sequence[str]) -> dict[str, str]:
    """Return the partition key of each of these runs that is there and not deleted."""
    rows = _rows(
        connection,
        "SELECT run_id, partition_key FROM trajectory.trajectories WHERE run_id = ANY(%(ids)s) AND deleted_at IS NULL",
        {"ids": list(run_ids)},
    )
    return {row["run_id"]: row["partition_key"] for row in rows}


def erasure_state(connection: psycopg.Connection, run_id: str) -> dict[str, Any] | None:
    """Return a run's ``partition_key``, ``deleted_at`` and ``erased``; None where there is none."""
    rows = _rows(
        connection,
        "SELECT partition_key, deleted_at, erased FROM trajectory.trajectories WHERE run_id = %(run_id)s",
        {"run_id": run_id},
    )
    return next(iter(rows), None)


def _rows(connection: psycopg.Connection, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statement.encode(), parameters)
        return cursor.fetchall()
