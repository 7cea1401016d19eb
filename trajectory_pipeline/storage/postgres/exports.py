"""Which runs an export holds: ids, groups and verdicts, by filters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.schema.exports import ExportFilters, SelectedRun
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdict_status import FIRST_RUN

_CONDITIONS = {
    "outcomes": "coalesce(o.outcome, o.heuristic_outcome) = ANY(%(outcomes)s)",
    "judged_only": "o.outcome IS NOT NULL",
    "min_confidence": "o.outcome_confidence >= %(min_confidence)s",
    "min_learning_value": "o.learning_value >= %(min_learning_value)s",
    "agents": "(o.agent_id = ANY(%(agents)s) OR o.agent_name = ANY(%(agents)s))",
    "tools": "o.tools_used && %(tools)s::text[]",
    "sources": "t.source = ANY(%(sources)s)",
    "completed_from": "o.end_time >= %(completed_from)s",
    "completed_to": "o.end_time < %(completed_to)s",
    "labels": "EXISTS (SELECT FROM trajectory.labels l WHERE l.run_id = o.run_id AND l.criterion = 'outcome'"
    " AND l.superseded_at IS NULL AND l.source <> 'letta_feedback' AND l.value = ANY(%(labels)s))",
    "families": "f.family_id = ANY(%(families)s)",
}
_VERDICT = (
    *("verdict_status", "outcome", "outcome_confidence", "failure_owner", "failure_mode", "learning_value"),
    *("tags", "task_category", "summary", "lesson", "policy_id", "simulated"),
)
_RUNS = """FROM trajectory.outcomes o JOIN trajectory.trajectories t USING (run_id)
LEFT JOIN trajectory.task_family_runs f USING (run_id)"""
_SELECT = f"""
SELECT o.run_id, t.partition_key, t.content_digest, t.conversation_id, chain.first_run_id AS chain, f.family_id
{_RUNS} CROSS JOIN {FIRST_RUN}
WHERE {{conditions}} ORDER BY t.partition_key, o.run_id
"""
_ROWS_AT_ONCE = 2_000
_READ_VERDICTS = f"""
SELECT o.run_id, o.judge_model AS model, {", ".join(f"o.{name}" for name in _VERDICT)}, c.probability_success
FROM trajectory.outcomes o LEFT JOIN trajectory.calibrated_outcomes c USING (run_id)
WHERE o.run_id = ANY(%s) AND o.verdict_status IS NOT NULL
"""


def select_runs(
    database: TrajectoryDatabase, filters: ExportFilters, partition_key: str | None = None
) -> Iterator[SelectedRun]:
    """Yield the runs that filters leave, of one partition or all, by partition and id.

    Never those that are deleted at the source. They are read a few thousand at a time.

    Raises:
        SinkError: the database cannot be read.
    """
    given = _given(filters)
    conditions = [_CONDITIONS[name] for name in given]
    if partition_key is not None:
        conditions.append("t.partition_key = %(partition_key)s")
        given["partition_key"] = partition_key
    statement = _SELECT.format(conditions=" AND ".join(conditions) or "true").encode()
    with (
        database.connect() as connection,
        translating_database_errors(database.url, "Selecting runs"),
        connection.cursor("selected_runs") as cursor,
    ):
        cursor.itersize = _ROWS_AT_ONCE
        for row in cursor.execute(statement, given):
            yield SelectedRun(*row)


@dataclass(frozen=True)
class PassingRuns:
    """How many runs there are, and how many of them each condition of filters leaves by itself.

    Attributes:
        runs: all that are there at the source.
        by_condition: by the filter's name and one of its values.
    """

    runs: int
    by_condition: Mapping[tuple[str, Any], int]


def count_passing(database: TrajectoryDatabase, filters: ExportFilters) -> PassingRuns:
    """Return how many runs each condition of filters leaves by itself; of several values, each.

    Raises:
        SinkError: the database cannot be read.
    """
    conditions = [
        (name, value)
        for name, values in _given(filters).items()
        for value in (values if isinstance(values, list) else [values])
    ]
    counts, parameters = ["count(*) AS runs"], {}
    for number, (name, value) in enumerate(conditions):
        place = f"c{number}"
        condition = _CONDITIONS[name].replace(f"%({name})s", f"%({place})s")
        counts.append(f"count(*) FILTER (WHERE {condition}) AS {place}")
        parameters[place] = [value] if isinstance(getattr(filters, name), tuple) else value
    (row,) = database.rows(f"SELECT {', '.join(counts)} {_RUNS}", parameters)
    return PassingRuns(row["runs"], {each: row[f"c{number}"] for number, each in enumerate(conditions)})


def _given(filters: ExportFilters) -> dict[str, Any]:
    """Return the filters that leave something out, as parameters of their conditions."""
    values = {name: getattr(filters, name) for name in _CONDITIONS}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}
    # A bound of 0 is a condition too: without a verdict there is no confidence.
    return given | {name: values[name] for name in ("min_confidence", "min_learning_value") if values[name] is not None}


def read_verdicts(database: TrajectoryDatabase, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the verdicts of these runs under the current policy, by run; without those that have none.

    ``probability_success`` is what people's labels say of its confidence; None where there are too few.

    Raises:
        SinkError: the database cannot be read.
    """
    return {row.pop("run_id"): row for row in database.rows(_READ_VERDICTS, [list(run_ids)])}
