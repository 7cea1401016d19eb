"""What the quality of verdicts is measured on: verdicts of a policy, counted, and runs with what was judged.

Every function raises ``SinkError`` if the database cannot be read.
"""

from dataclasses import dataclass

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdict_status import VERDICT_OF_POLICY

# Looked up run by run: a planner without statistics joins all verdicts with all runs, one by one.
_COUNTS = f"""
SELECT count(*) FILTER (WHERE v.verdict_status IN ('judged', 'insufficient_evidence')) AS answered,
    count(*) FILTER (WHERE v.verdict_status = 'insufficient_evidence' OR v.outcome = 'unknown') AS undecided,
    coalesce(sum(cited.citations), 0)::bigint AS citations, coalesce(sum(cited.valid), 0)::bigint AS valid_citations,
    count(*) FILTER (WHERE cited.citations > 0) AS citing
FROM trajectory.trajectories t CROSS JOIN {VERDICT_OF_POLICY} CROSS JOIN LATERAL (
    SELECT count(*) AS citations, count(*) FILTER (WHERE (c ->> 'valid')::boolean) AS valid
    FROM jsonb_array_elements(v.requirements) AS r, jsonb_array_elements(r -> 'evidence') AS c
) cited
WHERE t.deleted_at IS NULL"""
_RUNS = f"""
SELECT t.run_id, coalesce(t.agent_name, t.agent_id) AS agent, CASE WHEN v.outcome <> 'unknown' THEN v.outcome END
    AS outcome, to_char(date_trunc('week', coalesce(t.end_time, t.start_time) AT TIME ZONE 'UTC'), 'YYYY-MM-DD') AS week
FROM trajectory.trajectories t LEFT JOIN {VERDICT_OF_POLICY} ON true
WHERE t.deleted_at IS NULL AND (%(first)s::text IS NULL OR t.partition_key >= %(first)s)
    AND (%(after_last)s::text IS NULL OR t.partition_key < %(after_last)s)
ORDER BY week, agent, t.run_id"""
_REPEATED = """
SELECT a.outcome AS first, b.outcome AS second
FROM trajectory.verdicts a JOIN trajectory.verdicts b USING (run_id, policy_id, content_digest)
JOIN trajectory.trajectories t USING (run_id, content_digest)
WHERE a.policy_id = %s AND a.outcome IS NOT NULL AND b.outcome IS NOT NULL AND t.deleted_at IS NULL
    AND a.repetition = 0 AND b.repetition = (
        SELECT min(c.repetition) FROM trajectory.verdicts c WHERE c.run_id = a.run_id AND c.policy_id = a.policy_id
            AND c.content_digest = a.content_digest AND c.repetition > 0 AND c.outcome IS NOT NULL)
ORDER BY run_id"""


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """Counts over a policy's verdicts.

    Attributes:
        answered: verdicts that the judge gave.
        undecided: of these, those that decide nothing.
        citations: in their requirements.
        valid_citations: of these, those whose quote was found where the judge says.
        citing: verdicts with a citation.
    """

    answered: int
    undecided: int
    citations: int
    valid_citations: int
    citing: int


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A run with its agent, its week (the Monday) and its usable outcome by a policy."""

    run_id: str
    agent: str
    week: str | None
    outcome: str | None


def current_policy(database: TrajectoryDatabase) -> str | None:
    """Return the id of the current policy; None where nothing was judged."""
    rows = database.rows("SELECT policy_id FROM trajectory.policies WHERE is_current")
    return rows[0]["policy_id"] if rows else None


def judged_policies(database: TrajectoryDatabase) -> list[str]:
    """Return the ids of the policies that have a verdict."""
    return [row["policy_id"] for row in database.rows("SELECT DISTINCT policy_id FROM trajectory.verdicts ORDER BY 1")]


def verdict_counts(database: TrajectoryDatabase, policy_id: str) -> VerdictCounts:
    """Count a policy's verdicts on content as it is now."""
    (row,) = database.rows(_COUNTS, {"policy": policy_id})
    return VerdictCounts(**row)


def runs_by_agent_and_week(
    database: TrajectoryDatabase, policy_id: str, first: str | None, after_last: str | None
) -> list[RunOutcome]:
    """Return the runs between two partition keys, by week and agent; None for no limit."""
    parameters = {"policy": policy_id, "first": first, "after_last": after_last}
    return [RunOutcome(**row) for row in database.rows(_RUNS, parameters)]


def repeated_outcomes(database: TrajectoryDatabase, policy_id: str) -> list[tuple[str, str]]:
    """Return the outcomes of each run that was judged twice under a policy: of its verdict and its first repetition."""
    return [(row["first"], row["second"]) for row in database.rows(_REPEATED, [policy_id])]
