"""Judging under a policy with several votes: one verdict, each vote stored with its cost, and none paid for twice."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest

from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, OBEDIENT_MODEL, SCRIPTED_MODEL, SimulatedJudge
from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.config import Voter
from trajectory_pipeline.judge.policy import VotingRule
from trajectory_pipeline.pipeline import voting
from trajectory_pipeline.pipeline.judge_panel import judge_panel
from trajectory_pipeline.schema.enums import EscalateWhen
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, only, program_that_judges

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
RUNS = sample_partitions()[HOUR]
FINAL = {"judged", "insufficient_evidence", "not_eligible"}


@pytest.fixture
def captured(pipeline: Pipeline, judge: SimulatedJudge) -> Pipeline:
    pipeline.judge_url = judge.base_url
    pipeline.capture(HOUR)
    return pipeline


def vote_with(pipeline: Pipeline, *models: str, samples: int = 1, escalated: str = "", **rule: object) -> None:
    """Let these models vote; ``escalated`` is asked in the second step."""
    pipeline.judge_settings = {}
    base = pipeline.judge
    voters = [Voter(replace(base, model=model), samples) for model in models]
    if escalated:
        voters.append(Voter(replace(base, model=escalated), 1, escalated=True))
    pipeline.judge_settings = {"voters": tuple(voters), "rule": VotingRule(**rule)}  # type: ignore[arg-type]


def eligible(pipeline: Pipeline) -> int:
    return int(only(pipeline.ask("SELECT count(*) AS n FROM trajectory.trajectories WHERE message_count > 0"))["n"])


def of_policy(pipeline: Pipeline, policy_id: str) -> dict[str, Row]:
    rows = pipeline.ask("SELECT * FROM trajectory.verdicts WHERE policy_id = %s AND repetition = 0", policy_id)
    return {row["run_id"]: row for row in rows}


def test_votes_are_stored_with_their_cost_and_combined(captured: Pipeline, judge: SimulatedJudge) -> None:
    vote_with(captured, JUDGE_MODEL, SCRIPTED_MODEL, OBEDIENT_MODEL)
    result = captured.refine(HOUR)
    assert result.calls == judge.calls()["received"] == 3 * eligible(captured)
    assert result.judged == eligible(captured)
    assert result.cost_usd == Decimal(judge.calls()["cost_usd"])
    combined = of_policy(captured, captured.policy.policy_id)
    assert len(combined) == RUNS
    votes = [of_policy(captured, one.policy.policy_id) for one in captured.judge.asked]
    for run_id, row in combined.items():
        listed = [vote[run_id] for vote in votes]
        assert [one["verdict_key"] for one in row["votes"]] == [vote["verdict_key"] for vote in listed]
        assert row["verdict_status"] in FINAL
        if row["verdict_status"] == "not_eligible":
            continue
        assert row["cost_usd"] == sum(vote["cost_usd"] for vote in listed)
        assert row["attempts"] == 3
        if row["outcome"] is not None:
            cast = Counter(vote["outcome"] or "unknown" for vote in listed)
            assert row["vote_agreement"] == pytest.approx(cast[row["outcome"]] / 3, abs=1e-4)
    published = captured.parquet(REFINED_OUTCOMES, HOUR)
    assert {row["policy_id"] for row in published} == {captured.policy.policy_id}
    shown = captured.ask("SELECT * FROM trajectory.outcomes WHERE vote_agreement IS NOT NULL")
    assert {row["judge_calls"] for row in shown} == {3}
    assert captured.refine(HOUR).calls == 0


def test_samples_of_one_judge_are_repetitions(captured: Pipeline, judge: SimulatedJudge) -> None:
    vote_with(captured, JUDGE_MODEL, samples=3)
    captured.refine(HOUR)
    assert judge.calls()["received"] == 3 * eligible(captured)
    (voter,) = captured.judge.voters
    rows = captured.ask("SELECT repetition FROM trajectory.verdicts WHERE policy_id = %s", voter.judge.policy.policy_id)
    assert Counter(row["repetition"] for row in rows) == {0: RUNS, 1: RUNS, 2: RUNS}


def test_vote_that_exists_already_is_not_asked_for(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine(HOUR)
    calls = judge.calls()["received"]
    vote_with(captured, JUDGE_MODEL, SCRIPTED_MODEL)
    assert captured.refine(HOUR).calls == eligible(captured)
    assert judge.calls()["received"] == calls + eligible(captured)


def test_strong_judge_is_asked_only_where_it_is_needed(captured: Pipeline, judge: SimulatedJudge) -> None:
    reasons = (EscalateWhen.ABSTAINS, EscalateWhen.CONTRADICTS)
    vote_with(captured, JUDGE_MODEL, escalated=SCRIPTED_MODEL, escalate_when=reasons)
    captured.refine(HOUR)
    first, second = (of_policy(captured, one.policy.policy_id) for one in captured.judge.asked)
    heuristic = {row["run_id"]: row["heuristic_outcome"] for row in captured.ask("SELECT * FROM trajectory.outcomes")}
    needed = {
        run_id
        for run_id, row in first.items()
        if row["verdict_status"] != "not_eligible"
        and (row["outcome"] in (None, "unknown") or heuristic[run_id] not in ("unknown", row["outcome"]))
    }
    assert second.keys() == needed
    assert 0 < len(needed) < eligible(captured)
    assert judge.calls()["received"] == eligible(captured) + len(needed)
    combined = of_policy(captured, captured.policy.policy_id)
    assert {run_id for run_id, row in combined.items() if row["escalation"]} == needed
    assert all(combined[run_id]["outcome"] == second[run_id]["outcome"] for run_id in needed)
    assert all(combined[run_id]["outcome"] == first[run_id]["outcome"] for run_id in first.keys() - needed)


def test_vote_without_headroom_leaves_the_others_paid(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine(HOUR)
    spent = Decimal(judge.calls()["cost_usd"])
    captured.budget = {"daily_usd": spent}
    vote_with(captured, JUDGE_MODEL, SCRIPTED_MODEL)
    assert captured.refine(HOUR).calls == 0
    combined = of_policy(captured, captured.policy.policy_id)
    assert Counter(row["verdict_status"] for row in combined.values())["deferred_budget"] == eligible(captured)
    captured.budget = {}
    vote_with(captured, JUDGE_MODEL, SCRIPTED_MODEL)
    result = captured.refine(HOUR)
    assert result.calls == result.judged == eligible(captured)
    assert {row["verdict_status"] for row in of_policy(captured, captured.policy.policy_id).values()} <= FINAL


def test_cap_that_ends_between_votes_leaves_complete_verdicts(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voting, "AT_ONCE", 5)
    captured.budget = {"daily_usd": Decimal("0.06")}
    vote_with(captured, JUDGE_MODEL, samples=3)
    result = captured.refine(HOUR)
    judged = result.statuses["judged"] + result.statuses["insufficient_evidence"]
    assert 0 < judged < eligible(captured)
    # Of the calls that the cap allows, few are for verdicts that have to wait for other votes.
    assert judge.calls()["received"] - 3 * judged <= 2 * 5
    assert len(captured.parquet(REFINED_OUTCOMES, HOUR)) == RUNS
    captured.budget = {}
    vote_with(captured, JUDGE_MODEL, samples=3)
    captured.refine(HOUR)
    assert judge.calls()["received"] == 3 * eligible(captured)
    assert {row["verdict_status"] for row in of_policy(captured, captured.policy.policy_id).values()} <= FINAL


def test_outage_of_the_second_judge_keeps_the_first_votes(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.budget = {"allow_unpriced": True, "daily_tokens": 10**9}
    vote_with(captured, JUDGE_MODEL, f"{JUDGE_MODEL}:unauthorized")
    with pytest.raises(ProviderDownError):
        captured.refine(HOUR)
    assert of_policy(captured, captured.policy.policy_id) == {}
    first = captured.judge.asked[0].policy.policy_id
    assert len(of_policy(captured, first)) == RUNS
    paid = judge.calls()["cost_usd"]
    with pytest.raises(ProviderDownError):
        captured.refine(HOUR)
    assert judge.calls()["cost_usd"] == paid


@pytest.mark.heavy
def test_worker_killed_between_votes_pays_for_none_twice(captured: Pipeline, judge: SimulatedJudge) -> None:
    vote_with(captured, JUDGE_MODEL, SCRIPTED_MODEL)
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.2}}])
    with subprocess.Popen([sys.executable, "-c", program_that_judges(captured, HOUR, concurrency=2)]) as process:
        deadline = time.monotonic() + 60
        second = captured.judge.asked[1].policy.policy_id
        while len(of_policy(captured, second)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    connections = (
        "SELECT 1 AS x FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'trajectory-pipeline'"
    )
    while captured.ask(connections) and time.monotonic() < deadline:
        time.sleep(0.05)
    judge.clear_faults()
    captured.do("UPDATE trajectory.verdict_locks SET expires_at = now()")
    before = captured.ask("SELECT * FROM trajectory.verdicts")
    calls = captured.ask("SELECT verdict_key, count(*) AS n FROM trajectory.verdict_attempts GROUP BY 1")
    assert RUNS < len(before) < 2 * RUNS
    captured.refine(HOUR)
    rows = captured.ask("SELECT * FROM trajectory.verdicts")
    assert len(rows) == 3 * RUNS
    by_key = {(row["run_id"], row["verdict_key"]): row for row in rows}
    assert all(by_key[row["run_id"], row["verdict_key"]] == row for row in before)
    finished = {row["verdict_key"] for row in before}
    after = captured.ask("SELECT verdict_key, count(*) AS n FROM trajectory.verdict_attempts GROUP BY 1")
    known = {row["verdict_key"]: row["n"] for row in calls if row["verdict_key"] in finished}
    assert {row["verdict_key"]: row["n"] for row in after if row["verdict_key"] in finished} == known


def test_panel_of_several_votes_repeats_each_vote(captured: Pipeline, judge: SimulatedJudge) -> None:
    found = captured.ask("SELECT run_id FROM trajectory.trajectories WHERE message_count > 2 ORDER BY 1 LIMIT 2")
    runs = [row["run_id"] for row in found]
    vote_with(captured, JUDGE_MODEL, samples=2)
    result = judge_panel(runs, 2, captured.storage, captured.judge)
    assert result.statuses.total() == 4
    assert judge.calls()["received"] == 8
    rows = captured.ask(
        "SELECT repetition, votes FROM trajectory.verdicts WHERE policy_id = %s", captured.policy.policy_id
    )
    assert len(rows) == 4
    repetitions = {row["repetition"]: [vote["repetition"] for vote in row["votes"]] for row in rows}
    assert repetitions == {0: [0, 1], 1: [2, 3]}
