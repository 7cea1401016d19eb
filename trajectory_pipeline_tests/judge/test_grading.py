"""Grading an answer: citations are checked and scores are computed; no claim of the judge is accepted unchecked."""

from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trajectory_pipeline.judge.grading import (
    LEARNING_WEIGHTS,
    GradedVerdict,
    derive_outcome,
    grade_response,
    learning_value,
)
from trajectory_pipeline.judge.response_schema import (
    NO_FAILURE,
    Complexity,
    FailureMode,
    JudgeResponse,
    RequirementStatus,
)
from trajectory_pipeline_tests.judge.documents import ORDER, call, document, message, text, tool_return, turn
from trajectory_pipeline_tests.judge.rendering import render

FAILED = document(
    "run-1",
    turn("step-1", message("message-a", "user", text("What is\n  it?")), error={"type": "LLMError", "message": "503"}),
    error={"type": "ServerError", "message": "it broke", "detail": None, "step_id": "step-1"},
)

STATUSES = st.sampled_from(get_args(RequirementStatus))
RATINGS = st.fixed_dictionaries(dict.fromkeys(LEARNING_WEIGHTS, st.integers(1, 5)))


def requirement(status: str, *evidence: tuple[str, str], kind: str = "action") -> dict[str, Any]:
    cited = [{"message_id": where, "quote": quote} for where, quote in evidence]
    return {"statement": "It is done.", "kind": kind, "evidence": cited, "reasoning": "because", "status": status}


def answer(*requirements: dict[str, Any], **more: Any) -> JudgeResponse:
    failure = more.pop("failure", None)
    ratings = dict.fromkeys(LEARNING_WEIGHTS, 3)
    return JudgeResponse.model_validate(
        {
            "requirements": list(requirements),
            "failure": failure and NO_FAILURE.model_dump() | failure,
            "learning": {"reasoning": "", **ratings, **more.pop("ratings", {})},
            "key_decisions": [],
            "summary": "It was.",
            "lesson": None,
            "tags": ["a", "b", "c"],
            "task_category": "other",
            **more,
        }
    )


def graded(*requirements: dict[str, Any], run: Any = ORDER, heuristic: str = "success", **more: Any) -> GradedVerdict:
    return grade_response(answer(*requirements, **more), render(run), heuristic)


MET = requirement("met", ("message-c", "It arrives on 4 March."))
UNMET = requirement("unmet", ("message-d", "On 4 March."))
UNKNOWN = requirement("insufficient_evidence")
NOT_ASKED = requirement("not_applicable", ("message-a", "Please find order 4711."))


# ---- outcome -------------------------------------------------------------------------------------------------------


@given(st.lists(STATUSES, max_size=7))
def test_outcome_is_derived_from_applicable_requirements(statuses: list[str]) -> None:
    applicable = [status for status in statuses if status != "not_applicable"]
    outcome = derive_outcome(applicable)
    if not applicable or "insufficient_evidence" in applicable:
        assert outcome == "unknown"
    elif set(applicable) == {"met"}:
        assert outcome == "success"
    elif set(applicable) == {"unmet"}:
        assert outcome == "failure"
    else:
        assert outcome == "partial_success"


@pytest.mark.parametrize(
    ("requirements", "outcome", "confidence"),
    [
        ([MET, MET], "success", 1.0),
        ([MET, UNMET, NOT_ASKED], "partial_success", 1.0),
        ([UNMET, NOT_ASKED], "failure", 1.0),
        ([MET, MET, UNKNOWN], "unknown", 0.6667),
    ],
)
def test_outcome_and_confidence_follow_decided_requirements(
    requirements: list[dict[str, Any]], outcome: str, confidence: float
) -> None:
    columns = graded(*requirements).columns
    assert (columns["outcome"], columns["outcome_confidence"]) == (outcome, confidence)
    assert columns["disagrees"] == (outcome != "success")


@pytest.mark.parametrize("requirements", [[UNKNOWN], [NOT_ASKED], [UNKNOWN, NOT_ASKED]])
def test_verdict_without_a_decided_requirement_has_no_score(requirements: list[dict[str, Any]]) -> None:
    verdict = graded(*requirements)
    assert verdict.verdict_status == "insufficient_evidence"
    scores = {"outcome", "outcome_confidence", "disagrees", "learning_value", "failure_owner", "failure_mode"}
    assert not (scores | set(LEARNING_WEIGHTS)) & set(verdict.columns)
    assert verdict.columns["summary"] == "It was."


