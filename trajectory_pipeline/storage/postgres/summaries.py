"""Counts, and the rows of one run, for commands, checks and explanations.

Every function raises ``SinkError`` if the database cannot be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import class_row

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase


@dataclass(frozen=True)
class DatabaseState:
    """What the database holds."""

    trajectories: int
    quarantined: int


@dataclass(frozen=True)
class QuarantinedRun:
    """A run that could not be converted: where in its JSON, and why."""

    run_id: str
    json_path: str
    error: str


@dataclass(frozen=True)
class QuarantineTotals:
    """Runs of a partition in quarantine, with their own steps and their messages."""

    runs: int
    steps: int
    messages: int


@dataclass(frozen=True)
class StoredRun:
    """The columns of ``trajectories`` that are compared with other sinks."""

    run_id: str
    content_digest: str
    step_count: int
    message_count: int


@dataclass(frozen=True)
class VerdictCount:
    """Trajectories of one verdict status (``none`` without a verdict) and error class (empty without an error)."""

    status: str
    error_class: str
    trajectories: int


@dataclass(frozen=True)
class RunsSummary:
    """What the database holds of some runs.

    Attributes:
        verdicts: trajectories by verdict status, the most frequent first.
        cost_usd: of all calls to the judge.
        judges: models that responded.
        simulated: whether every verdict that a call was made for is simulated.
    """

    trajectories: int
    quarantined: int
    verdicts: dict[str, int]
    cost_usd: Decimal
    judges: list[str]
    simulated: bool


def database_state(database: TrajectoryDatabase) -> DatabaseState:
    """Count trajectories and quarantine."""
    [row] = database.rows(
        "SELECT (SELECT count(*) FROM trajectory.trajectories) AS trajectories,"
        " (SELECT count(*) FROM trajectory.quarantine) AS quarantined"
    )
    return DatabaseState(**row)


def trajectories_by_partition(database: TrajectoryDatabase) -> dict[str, int]:
    """Return how many trajectories each partition has, by partition key."""
    rows = database.rows("SELECT partition_key, count(*) AS runs FROM trajectory.trajectories GROUP BY 1")
    return {row["partition_key"]: row["runs"] for row in rows}


def has_other_trajectories(database: TrajectoryDatabase, run_ids: Sequence[str]) -> bool:
    """Whether there is a trajectory of another run than these."""
    statement = "SELECT EXISTS (SELECT FROM trajectory.trajectories WHERE NOT run_id = ANY(%s)) AS found"
    return bool(database.rows(statement, [list(run_ids)])[0]["found"])


def count_trajectories(database: TrajectoryDatabase, partition_keys: Sequence[str]) -> int:
    """Return how many trajectories these partitions have."""
    statement = "SELECT count(*) AS runs FROM trajectory.trajectories WHERE partition_key = ANY(%s)"
    return int(database.rows(statement, [list(partition_keys)])[0]["runs"])


def example_run(database: TrajectoryDatabase, partition_keys: Sequence[str]) -> str | None:
    """Return the run with most steps of these partitions; None where they have no trajectory."""
    rows = database.rows(
        "SELECT run_id FROM trajectory.trajectories WHERE partition_key = ANY(%s)"
        " ORDER BY step_count DESC, run_id LIMIT 1",
        [list(partition_keys)],
    )
    return rows[0]["run_id"] if rows else None


def stored_runs(connection: psycopg.Connection, partition_key: str) -> list[StoredRun]:
    """Return a partition's trajectories as they are compared with other sinks."""
    with connection.cursor(row_factory=class_row(StoredRun)) as cursor:
        return cursor.execute(
            "SELECT run_id, content_digest, coalesce(step_count, 0) AS step_count,"
            " coalesce(message_count, 0) AS message_count FROM trajectory.trajectories WHERE partition_key = %s",
            [partition_key],
        ).fetchall()


def quarantine_totals(connection: psycopg.Connection, partition_key: str) -> QuarantineTotals:
    """Count what a partition has in quarantine."""
    row = connection.execute(
        "SELECT count(*), coalesce(sum(steps), 0)::bigint, coalesce(sum(messages), 0)::bigint"
        " FROM trajectory.quarantine WHERE partition_key = %s",
        [partition_key],
    ).fetchone()
    return QuarantineTotals(*(row or (0, 0, 0)))


def quarantined_runs(database: TrajectoryDatabase, partition_keys: Sequence[str]) -> list[QuarantinedRun]:
    """Return the runs of these partitions that are in quarantine, sorted by run id."""
    rows = database.rows(
        "SELECT run_id, json_path, error FROM trajectory.quarantine WHERE partition_key = ANY(%s) ORDER BY 1",
        [list(partition_keys)],
    )
    return [QuarantinedRun(**row) for row in rows]


