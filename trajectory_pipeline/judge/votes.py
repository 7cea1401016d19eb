"""Combines the votes of several judges, or of several samples of one, to one verdict by majority."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from trajectory_pipeline.judge.citations import normalize_text
from trajectory_pipeline.judge.grading import derive_outcome
from trajectory_pipeline.judge.policy import VotingRule
from trajectory_pipeline.schema.enums import FINAL_STATUSES, CombineBy, EscalateWhen, Outcome, VerdictStatus

Row = dict[str, Any]

_TEXTS = (
    *("failure_owner", "failure_mode", "failure_mode_description", "failed_step_id"),
    *("learning_value", "interaction_depth", "task_complexity", "tool_use", "reference_value"),
    *("tags", "task_category", "complexity", "summary", "lesson", "decisions", "failure", "learning", "extra_answers"),
    *("coverage", "windows", "shown_sha256", "context_coverage", "response_format"),
)
"""Columns that a combined verdict has from one vote as they are."""
_OF_FAILURE = ("failure_owner", "failure_mode", "failure_mode_description", "failed_step_id")
_SUMS = ("input_tokens", "cached_input_tokens", "output_tokens", "cost_usd", "attempts")
_PASSED_ON = ("verdict_status", "error_class", "deferred_usd", "deferred_tokens", "raw_response")


@dataclass(frozen=True)
class Vote:
    """A stored verdict of one judge as a vote: its row of ``verdicts``, and whether its judge is an escalated one."""

    row: Mapping[str, Any]
    escalated: bool = False

    @property
    def outcome(self) -> str:
        """What it votes for: an abstention, or too little evidence, is a vote for ``unknown``."""
        return self.row["outcome"] or Outcome.UNKNOWN


def unfinished_vote(votes: Iterable[Vote]) -> Vote | None:
    """Return the first vote that is not final; None where all are."""
    return next((vote for vote in votes if vote.row["verdict_status"] not in FINAL_STATUSES), None)


def escalation(first_step: Sequence[Vote], rule: VotingRule, heuristic_outcome: str) -> EscalateWhen | None:
    """Return why the escalated judges are to be asked after the first step, or None."""
    combined = combine_votes(first_step, rule, heuristic_outcome)
    if combined["verdict_status"] == VerdictStatus.NOT_ELIGIBLE or unfinished_vote(first_step):
        return None
    outcome = combined.get("outcome") or Outcome.UNKNOWN
    confidence = min(combined.get("outcome_confidence") or 0.0, combined["vote_agreement"])
    holds = {
        EscalateWhen.ABSTAINS: outcome == Outcome.UNKNOWN,
        EscalateWhen.CONTRADICTS: Outcome.UNKNOWN not in (outcome, heuristic_outcome) and outcome != heuristic_outcome,
        EscalateWhen.UNSURE: rule.unsure_below is not None and confidence < rule.unsure_below,
    }
    return next((reason for reason in EscalateWhen if reason in rule.escalate_when and holds[reason]), None)


def combine_votes(
    votes: Sequence[Vote], rule: VotingRule, heuristic_outcome: str, reason: EscalateWhen | None = None
) -> Row:
    """Return the columns of the verdict that follows from votes, in the order of the policy.

    A vote that is not final keeps the verdict from being reached: its status is the verdict's. Where escalated judges
    voted, their votes alone count. The outcome with most votes wins, an abstention being a vote for ``unknown``; a tie
    is ``unknown``. Texts, evidence and confidence are those of the vote with the winning outcome that rests on most
    evidence. Each of its requirements takes the status that most counted votes give to the same statement, a tie being
    ``insufficient_evidence``. ``reason`` is why there was an escalation.
    """
    shared = {**_usage(votes), "escalation": reason, "votes": [_summary(vote, reason) for vote in votes]}
    open_vote = unfinished_vote(votes) or next(
        (vote for vote in votes if vote.row["verdict_status"] == VerdictStatus.NOT_ELIGIBLE), None
    )
    if open_vote is not None:
        row, number = open_vote.row, 1 + list(votes).index(open_vote)
        message = f"vote {number} of {len(votes)}: {row['error_message']}"
        return {**shared, **{name: row[name] for name in _PASSED_ON}, "error_message": message}
    counted = [vote for vote in votes if vote.escalated == (reason is not None)]
    outcomes = Counter(vote.outcome for vote in counted)
    outcome = _most(outcomes, Outcome.UNKNOWN)
    requirements = _requirements(_representative(counted, outcome), counted)
    if rule.combine == CombineBy.REQUIREMENTS:
        statuses = [one["status"] for one in requirements if one["status"] != "not_applicable"]
        outcome = derive_outcome(statuses)
    chosen = _representative(counted, outcome)
    if rule.combine == CombineBy.OUTCOME:
        requirements = _requirements(chosen, counted)
    is_chosen = chosen.outcome == outcome
    agreement = {
        "vote_agreement": round(outcomes[outcome] / len(counted), 4),
        "requirements": requirements,
        "requirement_probabilities": [one for vote in counted for one in vote.row["requirement_probabilities"] or ()]
        or None,
    }
    texts = {name: chosen.row[name] for name in _TEXTS}
    judged_at = max((vote.row["judged_at"] for vote in counted if vote.row["judged_at"] is not None), default=None)
    if all(vote.row["verdict_status"] == VerdictStatus.INSUFFICIENT_EVIDENCE for vote in counted):
        return {**shared, **texts, **agreement, "verdict_status": VerdictStatus.INSUFFICIENT_EVIDENCE}
    return {
        **shared,
        **texts,
        **({} if is_chosen else dict.fromkeys(_OF_FAILURE)),
        **agreement,
        "verdict_status": VerdictStatus.JUDGED,
        "outcome": outcome,
        "outcome_confidence": (chosen.row["outcome_confidence"] or 0.0) if is_chosen else 0.0,
        "disagrees": outcome != heuristic_outcome,
        "judged_at": judged_at,
    }


def _most(votes: Counter[str], tie: str) -> str:
    (first, most), *others = votes.most_common(2)
    return tie if others and others[0][1] == most else first


def _representative(votes: Sequence[Vote], outcome: str) -> Vote:
    """Return the vote whose texts a verdict shows: the winner's that rests on most evidence, the first of equals."""
    texts = [vote for vote in votes if vote.row["requirement_probabilities"] is None] or votes
    return max(texts, key=lambda vote: (vote.outcome == outcome, vote.row["outcome_confidence"] or 0.0))