# ---- evidence -----------------------------------------------------------------------------------------------------


def citation(where: str, quote: str, run: Any = ORDER, *, status: str = "met", kind: str = "action") -> dict[str, Any]:
    claimed = requirement(status, (where, quote), kind=kind)
    (checked,) = graded(claimed, run=run).columns["requirements"]
    (evidence,) = checked["evidence"]
    assert checked["status"] == (status if evidence["valid"] else "insufficient_evidence")
    assert (checked["judged_status"], checked["kind"]) == (status, kind)
    assert (evidence["message_id"], evidence["quote"]) == (where, quote)
    assert evidence["valid"] == (evidence["problem"] is None)
    return evidence


@pytest.mark.parametrize(
    ("where", "quote"),
    [
        ("message-c", "It arrives\non 4 March."),
        ("message-c", "  It   arrives\t on 4 \n March. "),
        ("message-c", "arrives on"),
    ],
)
def test_citation_of_a_verbatim_quote_is_valid(where: str, quote: str) -> None:
    assert citation(where, quote)["valid"]


@pytest.mark.parametrize(
    ("where", "quote", "problem"),
    [
        ("message-z", "It arrives", "no message, and no error of a step or run, of this id was shown"),
        ("step-1", "It arrives", "no message, and no error of a step or run, of this id was shown"),
        ("message-c", "It arrived", "the quote does not stand there as it was shown"),
        ("message-c", "it arrives", "the quote does not stand there as it was shown"),
        ("message-c", "Please find order 4711.", "the quote does not stand there as it was shown"),
        ("message-c", " \n ", "the quote is blank"),
    ],
)
def test_citation_that_is_invalid_states_the_problem(where: str, quote: str, problem: str) -> None:
    assert citation(where, quote)["problem"] == problem


@pytest.mark.parametrize(
    ("where", "quote"),
    [
        ("step-1", "!! step step-1 failed: LLMError: 503"),
        ("step-1", "LLMError: 503"),
        ("run-1", "!! run run-1 error: ServerError it broke"),
        ("run-1", "it  broke"),
    ],
)
def test_citation_of_a_recorded_error_uses_its_step_or_run(where: str, quote: str) -> None:
    assert citation(where, quote, FAILED, status="unmet")["valid"]
    assert not citation(where, quote, status="unmet")["valid"]


def test_unmet_requirement_may_cite_only_a_recorded_error() -> None:
    columns = graded(requirement("unmet", ("run-1", "it broke")), run=FAILED).columns
    assert (columns["outcome"], columns["outcome_confidence"]) == ("failure", 1.0)


def test_requirement_is_decided_by_at_least_one_valid_citation() -> None:
    mixed = requirement("met", ("message-z", "x"), ("message-c", "It arrives"))
    assert graded(mixed).columns["outcome"] == "success"
    assert graded(requirement("met")).verdict_status == "insufficient_evidence"
    assert graded(MET, requirement("unmet")).columns["outcome"] == "unknown"


@given(st.text(min_size=1, max_size=40), st.sampled_from(["message-a", "message-c", "run-1", "step-1", "x"]))
def test_citation_is_valid_only_if_the_message_has_the_quote(quote: str, where: str) -> None:
    rendered = render(ORDER)
    there = " ".join(block.text for block in rendered.by_cited_id.get(where, ()))
    valid = citation(where, quote, status="unmet")["valid"]
    assert not valid or " ".join(quote.split()) in " ".join(there.split())


OWN = "an agent's own words prove nothing"
TASK = "the task's own words prove nothing: they were said before the agent did anything"
ECHO = "the tool only repeats what the agent wrote"
SETBACK = "an error or a denial does not show that something was done"
SENT = "the return of a message to a person shows only that words were sent"

