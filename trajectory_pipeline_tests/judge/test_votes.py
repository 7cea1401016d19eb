"""The contract of combining votes: majority, ties, escalation, and that nothing of disagreement is lost."""

from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from trajectory_pipeline.judge.policy import VotingRule
from trajectory_pipeline.judge.votes import Vote, combine_votes, escalation
from trajectory_pipeline.schema.enums import CombineBy, EscalateWhen
from trajectory_pipeline.schema.verdicts import VERDICTS

OUTCOMES = ("success", "partial_success", "failure", "unknown")
RULE = VotingRule()


def requirement(status: str, statement: str = "Say the price.") -> dict[str, Any]:
    return {"statement": statement, "kind": "answer", "status": status, "judged_status": status, "evidence": []}


def vote(outcome: str | None, confidence: float = 0.5, *, escalated: bool = False, **columns: Any) -> Vote:
    row: dict[str, Any] = dict.fromkeys(column.name for column in VERDICTS.columns)
    row |= {
        "verdict_status": "judged" if outcome else "insufficient_evidence",
        "outcome": outcome,
        "outcome_confidence": confidence if outcome else None,
        "requirements": [requirement("met")],
        "policy_id": "p",
        "verdict_key": "k",
        "repetition": 0,
        "simulated": False,
        "attempts": 1,
        "cost_usd": Decimal("0.25"),
        **columns,
    }
    return Vote(row, escalated)


def combined(*votes: Vote, rule: VotingRule = RULE, **options: Any) -> dict[str, Any]:
    return combine_votes(votes, rule, "success", **options)


@pytest.mark.parametrize(
    ("outcomes", "winner", "agreement"),
    [
        (("success", "success", "failure"), "success", 0.6667),
        (("success", "failure"), "unknown", 0.0),
        (("success", None), "unknown", 0.5),
        (("failure", None, None), "unknown", 0.6667),
        (("failure", "failure", "success", "success", None), "unknown", 0.2),
        (("partial_success",) * 3, "partial_success", 1.0),
    ],
)
def test_outcome_with_most_votes_wins(outcomes: tuple[str | None, ...], winner: str, agreement: float) -> None:
    row = combined(*map(vote, outcomes))
    assert (row["outcome"], row["vote_agreement"]) == (winner, agreement)
    assert [one["outcome"] for one in row["votes"]] == list(outcomes)


def test_tie_has_no_failure_and_no_confidence() -> None:
    row = combined(vote("failure", failure_owner="agent", failure_mode="other"), vote("success"))
    assert (row["outcome"], row["outcome_confidence"]) == ("unknown", 0.0)
    assert (row["failure_owner"], row["failure_mode"]) == (None, None)


def test_texts_are_those_of_the_winner_with_most_evidence() -> None:
    row = combined(
        vote("success", 0.9, summary="other"), vote("failure", 0.4, summary="weak"), vote("failure", 0.6, summary="it")
    )
    assert (row["summary"], row["outcome_confidence"], row["disagrees"]) == ("it", 0.6, True)


def test_requirements_take_the_status_of_most_votes() -> None:
    votes = (
        vote("success", 0.9, requirements=[requirement("met"), requirement("met", "Only here")]),
        vote("failure", 0.5, requirements=[requirement("unmet", "say the  price")]),
        vote("failure", 0.4, requirements=[requirement("unmet")]),
    )
    row = combined(*votes, rule=VotingRule(CombineBy.REQUIREMENTS))
    assert [one["votes"] for one in row["requirements"]] == [{"unmet": 2, "met": 1}]
    assert row["outcome"] == "failure"
    tied = combined(*votes[:2])
    assert tied["outcome"] == "unknown"
    assert tied["requirements"][0]["status"] == "insufficient_evidence"


def test_abstention_of_all_is_insufficient_evidence() -> None:
    row = combined(vote(None), vote(None))
    assert row["verdict_status"] == "insufficient_evidence"
    assert "outcome" not in row


def test_vote_that_failed_keeps_the_verdict_open() -> None:
    broken = vote(None, verdict_status="deferred_budget", error_class="daily_budget", error_message="no room")
    row = combined(vote("success"), broken)
    assert (row["verdict_status"], row["error_class"]) == ("deferred_budget", "daily_budget")
    assert row["error_message"] == "vote 2 of 2: no room"
    assert row["cost_usd"] == Decimal("0.50")


@pytest.mark.parametrize(
    ("outcome", "confidence", "reason"),
    [
        (None, 0.0, "abstains"),
        ("unknown", 0.9, "abstains"),
        ("failure", 0.9, "contradicts"),
        ("success", 0.2, "unsure"),
        ("success", 0.9, None),
    ],
)
def test_escalation_has_a_reason(outcome: str | None, confidence: float, reason: str | None) -> None:
    rule = VotingRule(escalate_when=tuple(EscalateWhen), unsure_below=0.5)
    assert escalation([vote(outcome, confidence)], rule, "success") == reason
    assert escalation([vote(outcome, confidence)], RULE, "success") is None


def test_escalated_votes_alone_count() -> None:
    first, second = vote("success", 0.9), vote("failure", 0.3, escalated=True)
    row = combined(first, second, reason=EscalateWhen.UNSURE)
    assert (row["outcome"], row["vote_agreement"], row["escalation"]) == ("failure", 1.0, "unsure")
    assert [one["counted"] for one in row["votes"]] == [False, True]


@given(st.lists(st.sampled_from([*OUTCOMES, None]), min_size=1, max_size=9), st.randoms())
def test_outcome_does_not_depend_on_the_order_of_votes(outcomes: list[str | None], random: Any) -> None:
    votes = [vote(outcome) for outcome in outcomes]
    shuffled = random.sample(votes, len(votes))
    first, second = combined(*votes), combined(*shuffled)
    assert (first.get("outcome"), first["vote_agreement"]) == (second.get("outcome"), second["vote_agreement"])
    assert first["cost_usd"] == second["cost_usd"] == Decimal("0.25") * len(votes)