def _requirements(chosen: Vote, votes: Sequence[Vote]) -> list[Row]:
    """Return a vote's requirements with the status that most votes give to the same statement."""
    others = [
        {_statement(one): one["status"] for one in vote.row["requirements"] or ()} for vote in votes if vote != chosen
    ]
    combined = []
    for one in chosen.row["requirements"] or ():
        statuses = Counter([one["status"], *(other[_statement(one)] for other in others if _statement(one) in other)])
        status = _most(statuses, "insufficient_evidence")
        combined.append({**one, "status": status, "votes": dict(statuses)})
    return combined


def _statement(requirement: Mapping[str, Any]) -> str:
    return normalize_text(requirement["statement"]).casefold().rstrip(".")


def _summary(vote: Vote, reason: EscalateWhen | None) -> Row:
    row = vote.row
    return {
        **{name: row[name] for name in ("policy_id", "verdict_key", "repetition", "model", "verdict_status")},
        **{name: row[name] for name in ("outcome", "outcome_confidence", "error_class")},
        "escalated": vote.escalated,
        "counted": vote.escalated == (reason is not None),
        "cost_usd": None if row["cost_usd"] is None else format(row["cost_usd"], "f"),
    }


def _usage(votes: Sequence[Vote]) -> Row:
    """Return what all votes took together, counted or not; the model that answered, and whether it is a simulation."""
    sums: Row = {}
    for name in _SUMS:
        known = [vote.row[name] for vote in votes if vote.row[name] is not None]
        sums[name] = sum(known, Decimal(0) if name == "cost_usd" else 0) if known else None
    models = dict.fromkeys(vote.row["model"] for vote in votes if vote.row["model"] is not None)
    return {
        **sums,
        "attempts": sums["attempts"] or 0,
        "model": " + ".join(models) or None,
        "simulated": any(vote.row["simulated"] for vote in votes),
    }
