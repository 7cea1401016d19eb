"""Calls to a judge as the accounts see them, and short ways to look at what is totals_by_scope."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from trajectory_pipeline.budget.caps import Cap, Cost
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection
from trajectory_pipeline.storage.postgres.spend_ledger import (
    CallReservation,
    ReservationResult,
    settle_and_reserve,
)
from trajectory_pipeline.storage.postgres.verdict_locks import VerdictLock
from trajectory_pipeline_tests.storage.rows import Row

SPENT = ("calls", "reserved_usd", "spent_usd", "reserved_tokens", "spent_tokens")


def reservation(usd: str | None = "0.01", tokens: int = 100, **values: Any) -> CallReservation:
    """A call that may cost so much at most, for a verdict of its own."""
    attempt_id = values.pop("attempt_id", None) or str(uuid.uuid4())
    key = values.pop("verdict_key", None) or f"key-{attempt_id}"
    worker, seconds, former = values.pop("worker", "worker"), values.pop("seconds", 60.0), values.pop("former", None)
    reserved = Cost(Decimal(usd or 0), tokens)
    row: Row = {
        "attempt_id": attempt_id,
        "run_id": f"run-{key}",
        "verdict_key": key,
        "policy_id": "policy",
        "started_at": datetime.now(UTC),
        "model": "m",
        "base_url": "http://localhost/v1",
        "prompt_characters": 10,
        "response_format": "json_schema",
        "result": "lost",
        "cost_usd": None if usd is None else Decimal(usd),
        "reserved_usd": None if usd is None else Decimal(usd),
        "reserved_tokens": tokens,
        "organization_id": "org",
        "materialization_id": "run",
        **values,
    }
    return CallReservation(row, reserved, reserved, [VerdictLock(row["run_id"], key, worker, seconds, former)])


def begin_calls(
    connection: RetryingConnection, caps: Sequence[Cap], calls: Sequence[CallReservation]
) -> list[ReservationResult]:
    """Reserve budget for calls, with none to settle."""
    return settle_and_reserve(connection, caps, calls, ())


def end_calls(connection: RetryingConnection, attempts: Sequence[Row]) -> None:
    """Settle calls, with none to begin."""
    settle_and_reserve(connection, (), (), attempts)


def ended_attempt(call: CallReservation, usd: str | None, **values: Any) -> Row:
    """The row of a call that was answered."""
    told = {"result": "answered", "duration_ns": 1, "input_tokens": 7, "output_tokens": 2}
    return {**call.attempt, **told, "cost_usd": None if usd is None else Decimal(usd), **values}


def totals_by_scope(database: TrajectoryDatabase) -> dict[str, tuple[Any, ...]]:
    """Every account by scope; there is one of each in a test."""
    rows = database.rows("SELECT * FROM trajectory.spend_totals")
    return {row["scope"]: tuple(row[name] for name in SPENT) for row in rows}


def totals_from_attempts(database: TrajectoryDatabase) -> tuple[Any, ...]:
    """What one account must hold, added up from the attempts by a second, plain opinion."""
    (row,) = database.rows(
        "SELECT count(*) AS calls,"
        " coalesce(sum(reserved_usd) FILTER (WHERE duration_ns IS NULL), 0) AS reserved_usd,"
        " coalesce(sum(CASE WHEN result = 'error' THEN 0 ELSE coalesce(cost_usd, reserved_usd, 0) END)"
        " FILTER (WHERE duration_ns IS NOT NULL), 0) AS spent_usd,"
        " coalesce(sum(reserved_tokens) FILTER (WHERE duration_ns IS NULL), 0) AS reserved_tokens,"
        " coalesce(sum(CASE WHEN result = 'error' THEN 0"
        " ELSE coalesce(input_tokens + output_tokens, reserved_tokens) END)"
        " FILTER (WHERE duration_ns IS NOT NULL), 0) AS spent_tokens FROM trajectory.verdict_attempts"
    )
    return tuple(row[name] for name in SPENT)