def partitions_of_runs(database: TrajectoryDatabase, run_ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the partition of each of these runs' rows in ``trajectories``; a run without a row is left out."""
    rows = database.rows(
        "SELECT run_id, array_agg(partition_key ORDER BY partition_key) AS keys FROM trajectory.trajectories"
        " WHERE run_id = ANY(%s) GROUP BY 1",
        [list(run_ids)],
    )
    return {row["run_id"]: row["keys"] for row in rows}


def failed_verdicts(database: TrajectoryDatabase, partition_keys: Sequence[str]) -> dict[str, str]:
    """Return the error class of each run of these partitions whose verdict failed or is invalid, sorted by run id."""
    rows = database.rows(
        "SELECT run_id, error_class FROM trajectory.outcomes WHERE partition_key = ANY(%s)"
        " AND verdict_status IN ('failed', 'quarantined') ORDER BY 1",
        [list(partition_keys)],
    )
    return {row["run_id"]: row["error_class"] for row in rows}


def calls_above_reservation(database: TrajectoryDatabase, budget_day: str, most: int) -> list[str]:
    """Return a sentence for each call of a UTC day that cost more than was reserved for it, the worst first."""
    rows = database.rows(
        "SELECT run_id, reserved_usd, cost_usd, reserved_tokens, input_tokens + output_tokens AS tokens"
        " FROM trajectory.verdict_attempts WHERE budget_day = %s"
        " AND (cost_usd > reserved_usd OR input_tokens + output_tokens > reserved_tokens)"
        " ORDER BY cost_usd - reserved_usd DESC NULLS LAST, run_id LIMIT %s",
        [budget_day, most],
    )
    return [
        f"{row['run_id']}: {row['cost_usd']} USD and {row['tokens']} tokens, where {row['reserved_usd']} USD and"
        f" {row['reserved_tokens']} tokens were reserved"
        for row in rows
    ]


def verdict_counts(database: TrajectoryDatabase, partition_keys: Sequence[str]) -> list[VerdictCount]:
    """Count the trajectories of these partitions by verdict status and error class, the most frequent first."""
    rows = database.rows(
        "SELECT coalesce(verdict_status, 'none') AS status, coalesce(error_class, '') AS error_class,"
        " count(*) AS trajectories FROM trajectory.outcomes WHERE partition_key = ANY(%s)"
        " GROUP BY 1, 2 ORDER BY 3 DESC",
        [list(partition_keys)],
    )
    return [VerdictCount(**row) for row in rows]


def summarize_runs(database: TrajectoryDatabase, run_ids: Sequence[str]) -> RunsSummary:
    """Count what the database holds of these runs, and what judging them cost."""
    verdicts = database.rows(
        "SELECT coalesce(verdict_status, 'none') AS status, count(*) AS number FROM trajectory.outcomes"
        " WHERE run_id = ANY(%s) GROUP BY 1 ORDER BY 2 DESC, 1",
        [list(run_ids)],
    )
    [counts] = database.rows(
        "SELECT (SELECT count(*) FROM trajectory.trajectories WHERE run_id = ANY(%(ids)s)) AS trajectories,"
        " (SELECT count(*) FROM trajectory.quarantine WHERE run_id = ANY(%(ids)s)) AS quarantined,"
        " (SELECT coalesce(bool_and(simulated), true) FROM trajectory.verdicts WHERE run_id = ANY(%(ids)s)"
        " AND attempts > 0) AS simulated, coalesce(sum(cost_usd), 0) AS cost_usd,"
        " coalesce(array_remove(array_agg(DISTINCT response_model), NULL), '{}') AS judges"
        " FROM trajectory.verdict_attempts WHERE run_id = ANY(%(ids)s)",
        {"ids": list(run_ids)},
    )
    return RunsSummary(verdicts={row["status"]: row["number"] for row in verdicts}, **counts)


def outcome_of_run(database: TrajectoryDatabase, run_id: str) -> dict[str, Any] | None:
    """Return a run's row of the view ``outcomes``; None where there is none."""
    return next(iter(database.rows("SELECT * FROM trajectory.outcomes WHERE run_id = %s", [run_id])), None)


def continuing_runs(database: TrajectoryDatabase, run_id: str) -> list[str]:
    """Return the ids of the runs that continue a run, the earliest first."""
    rows = database.rows(
        "SELECT continued_by_run_id AS id FROM trajectory.chains WHERE run_id = %s ORDER BY continued_at", [run_id]
    )
    return [row["id"] for row in rows]


def verdicts_of_run(database: TrajectoryDatabase, run_id: str) -> list[dict[str, Any]]:
    """Return a run's verdicts with the ``definition`` of their policies, that of the current policy first."""
    return database.rows(
        "SELECT v.*, p.definition, p.is_current FROM trajectory.verdicts v LEFT JOIN trajectory.policies p"
        " USING (policy_id) WHERE v.run_id = %s"
        " ORDER BY p.is_current DESC NULLS LAST, v.repetition, v.updated_at DESC",
        [run_id],
    )


def attempts_of_run(database: TrajectoryDatabase, run_id: str) -> list[dict[str, Any]]:
    """Return the calls to a judge that were made for a run, the earliest first."""
    return database.rows("SELECT * FROM trajectory.verdict_attempts WHERE run_id = %s ORDER BY started_at", [run_id])
