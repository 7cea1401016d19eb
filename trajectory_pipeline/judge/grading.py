"""Grades a response: checks its evidence, and computes outcome, confidence and learning value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from trajectory_pipeline.judge.answer_schema import extra_answers
from trajectory_pipeline.judge.citations import CitationChecker
from trajectory_pipeline.judge.response_schema import NO_FAILURE, Complexity, Failure, JudgeResponse, Requirement
from trajectory_pipeline.judge.transcript.truncate import cut
from trajectory_pipeline.judge.transcript.windows import RenderedTranscript

LEARNING_WEIGHTS = {"interaction_depth": 0.35, "task_complexity": 0.30, "tool_use": 0.20, "reference_value": 0.15}
"""Weights of the four ratings in the learning value; they add up to 1."""
_LOWEST, _HIGHEST = 1, 5
_RESULT_CHARACTERS = 200

Row = dict[str, Any]


@dataclass(frozen=True)
class GradedVerdict:
    """Columns of ``schema.verdicts.VERDICTS``.

    Attributes:
        verdict_status: ``judged``, or ``insufficient_evidence`` where nothing could be decided.
        columns: from the response; scores are absent unless it is judged.
    """

    verdict_status: str
    columns: Row


def grade_response(answer: JudgeResponse, rendered: RenderedTranscript, heuristic_outcome: str) -> GradedVerdict:
    """Return the verdict that follows from a response.

    An invalid citation (see ``citations``) is marked. A requirement without a valid one becomes
    ``insufficient_evidence``, also where the judge says ``not_applicable``. Owner and mode of a failure count where a
    requirement is unmet and a valid citation shows it; the judge's own words stay in ``failure``.
    """
    evidence = CitationChecker(rendered)
    requirements = [_grade_requirement(requirement, evidence) for requirement in answer.requirements]
    applicable = [requirement for requirement in requirements if requirement["status"] != "not_applicable"]
    statuses = [requirement["status"] for requirement in applicable]
    failure, failure_columns = _grade_failure(answer.failure or NO_FAILURE, statuses, evidence, rendered)
    columns: Row = {
        **answer.model_dump(include={"summary", "lesson", "tags", "task_category"}),
        "complexity": get_args(Complexity)[answer.learning.task_complexity - _LOWEST],
        "requirements": requirements,
        "failure": failure,
        "learning": {"reasoning": answer.learning.reasoning},
        "decisions": [
            {
                **decision.model_dump(),
                "step_id": rendered.step_ids.get(decision.step_id, decision.step_id),
                "result": _step_result(decision.step_id, rendered),
                "step_shown": decision.step_id in rendered.step_ids,
            }
            for decision in answer.key_decisions
        ],
        "extra_answers": extra_answers(answer),
    }
    if all(status == "insufficient_evidence" for status in statuses):
        return GradedVerdict("insufficient_evidence", columns)
    outcome = derive_outcome(statuses)
    ratings = {name: getattr(answer.learning, name) for name in LEARNING_WEIGHTS}
    return GradedVerdict(
        "judged",
        {
            **columns,
            "outcome": outcome,
            "outcome_confidence": _derive_confidence(applicable, rendered.coverage),
            "disagrees": outcome != heuristic_outcome,
            **failure_columns,
            **ratings,
            "learning_value": learning_value(ratings),
        },
    )


def _step_result(step: str, rendered: RenderedTranscript) -> str | None:
    """Return status and first line of what each tool returned in a step; None where none did."""
    returns = (
        [line.text for line in passage.lines if line.verbatim]
        for message in rendered.messages
        for passage in message.passages
        if message.step == step and passage.source in ("tool_return", "tool_error", "speech_return")
    )
    results = (
        ": ".join([lines[0].partition("status=")[2], *(cut(line, _RESULT_CHARACTERS) for line in lines[1:2])])
        for lines in returns
        if lines
    )
    return "; ".join(results) or None


def derive_outcome(applicable: Sequence[str]) -> str:
    """Return the outcome for the statuses of the applicable requirements.

    All met → success; none met → failure; some → partial_success; any insufficient_evidence → unknown.
    """
    if not applicable or "insufficient_evidence" in applicable:
        return "unknown"
    met = sum(status == "met" for status in applicable)
    if met == len(applicable):
        return "success"
    return "partial_success" if met else "failure"


def _derive_confidence(applicable: Sequence[Row], coverage: float) -> float:
    """Return how far an outcome rests on evidence, 0–1.

    The mean over the applicable requirements of the share of a requirement's citations that are valid (0 where it could
    not be decided), times the share of the content that the judge was shown.
    """
    shares = []
    for requirement in applicable:
        valid = [bool(citation["valid"]) for citation in requirement["evidence"]]
        decided = requirement["status"] != "insufficient_evidence"
        shares.append(sum(valid) / len(valid) if decided else 0.0)
    return round(sum(shares) / len(shares) * coverage, 4)


def learning_value(ratings: dict[str, int]) -> float:
    """Return the weighted mean of the four ratings, each brought from 1–5 to 0–1."""
    value = sum(weight * (ratings[name] - _LOWEST) for name, weight in LEARNING_WEIGHTS.items())
    return round(value / (_HIGHEST - _LOWEST), 4)


def _grade_requirement(requirement: Requirement, evidence: CitationChecker) -> Row:
    cited = [evidence.check(citation, requirement.status, requirement.kind) for citation in requirement.evidence]
    supported = any(citation["valid"] for citation in cited)
    return {
        "statement": requirement.statement,
        "kind": requirement.kind,
        "status": requirement.status if supported else "insufficient_evidence",
        "judged_status": requirement.status,
        "reasoning": requirement.reasoning,
        "evidence": cited,
    }


def _grade_failure(
    failure: Failure, statuses: Sequence[str], evidence: CitationChecker, rendered: RenderedTranscript
) -> tuple[Row, Row]:
    """Return the checked failure, and the columns that follow from it."""
    cited = [evidence.check(citation, "failure") for citation in failure.evidence]
    step = failure.first_wrong_step
    step_id = None if step is None else rendered.step_ids.get(step)
    problem = None
    failure_columns: Row = {}
    if "unmet" not in statuses:
        problem = None if failure.owner == "none" else "no requirement is unmet, so there is no failure to own"
        failure_columns = {"failure_owner": "none", "failure_mode": "none"}
    elif failure.owner == "none" or failure.mode == "none":
        problem = "a requirement is unmet, and no owner or no mode is named"
    elif not any(citation["valid"] for citation in cited):
        problem = "no valid citation shows it"
    else:
        failure_columns = {
            "failure_owner": failure.owner,
            "failure_mode": failure.mode,
            "failure_mode_description": failure.other_mode,
            "failed_step_id": step_id,
        }
    graded = {**failure.model_dump(), "first_wrong_step": step_id or step, "evidence": cited, "problem": problem}
    return {**graded, "step_shown": None if step is None else step_id is not None}, failure_columns
