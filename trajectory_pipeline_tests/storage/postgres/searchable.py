"""Runs made up for tests of search: a trajectory, its search text, its embedding and its verdict."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Column, ListOf, Scalar, Sink, Table
from trajectory_pipeline.schema.verdicts import POLICIES, VERDICTS

MODEL_ID = "made-up-3"
DIMENSIONS = 3
POLICY_ID = "policy-1"
NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
_FILL: dict[Any, Any] = {
    Scalar.STRING: "",
    Scalar.INT: 0,
    Scalar.FLOAT: 0.0,
    Scalar.BOOL: False,
    Scalar.TIMESTAMP: NOON,
    Scalar.MONEY: 0,
}


@dataclass(frozen=True)
class Run:
    """What a test says of a run."""

    run_id: str
    text: str | None = "text"
    vector: Sequence[float] | None = None
    agent_id: str = "agent-a"
    organization_id: str | None = "org-a"
    deleted: bool = False
    end_time: datetime = NOON
    heuristic_outcome: str = "success"
    judged_outcome: str | None = None
    lesson: str | None = None
    requirements: Sequence[Any] = ()
    tools: Sequence[str] = ()
    tags: Sequence[str] = ()
    failure_mode: str | None = None
    model_id: str = MODEL_ID
    task_family: str | None = None

    @property
    def partition_key(self) -> str:
        return self.end_time.strftime("%Y-%m-%d-%H:00")


def add_model(connection: psycopg.Connection, model_id: str = MODEL_ID, *, dimensions: int = DIMENSIONS) -> None:
    """Add the current embedding model and the current policy."""
    connection.execute(
        "INSERT INTO trajectory.embedding_models (model_id, name, dimensions, is_current, created_at)"
        " VALUES (%s, %s, %s, true, now())",
        [model_id, model_id, dimensions],
    )


def add_policy(connection: psycopg.Connection) -> None:
    """Add the current policy."""
    insert(connection, POLICIES, {"policy_id": POLICY_ID, "is_current": True})


def add_runs(connection: psycopg.Connection, runs: Sequence[Run]) -> None:
    """Add the runs with all that is said of them."""
    for run in runs:
        digest = hashlib.sha256(run.run_id.encode()).hexdigest()
        shared = {"run_id": run.run_id, "partition_key": run.partition_key, "content_digest": digest}
        insert(
            connection,
            TRAJECTORIES,
            {
                **shared,
                "agent_id": run.agent_id,
                "organization_id": run.organization_id,
                "end_time": run.end_time,
                "deleted_at": NOON if run.deleted else None,
                "heuristic_outcome": run.heuristic_outcome,
                "execution_status": "completed",
                "heuristic_confidence": 0.8,
                "tools_used": list(run.tools),
                "tags": list(run.tags),
            },
        )
        if run.text is not None:
            connection.execute(
                "INSERT INTO trajectory.search_texts"
                " (run_id, partition_key, text, rendering_version, text_digest, content_digest, rendered_at)"
                " VALUES (%s, %s, %s, '1', %s, %s, now())",
                [run.run_id, run.partition_key, run.text, digest, digest],
            )
        if run.vector is not None:
            connection.execute(
                "INSERT INTO trajectory.trajectory_embeddings (run_id, model_id, partition_key, text_digest,"
                " rendering_version, embedding, embedded_at, failures)"
                " VALUES (%s, %s, %s, %s, '1', %s::public.halfvec, now(), 0)",
                [run.run_id, run.model_id, run.partition_key, digest, str(list(run.vector))],
            )
        if run.task_family is not None:
            connection.execute(
                "INSERT INTO trajectory.task_family_runs (run_id, family_id, model_id, assigned_at)"
                " VALUES (%s, %s, %s, now())",
                [run.run_id, run.task_family, run.model_id],
            )
        if run.judged_outcome is not None:
            insert(
                connection,
                VERDICTS,
                {
                    **shared,
                    "verdict_key": digest,
                    "policy_id": POLICY_ID,
                    "verdict_status": "judged",
                    "outcome": run.judged_outcome,
                    "outcome_confidence": 0.9,
                    "lesson": run.lesson,
                    "summary": "what was done",
                    "failure_mode": run.failure_mode,
                    "requirements": Jsonb(list(run.requirements)),
                },
            )


@cache
def _columns(table: Table) -> tuple[Column, ...]:
    return table.in_sink(Sink.POSTGRES)


def insert(connection: psycopg.Connection, table: Table, values: dict[str, Any]) -> None:
    """Insert a row; columns that are never null and not given get a filler."""
    row = {column.name: _filler(column) for column in _columns(table) if not column.nullable} | values
    connection.execute(
        sql.SQL("INSERT INTO trajectory.{} ({}) VALUES ({})").format(
            sql.Identifier(table.name),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() * len(row)),
        ),
        list(row.values()),
    )


def _filler(column: Column) -> Any:
    if isinstance(column.type, ListOf):
        return []
    return _FILL.get(column.type, Jsonb({}))
