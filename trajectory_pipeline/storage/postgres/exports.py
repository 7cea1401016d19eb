"""Which runs an export holds: ids, groups and verdicts, by filters."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase


@dataclass(frozen=True)
class ExportFilters:
    """Which runs are exported; what is None or empty leaves nothing out.

    Attributes:
        outcomes: of the verdict; where there is none, the heuristic ones, unless ``judged_only``.
        judged_only: only runs with a verdict under the current policy.
        min_confidence: of the verdict's outcome, 0–1.
        min_learning_value: 0–1.
        agents: ids or names.
        tools: that ran; one of them is enough.
        completed_from: first ``end_time``, inclusive.
        completed_to: last one, exclusive.
        labels: values that people gave as the outcome.
        families: ids of task families.
    """

    outcomes: tuple[str, ...] = ()
    judged_only: bool = False
    min_confidence: float | None = None
    min_learning_value: float | None = None
    agents: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    completed_from: datetime | None = None
    completed_to: datetime | None = None
    labels: tuple[str, ...] = ()
    families: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SelectedRun:
    """One run to export: where it is, what it belongs together with, and its verdict.

    Attributes:
        chain: the run that the chain of its task begins with.
    """

    run_id: str
    partition_key: str
    content_digest: str
    conversation_id: str | None
    chain: str
    family_id: str | None
    verdict: dict[str, Any] | None


_CONDITIONS = {
    "outcomes": "coalesce(o.outcome, o.heuristic_outcome) = ANY(%(outcomes)s)",
    "judged_only": "o.outcome IS NOT NULL",
    "min_confidence": "o.outcome_confidence >= %(min_confidence)s",
    "min_learning_value": "o.learning_value >= %(min_learning_value)s",
    "agents": "(o.agent_id = ANY(%(agents)s) OR o.agent_name = ANY(%(agents)s))",
    "tools": "o.tools_used && %(tools)s::text[]",
    "completed_from": "o.end_time >= %(completed_from)s",
    "completed_to": "o.end_time < %(completed_to)s",
    "labels": "EXISTS (SELECT FROM trajectory.labels l WHERE l.run_id = o.run_id AND l.criterion = 'outcome'"
    " AND l.superseded_at IS NULL AND l.source <> 'letta_feedback' AND l.value = ANY(%(labels)s))",
    "families": "f.family_id = ANY(%(families)s)",
}
_VERDICT = (
    *("verdict_status", "outcome", "outcome_confidence", "failure_owner", "failure_mode", "learning_value"),
    *("tags", "task_category", "summary", "lesson", "policy_id"),
)
_SELECT = f"""
WITH RECURSIVE chosen AS (
    SELECT o.run_id, t.partition_key, t.content_digest, t.conversation_id, f.family_id, o.judge_model AS model,
        o.simulated, coalesce(t.end_time, t.start_time) AS ended, {", ".join(f"o.{name}" for name in _VERDICT)}
    FROM trajectory.outcomes o JOIN trajectory.trajectories t USING (run_id)
    LEFT JOIN trajectory.task_family_runs f USING (run_id) WHERE {{conditions}}
),
chain (run_id, root, depth) AS (
    SELECT run_id, run_id, 0 FROM chosen
    UNION ALL
    SELECT c.run_id, t.continues_run_id, c.depth + 1 FROM chain c
    JOIN trajectory.trajectories t ON t.run_id = c.root
    WHERE t.continues_run_id IS NOT NULL AND c.depth < 1000
),
root AS (SELECT DISTINCT ON (run_id) run_id, root FROM chain ORDER BY run_id, depth DESC)
SELECT chosen.*, root.root AS chain FROM chosen JOIN root USING (run_id) ORDER BY ended, run_id
"""


def select_runs(database: TrajectoryDatabase, filters: ExportFilters) -> list[SelectedRun]:
    """Return the runs that filters leave, the earliest first; never those that are deleted at the source.

    Raises:
        SinkError: the database cannot be read.
    """
    values = {name: getattr(filters, name) for name in _CONDITIONS}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}
    # A bound of 0 is a condition too: without a verdict there is no confidence.
    given |= {name: values[name] for name in ("min_confidence", "min_learning_value") if values[name] is not None}
    conditions = " AND ".join(_CONDITIONS[name] for name in given) or "true"
    return [_selected(row) for row in database.rows(_SELECT.format(conditions=conditions), given)]


def _selected(row: dict[str, Any]) -> SelectedRun:
    verdict = {name: row[name] for name in (*_VERDICT, "model", "simulated")}
    return SelectedRun(
        row["run_id"],
        row["partition_key"],
        row["content_digest"],
        row["conversation_id"],
        row["chain"],
        row["family_id"],
        verdict if row["verdict_status"] is not None else None,
    )
