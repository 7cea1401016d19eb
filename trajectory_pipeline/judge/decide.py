"""Grades the requirements that a text judge stated by a decision endpoint, which answers with probabilities."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from trajectory_pipeline.judge.client.call_record import UNUSABLE_RESPONSES
from trajectory_pipeline.judge.client.decisions import DecisionResult, Probabilities
from trajectory_pipeline.judge.grading import derive_outcome
from trajectory_pipeline.judge.judge_trajectory import JudgeRequest, failed
from trajectory_pipeline.schema.enums import RequirementStatus, VerdictStatus

Row = dict[str, Any]
AskDecision = Callable[[Sequence[dict[str, str]], Sequence[str]], Awaitable[DecisionResult]]
"""Asks for the status of statements about a chat, and records the calls."""
_DECIDED_ABOVE = 0.5


async def decide(
    request: JudgeRequest, stated: Sequence[Mapping[str, Any]], heuristic_outcome: str, ask: AskDecision
) -> Row:
    """Return the columns of a vote on the requirements of a text judge's vote.

    A requirement has its likeliest status where that is likelier than all others together, and else, or where the
    question was refused, ``insufficient_evidence``. There is no confidence: the probabilities stand by themselves.
    """
    shown = request.shown_columns
    if not stated or shown["windows"] != 1:
        reason = "no requirement was stated" if not stated else "the transcript takes more than one prompt"
        return {"verdict_status": VerdictStatus.INSUFFICIENT_EVIDENCE, "error_message": f"nothing was asked: {reason}"}
    result = await ask(request.chat, [str(one["statement"]) for one in stated])
    if result.probabilities is None:
        last = result.calls[-1]
        status = VerdictStatus.QUARANTINED if last.error_class in UNUSABLE_RESPONSES else VerdictStatus.FAILED
        columns = failed(last.error_class, last.error_message)
        return {**shown, **columns, "verdict_status": status, "raw_response": result.raw_response}
    statuses = [_status(one) for one in result.probabilities]
    columns = {
        **shown,
        "requirements": [{**one, "status": status} for one, status in zip(stated, statuses, strict=True)],
        "requirement_probabilities": [
            {"statement": one["statement"], "model": result.calls[-1].model, "probabilities": probabilities}
            for one, probabilities in zip(stated, result.probabilities, strict=True)
        ],
        "judged_at": datetime.now(UTC),
    }
    applicable = [status for status in statuses if status != RequirementStatus.NOT_APPLICABLE]
    if all(status == RequirementStatus.INSUFFICIENT_EVIDENCE for status in applicable):
        return {**columns, "verdict_status": VerdictStatus.INSUFFICIENT_EVIDENCE}
    outcome = derive_outcome(applicable)
    return {
        **columns,
        "verdict_status": VerdictStatus.JUDGED,
        "outcome": outcome,
        "disagrees": outcome != heuristic_outcome,
    }


def _status(probabilities: Probabilities | None) -> str:
    if probabilities is None:
        return RequirementStatus.INSUFFICIENT_EVIDENCE
    status = max(probabilities, key=lambda one: probabilities[one])
    return status if probabilities[status] > _DECIDED_ABOVE else RequirementStatus.INSUFFICIENT_EVIDENCE
