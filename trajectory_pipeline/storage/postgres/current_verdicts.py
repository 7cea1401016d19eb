"""Trajectories with their verdict under the current policy, as in the view ``outcomes``, but read from the tables.

A view reads as its owner, so that policies on the tables would not hold: clients with tenants may read none.
"""

from typing import Final, LiteralString

CURRENT_VERDICT: Final[LiteralString] = (
    " LEFT JOIN LATERAL (SELECT v.* FROM trajectory.verdicts v"
    " JOIN trajectory.policies p ON p.policy_id = v.policy_id AND p.is_current"
    " WHERE v.run_id = t.run_id AND v.content_digest = t.content_digest AND v.repetition = 0"
    " ORDER BY v.updated_at DESC, v.verdict_key LIMIT 1) o ON true"
)
"""Joins ``o``, the verdict or nulls, to a trajectory ``t``."""

CURRENT_VERDICTS: Final[LiteralString] = (
    " LEFT JOIN (SELECT v.* FROM trajectory.verdicts v WHERE v.repetition = 0"
    " AND v.policy_id = (SELECT p.policy_id FROM trajectory.policies p WHERE p.is_current)"
    " AND NOT EXISTS (SELECT FROM trajectory.verdicts n WHERE n.run_id = v.run_id"
    " AND n.content_digest = v.content_digest AND n.policy_id = v.policy_id AND n.repetition = 0"
    " AND (n.updated_at > v.updated_at OR n.updated_at = v.updated_at AND n.verdict_key < v.verdict_key))) o"
    " ON o.run_id = t.run_id AND o.content_digest = t.content_digest"
)
"""Joins the same to many trajectories at once, where Postgres may read both tables whole: in half the time."""

OUTCOMES: Final[LiteralString] = (
    "(SELECT t.run_id, t.source, t.agent_id, t.agent_name, t.organization_id, t.end_time, t.execution_status,"
    " t.heuristic_outcome, t.heuristic_confidence, o.verdict_status, o.outcome, o.outcome_confidence, o.failure_owner,"
    " o.failure_mode, o.simulated, o.tags, o.summary, o.lesson, o.requirements, o.failure"
    f" FROM trajectory.trajectories t{CURRENT_VERDICT} WHERE t.deleted_at IS NULL)"
)
"""In place of the view, with what search and statistics read of it."""