WORKED = document(
    "run-1",
    turn(
        "step-1",
        message("ask", "user", text("Delete the file and say hello.")),
        message(
            "think",
            "assistant",
            {"type": "reasoning", "reasoning": "I deleted it."},
            text("Hello! I have deleted it."),
            tool_calls=[
                call("c1", "shell", '{"command": "rm notes.txt # deleted the \\"file\\""}'),
                call("c2", "send_message", '{"message": "Done, it is deleted."}'),
            ],
        ),
        message(
            "back",
            "tool",
            tool_returns=[
                tool_return("c1", 'ran: rm notes.txt # deleted the "file"\n1 file removed'),
                tool_return("c2", "Sent message successfully."),
                tool_return("c3", "permission denied for root", "error"),
            ],
        ),
        message("yes", "approval", approvals=[{"tool_call_id": "c1", "approve": True, "reason": "go ahead"}]),
        message("sum", "user", text("Earlier, all was deleted."), kind="summary"),
        message("thanks", "user", text("Thanks, it is gone.")),
        error={"type": "LLMError", "message": "503"},
    ),
)


@pytest.mark.parametrize(
    ("kind", "where", "quote", "problem"),
    [
        ("action", "back", "1 file removed", None),
        ("state", "back", "1 file removed", None),
        ("answer", "back", "1 file removed", None),
        ("action", "think", "Hello! I have deleted it.", OWN),
        ("state", "think", "Hello! I have deleted it.", OWN),
        ("answer", "think", "Hello! I have deleted it.", None),
        ("answer", "think", "Done, it is deleted.", None),
        ("action", "think", "Done, it is deleted.", OWN),
        ("answer", "think", "I deleted it.", OWN),
        ("answer", "think", "rm notes.txt", OWN),
        ("action", "back", 'rm notes.txt # deleted the "file"', ECHO),
        ("action", "back", "Sent message successfully.", SENT),
        ("answer", "back", "Sent message successfully.", None),
        ("action", "back", "permission denied", SETBACK),
        ("state", "back", "permission denied", SETBACK),
        ("action", "yes", "approve=true reason=go ahead", None),
        ("action", "ask", "Delete the file", TASK),
        ("answer", "ask", "say hello", TASK),
        ("action", "thanks", "it is gone", None),
        ("action", "sum", "all was deleted", "words of this source (summary) prove nothing about what was done"),
        ("action", "step-1", "503", SETBACK),
    ],
)
def test_met_requirement_needs_a_source_that_fits_its_kind(
    kind: str, where: str, quote: str, problem: str | None
) -> None:
    assert citation(where, quote, WORKED, kind=kind)["problem"] == problem


@pytest.mark.parametrize(("where", "quote"), [("think", "Hello! I have deleted it."), ("ask", "Delete the file")])
def test_unmet_requirement_may_cite_the_agent_or_the_task(where: str, quote: str) -> None:
    assert citation(where, quote, WORKED, status="unmet")["valid"]


def test_not_applicable_requirement_needs_independent_evidence() -> None:
    """A citation of the agent's own words does not exclude a requirement."""
    independent = requirement("not_applicable", ("thanks", "it is gone"))
    claimed = requirement("not_applicable", ("think", "Hello! I have deleted it."))
    met = requirement("met", ("back", "1 file removed"))
    assert graded(met, independent, run=WORKED).columns["outcome"] == "success"
    assert graded(met, claimed, run=WORKED).columns["outcome"] == "unknown"
    assert graded(met, requirement("not_applicable"), run=WORKED).columns["outcome"] == "unknown"


def test_confidence_falls_with_invalid_citations_and_omissions() -> None:
    good, bad = ("message-c", "It arrives"), ("message-z", "x")
    assert graded(requirement("met", good)).columns["outcome_confidence"] == 1.0
    assert graded(requirement("met", good, bad)).columns["outcome_confidence"] == 0.5
    assert graded(requirement("met", good, bad), requirement("met", good)).columns["outcome_confidence"] == 0.75
    long = document("run-1", turn("s", message("m", "tool", tool_returns=[tool_return("c", "done. " * 20_000)])))
    rendered = render(long, limit=30_000)
    columns = grade_response(answer(requirement("met", ("m", "done. done."))), rendered, "success").columns
    assert columns["outcome_confidence"] == round(rendered.coverage, 4) < 0.2


SHOWN = [{"message_id": "message-d", "quote": "On 4 March."}]

# ---- failure, learning value --------------------------------------------------------------------------------------


