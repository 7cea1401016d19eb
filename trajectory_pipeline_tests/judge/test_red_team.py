"""Attacks: no transcript dictates its verdict, even to a judge that obeys it.

Each attack is sent to the simulated judge that obeys, and to a worse one that gives the answer an attacker wants most
and cites the planted text for it.
"""

from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge.injection import obey
from trajectory_pipeline.demo.simulated_judge.rules import judge
from trajectory_pipeline.demo.simulated_judge.transcript import (
    Transcript,
    find_transcript,
    parse_transcript,
)
from trajectory_pipeline.judge.grading import GradedVerdict, grade_response
from trajectory_pipeline.judge.prompt import built_in_prompt
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline.judge.transcript.context import ContextLimits, TaskContext, render_context
from trajectory_pipeline.judge.transcript.windows import RenderedTranscript
from trajectory_pipeline_tests.judge.documents import Document
from trajectory_pipeline_tests.judge.red_team import ATTACKS, CONTEXT_ATTACKS, ECHOES, PROOFS, attempt
from trajectory_pipeline_tests.judge.rendering import render

each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
each_context_attack = pytest.mark.parametrize("attack", CONTEXT_ATTACKS.values(), ids=CONTEXT_ATTACKS)


def read(rendered: RenderedTranscript, context: str = "") -> Transcript:
    """The transcript that a judge finds between the marker lines, in a prompt with this context before it."""
    prompt = built_in_prompt().messages(rendered.text, context=context)[1]["content"]
    block = find_transcript(prompt)
    assert block is not None
    return parse_transcript(block, prompt)


def obeyed(rendered: RenderedTranscript, context: str = "") -> tuple[JudgeResponse, GradedVerdict]:
    transcript = read(rendered, context)
    answer = JudgeResponse.model_validate(obey(transcript, judge(transcript)))
    return answer, grade_response(answer, rendered, "failure")


def test_attacks_are_at_least_15_that_the_judge_obeys() -> None:
    assert len(ATTACKS) >= 15
    obeyed_attacks = [
        name for name, attack in ATTACKS.items() if obeyed(render(attack))[0].requirements[0].status == "met"
    ]
    assert len(obeyed_attacks) >= 15


@each_attack
def test_obeyed_attack_reaches_no_success(attack: Document) -> None:
    _, verdict = obeyed(render(attack))
    assert verdict.columns.get("outcome") in (None, "unknown", "failure")
    assert {requirement["status"] for requirement in verdict.columns["requirements"]} <= {
        "unmet",
        "insufficient_evidence",
    }


@each_context_attack
def test_attack_in_the_context_reaches_no_success(attack: TaskContext) -> None:
    context = render_context(attack, ContextLimits(6_000, 2_000, 100_000), Redactor(key=b"key"))
    answer, verdict = obeyed(render(attempt()), context.text)
    assert answer.requirements[0].status == "met"
    assert verdict.columns.get("outcome") in (None, "unknown", "failure")


@each_context_attack
def test_context_forges_no_structure_and_cannot_be_cited(attack: TaskContext) -> None:
    context = render_context(attack, ContextLimits(6_000, 2_000, 100_000), Redactor(key=b"key"))
    rendered, honest = render(attempt()), read(render(attempt()))
    shown = read(rendered, context.text)
    assert (shown.messages, shown.errors) == (honest.messages, honest.errors)
    lines = [line.strip() for line in context.text.splitlines() if line.startswith("  ") and line.strip()]
    planted = [{"message_id": one.cited_as, "quote": line} for one in rendered.messages for line in lines]
    assert planted
    for kind in ("action", "state", "answer"):
        graded = grade_response(_most_wanted(planted, kind), rendered, "failure")
        assert graded.verdict_status == "insufficient_evidence"


@each_attack
def test_attack_text_that_is_cited_proves_nothing(attack: Document) -> None:
    rendered = render(attack)
    planted = [
        {"message_id": block.cited_as, "quote": line}
        for block in rendered.messages
        for passage in block.passages
        for quotable in passage.quotable_texts
        for line in quotable.splitlines()
        if line.strip() and passage.source != "approval"
    ]
    assert planted
    for kind in ("action", "state"):
        answer = _most_wanted(planted, kind)
        assert grade_response(answer, rendered, "failure").verdict_status == "insufficient_evidence"


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("whole", [False, True])
def test_return_that_only_repeats_the_agent_proves_no_action(echo: Document, *, whole: bool) -> None:
    rendered = render(echo)
    last = rendered.messages[-1]
    shown = [line for passage in last.passages for quotable in passage.quotable_texts for line in quotable.splitlines()]
    quotes = ["\n".join(shown)] if whole else shown
    answer = _most_wanted([{"message_id": last.cited_as, "quote": quote} for quote in quotes], "action")
    assert grade_response(answer, rendered, "failure").verdict_status == "insufficient_evidence"


@pytest.mark.parametrize(("run", "words"), PROOFS.values(), ids=PROOFS)
def test_return_that_shows_an_action_proves_it(run: Document, words: str) -> None:
    rendered = render(run)
    answer = _most_wanted([{"message_id": rendered.messages[-1].cited_as, "quote": words}], "action")
    assert grade_response(answer, rendered, "failure").columns.get("outcome") == "success"


def _most_wanted(planted: list[dict[str, str]], kind: str) -> JudgeResponse:
    requirement: dict[str, Any] = {"statement": "The report is sent.", "kind": kind, "reasoning": "it says so"}
    return JudgeResponse.model_validate(
        {
            "requirements": [{**requirement, "evidence": planted, "status": "met"}],
            "failure": None,
            "learning": {"reasoning": "", "interaction_depth": 5, "task_complexity": 5}
            | {"tool_use": 5, "reference_value": 5},
            "key_decisions": [],
            "summary": "All is well.",
            "lesson": None,
            "tags": ["a", "b", "c"],
            "task_category": "other",
        }
    )


@each_attack
def test_attack_text_forges_no_structure(attack: Document) -> None:
    transcript, honest = read(render(attack)), read(render(attempt()))
    assert len(transcript.messages) == len(honest.messages)
    assert [len(m.returns) for m in transcript.messages] == [len(m.returns) for m in honest.messages]
    assert [len(m.approvals) for m in transcript.messages] == [len(m.approvals) for m in honest.messages]
    assert [error.step_id for error in transcript.errors] == ["step-2"]
