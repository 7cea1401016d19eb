"""What follows from an answer: evidence checked, outcome and learning value computed.

Belongs here: every rule between the judge's words and a verdict. Does not belong here: the call (``ask``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.refinement.answer import Citation, JudgeAnswer, Requirement
from trajectory_pipeline.refinement.render import Rendered

LEARNING_WEIGHTS = {"interaction_depth": 0.35, "task_complexity": 0.30, "tool_use": 0.20, "reference_value": 0.15}
"""Weights of the four ratings in the learning value; they add up to 1."""
_LOWEST, _HIGHEST = 1, 5


@dataclass(frozen=True)
class Assessment:
    """A judged trajectory, in the terms of ``schema.verdicts.VERDICTS``.

    Attributes:
        verdict_status: ``judged``, or ``insufficient_evidence`` where nothing could be decided.
        columns: what the answer gives, by column; scores are absent unless it is judged.
    """

    verdict_status: str
    columns: dict[str, Any]


def assess(answer: JudgeAnswer, rendered: Rendered, heuristic_outcome: str) -> Assessment:
    """Return what follows from an answer.

    A citation that names nothing that was shown, or a quote that does not stand there (white space aside), is marked; a
    decided requirement that is left without a valid citation becomes ``insufficient_evidence``. A step that was not
    shown is no step where it went wrong.

    Args:
        answer: as the judge gave it, valid by its schema.
        rendered: what the judge was shown.
        heuristic_outcome: of the trajectory, for the disagreement.
    """
    requirements = [_checked(requirement, rendered) for requirement in answer.requirements]
    statuses = [requirement["status"] for requirement in requirements]
    applicable = [status for status in statuses if status != "not_applicable"]
    decided = [status for status in applicable if status != "insufficient_evidence"]
    told = {
        "requirements": requirements,
        "summary": answer.summary,
        "lesson": answer.lesson,
        "tags": answer.tags,
        "task_category": answer.task_category,
        "complexity": answer.complexity,
        "decisions": [
            {**decision.model_dump(), "step_shown": decision.step_id in rendered.steps}
            for decision in answer.key_decisions
        ],
    }
    if not decided:
        return Assessment("insufficient_evidence", told)
    outcome = outcome_of(applicable)
    failure = answer.failure
    ratings = {name: getattr(answer.learning, name) for name in LEARNING_WEIGHTS}
    return Assessment(
        "judged",
        {
            **told,
            "outcome": outcome,
            "outcome_confidence": round(len(decided) / len(applicable), 4),
            "disagrees": outcome != heuristic_outcome,
            "failure_owner": failure.owner,
            "failure_mode": failure.mode,
            "failure_mode_words": failure.other_mode if failure.mode == "other" else None,
            "failed_step_id": failure.first_wrong_step if failure.first_wrong_step in rendered.steps else None,
            **ratings,
            "learning_value": learning_value(ratings),
        },
    )


def outcome_of(applicable: Sequence[str]) -> str:
    """Return the outcome that the statuses of the applicable requirements make.

    All met → success; none met → failure; some → partial_success; any insufficient_evidence → unknown.
    """
    if not applicable or "insufficient_evidence" in applicable:
        return "unknown"
    met = sum(status == "met" for status in applicable)
    if met == len(applicable):
        return "success"
    return "partial_success" if met else "failure"


def learning_value(ratings: dict[str, int]) -> float:
    """Return the weighted mean of the four ratings, each brought from 1–5 to 0–1."""
    value = sum(weight * (ratings[name] - _LOWEST) for name, weight in LEARNING_WEIGHTS.items())
    return round(value / (_HIGHEST - _LOWEST), 4)


def _checked(requirement: Requirement, rendered: Rendered) -> dict[str, Any]:
    evidence = [_checked_citation(citation, rendered) for citation in requirement.evidence]
    status = requirement.status
    if status in ("met", "unmet") and not any(citation["valid"] for citation in evidence):
        status = "insufficient_evidence"
    return {
        "statement": requirement.statement,
        "status": status,
        "judged_status": requirement.status,
        "reasoning": requirement.reasoning,
        "evidence": evidence,
    }


def _checked_citation(citation: Citation, rendered: Rendered) -> dict[str, Any]:
    shown = rendered.shown.get(citation.message_id)
    quote = _normal(citation.quote)
    problem = None
    if shown is None:
        problem = "no message, and no error of a step or run, of this id was shown"
    elif not quote:
        problem = "the quote is blank"
    elif quote not in _normal(shown):
        problem = "the quote does not stand there as it was shown"
    return {**citation.model_dump(), "valid": problem is None, "problem": problem}


def _normal(text: str) -> str:
    return " ".join(text.split())