def test_step_that_was_not_shown_is_no_failed_step() -> None:
    for step, expected in (("step-1", "step-1"), ("step-unknown", None), (None, None)):
        failure = {"owner": "tool", "mode": "tool_error", "first_wrong_step": step, "evidence": SHOWN}
        assert graded(UNMET, failure=failure).columns["failed_step_id"] == expected
    decisions = [{"step_id": step, "choice": "c", "reason_given": "r"} for step in ("step-1", "step-2", "step-unknown")]
    rows = graded(MET, key_decisions=decisions).columns["decisions"]
    assert [decision["step_shown"] for decision in rows] == [True, True, False]
    assert [decision["result"] for decision in rows] == ["success: It arrives", None, None]


@pytest.mark.parametrize("mode", ["other", "timeout"])
def test_failure_description_is_required_only_for_mode_other(mode: str) -> None:
    assert mode in get_args(FailureMode)
    description = "in words" if mode == "other" else None
    columns = graded(
        UNMET, failure={"owner": "tool", "mode": mode, "other_mode": description, "evidence": SHOWN}
    ).columns
    assert (columns["failure_mode"], columns["failure_mode_description"]) == (mode, description)
    with pytest.raises(ValidationError, match="other_mode must have words"):
        answer(UNMET, failure={"mode": mode, "other_mode": None if description else "in words"})


def test_answer_without_failure_has_no_owner_unless_unmet() -> None:
    met, unmet = graded(MET).columns, graded(UNMET).columns
    assert (met["failure_owner"], met["failure_mode"], met["failure"]["problem"]) == ("none", "none", None)
    assert (unmet["outcome"], unmet.get("failure_owner")) == ("failure", None)
    assert unmet["failure"]["problem"] == "a requirement is unmet, and no owner or no mode is named"


@pytest.mark.parametrize(("rating", "word"), [*enumerate(get_args(Complexity), start=1)])
def test_complexity_is_the_rating_of_the_task_as_a_word(rating: int, word: str) -> None:
    columns = graded(MET, ratings={"task_complexity": rating}).columns
    assert (columns["complexity"], columns["task_complexity"]) == (word, rating)


def test_failure_owner_needs_an_unmet_requirement_and_evidence() -> None:
    failure = {"owner": "tool", "mode": "timeout", "reasoning": "it was slow"}
    cases: list[tuple[dict[str, Any], dict[str, Any], tuple[str | None, str | None], str | None]] = [
        (UNMET, {"evidence": SHOWN}, ("tool", "timeout"), None),
        (UNMET, {"evidence": []}, (None, None), "no valid citation shows it"),
        (MET, {"evidence": SHOWN}, ("none", "none"), "no requirement is unmet, so there is no failure to own"),
        (UNMET, {"owner": "none"}, (None, None), "a requirement is unmet, and no owner or no mode is named"),
    ]
    for judged, more, expected, problem in cases:
        columns = graded(judged, failure=failure | more).columns
        assert (columns.get("failure_owner"), columns.get("failure_mode")) == expected
        assert columns["failure"]["problem"] == problem
        assert columns["failure"]["reasoning"] == "it was slow"


def test_reasoning_of_the_ratings_is_stored() -> None:
    assert graded(MET, ratings={"reasoning": "it shows how"}).columns["learning"] == {"reasoning": "it shows how"}


@given(RATINGS)
def test_learning_value_is_the_weighted_share_of_the_ratings(ratings: dict[str, int]) -> None:
    value = learning_value(ratings)
    assert 0 <= value <= 1
    assert value == pytest.approx(sum(LEARNING_WEIGHTS[name] * (ratings[name] - 1) / 4 for name in ratings), abs=1e-4)
    columns = graded(MET, ratings=ratings).columns
    assert columns["learning_value"] == value
    assert {name: columns[name] for name in ratings} == ratings


def test_learning_value_rises_with_each_rating() -> None:
    assert sum(LEARNING_WEIGHTS.values()) == pytest.approx(1)
    assert learning_value(dict.fromkeys(LEARNING_WEIGHTS, 1)) == 0
    assert learning_value(dict.fromkeys(LEARNING_WEIGHTS, 5)) == 1
    for name in LEARNING_WEIGHTS:
        values = [learning_value(dict.fromkeys(LEARNING_WEIGHTS, 2) | {name: rating}) for rating in range(1, 6)]
        assert all(lower < higher for lower, higher in pairwise(values))
