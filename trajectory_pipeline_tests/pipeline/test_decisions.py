"""A decision endpoint as a judge: probabilities of each requirement beside a text judge, within the same accounts."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal

import pytest

from trajectory_pipeline.demo.simulated_judge import SCRIPTED_MODEL, SimulatedJudge
from trajectory_pipeline.errors import JudgeError, ProviderDownError
from trajectory_pipeline.judge.config import Voter
from trajectory_pipeline.judge.grading import derive_outcome
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]


@pytest.fixture
def captured(pipeline: Pipeline, judge: SimulatedJudge) -> Pipeline:
    pipeline.judge_url = judge.base_url
    pipeline.capture(HOUR)
    decide_with(pipeline, SCRIPTED_MODEL)
    return pipeline


def decide_with(pipeline: Pipeline, model: str) -> None:
    pipeline.judge_settings = {}
    text = Voter(pipeline.judge)
    decisions = Voter(replace(pipeline.judge, model=model, statements_from=text))
    pipeline.judge_settings = {"voters": (text, decisions)}


def rows(pipeline: Pipeline, policy_id: str) -> dict[str, Row]:
    found = pipeline.ask("SELECT * FROM trajectory.verdicts WHERE policy_id = %s", policy_id)
    return {row["run_id"]: row for row in found}


def votes(pipeline: Pipeline) -> tuple[dict[str, Row], dict[str, Row], dict[str, Row]]:
    """Text votes, votes of the decision endpoint, and combined verdicts, by run."""
    text, decisions = (one.policy.policy_id for one in pipeline.judge.asked)
    return rows(pipeline, text), rows(pipeline, decisions), rows(pipeline, pipeline.policy.policy_id)


def test_decision_votes_on_the_requirements_of_the_text_judge(captured: Pipeline, judge: SimulatedJudge) -> None:
    result = captured.refine(HOUR)
    text, decisions, combined = votes(captured)
    assert text.keys() == decisions.keys() == combined.keys()
    assert result.cost_usd == Decimal(judge.calls()["cost_usd"])
    assert result.calls == judge.calls()["received"]
    decided = {run_id: row for run_id, row in decisions.items() if row["requirement_probabilities"]}
    assert decided
    for run_id, row in decided.items():
        stated = [one["statement"] for one in text[run_id]["requirements"]]
        assert [one["statement"] for one in row["requirement_probabilities"]] == stated
        for one, probability in zip(row["requirements"], row["requirement_probabilities"], strict=True):
            assert sum(probability["probabilities"].values()) == pytest.approx(1)
            assert probability["probabilities"][one["status"]] == 0.85
        if row["outcome"] is not None:
            assert row["outcome"] == derive_outcome([one["status"] for one in row["requirements"]])
        # Probabilities are no confidence.
        assert row["outcome_confidence"] is None
        assert combined[run_id]["requirement_probabilities"] == row["requirement_probabilities"]
        assert combined[run_id]["summary"] == text[run_id]["summary"]
    attempts = captured.ask("SELECT response_format, model, result, cost_usd FROM trajectory.verdict_attempts")
    by_format = Counter((row["response_format"], row["model"]) for row in attempts)
    assert by_format[("decisions", SCRIPTED_MODEL)] == len(decided)
    assert all(row["cost_usd"] > 0 for row in attempts)
    assert captured.refine(HOUR).calls == 0


def test_refused_question_is_insufficient_evidence_alone(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "decision_refused"}])
    captured.refine(HOUR)
    _, decisions, combined = votes(captured)
    decided = [row for row in decisions.values() if row["requirement_probabilities"]]
    for row in decided:
        first, *others = row["requirement_probabilities"]
        assert first["probabilities"] is None
        assert all(one["probabilities"] is not None for one in others)
        assert row["requirements"][0]["status"] == "insufficient_evidence"
        assert row["outcome"] in (None, "unknown")
    assert {row["verdict_status"] for row in combined.values()} <= {"judged", "insufficient_evidence", "not_eligible"}


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [
        ("decision_missing", "wrong_count"),
        ("decision_nan", "not_a_number"),
        ("decision_out_of_range", "out_of_range"),
        ("decision_wrong_name", "schema_violation"),
    ],
)
def test_unusable_decision_keeps_the_verdict_open_and_the_text_vote(
    captured: Pipeline, judge: SimulatedJudge, fault: str, error_class: str
) -> None:
    judge.plan_faults([{"fault": fault}])
    # Eight unusable answers in a row open the breaker.
    with suppress(ProviderDownError):
        captured.refine(HOUR)
    _, decisions, combined = votes(captured)
    asked = [row for row in decisions.values() if row["attempts"]]
    assert {(row["verdict_status"], row["error_class"]) for row in asked} == {("quarantined", error_class)}
    open_rows = [row for row in combined.values() if row["error_class"] == error_class]
    assert all(row["error_message"].startswith("vote 2 of 2: ") for row in open_rows)
    assert all(row["requirement_probabilities"] is None for row in decisions.values())


def test_rate_limit_and_server_error_are_tried_again(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults(
        [
            {"fault": "rate_limit_ms", "params": {"retry_after_ms": 5}, "times": 2, "match": "requirement"},
            {"fault": "server_error", "times": 1},
        ]
    )
    captured.refine(HOUR)
    _, decisions, combined = votes(captured)
    assert {row["verdict_status"] for row in combined.values()} <= {"judged", "insufficient_evidence", "not_eligible"}
    assert any(row["requirement_probabilities"] for row in decisions.values())


def test_endpoint_without_a_price_is_refused_in_words(captured: Pipeline) -> None:
    decide_with(captured, "gpt-6-luna")
    with pytest.raises(JudgeError, match="No price is known for the model gpt-6-luna"):
        captured.refine(HOUR)
