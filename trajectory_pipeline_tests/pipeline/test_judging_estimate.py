"""The estimate of judging equals what then happens, and bounds what it costs."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.judge.access_lists import UNRESTRICTED, JudgeAccessList
from trajectory_pipeline.pipeline.judging_estimate import JudgingEstimate, estimate_judging
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

HOURS = sorted(sample_partitions(), key=lambda hour: -sample_partitions()[hour])[:2]


@pytest.fixture
def pipeline(letta_database: str, trajectory_database: str, tmp_path: Path, judge: SimulatedJudge) -> Pipeline:
    made = Pipeline(letta_database, trajectory_database, tmp_path / "parquet", judge.base_url)
    made.capture(*HOURS)
    return made


def plan(pipeline: Pipeline, *, render: bool = True, judge_lookback_days: int = 100_000) -> JudgingEstimate:
    return estimate_judging(
        HOURS,
        pipeline.storage,
        pipeline.judge,
        now=datetime.now(UTC),
        lookback=timedelta(days=judge_lookback_days),
        order=pipeline.order,
        render=render,
    )


def test_as_json_with_reasons_counts_them_by_name() -> None:
    estimate = JudgingEstimate(judged=Counter(new=2), max_usd=Decimal("0.10"))
    written = json.loads(json.dumps(estimate.as_json()))
    assert (written["judged"], written["not_judged"], written["max_usd"]) == ({"new": 2}, {}, "0.10")


def test_estimate_equals_calls_made_and_bounds_cost(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    before = pipeline.ask("SELECT relname, n_tup_ins FROM pg_stat_user_tables WHERE relname = 'policies'")
    planned, sized = plan(pipeline), plan(pipeline, render=False)
    assert judge.calls()["received"] == 0
    assert pipeline.ask("SELECT relname, n_tup_ins FROM pg_stat_user_tables WHERE relname = 'policies'") == before
    results = [pipeline.refine(hour) for hour in HOURS]
    usage = judge.calls()
    assert planned.judged == sized.judged == {"new": usage["received"]}
    assert planned.calls == usage["received"]
    assert planned.not_eligible == sum(result.statuses["not_eligible"] for result in results)
    assert planned.max_usd is not None
    assert usage["prompt_tokens"] <= planned.prompt_tokens <= sized.prompt_tokens
    assert usage["completion_tokens"] <= planned.max_response_tokens_total
    assert Decimal(usage["cost_usd"]) <= planned.max_usd
    after = plan(pipeline)
    assert (after.judged.total(), after.calls, after.max_usd) == (0, 0, 0)
    assert after.reused == usage["received"]


def test_estimate_counts_each_reason(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    for hour in HOURS:
        pipeline.refine(hour)
    ids = [
        row["run_id"]
        for row in pipeline.ask(
            "SELECT run_id FROM trajectory.trajectories t WHERE message_count > 0 AND continues_run_id IS NULL AND NOT"
            " EXISTS (SELECT FROM trajectory.trajectories c WHERE c.continues_run_id = t.run_id) ORDER BY 1 LIMIT 3"
        )
    ]
    pipeline.do(
        f"UPDATE trajectory.trajectories SET content_digest = 'new' WHERE run_id = '{ids[0]}'",
        f"UPDATE trajectory.verdicts SET verdict_status = 'failed' WHERE run_id = '{ids[1]}'",
        f"UPDATE trajectory.verdicts SET verdict_status = 'deferred_budget' WHERE run_id = '{ids[2]}'",
    )
    planned = plan(pipeline)
    assert planned.judged == {"content changed": 1, "failed before": 1, "deferred before": 1}
    assert planned.expected_usd is not None
    assert planned.max_usd is not None
    assert 0 < planned.expected_usd < planned.max_usd
    pipeline.max_prompt_tokens = 99_999
    assert plan(pipeline).judged == {"policy changed": planned.reused + 3}
    assert plan(pipeline, judge_lookback_days=0).outside_lookback == planned.reused + 3


def test_estimate_denied_runs_are_counted_until_lists_change(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    unrestricted = plan(pipeline)
    agent = pipeline.ask(
        "SELECT agent_id, count(*) AS n FROM trajectory.trajectories WHERE message_count > 0 GROUP BY 1 ORDER BY 2, 1"
    )[-1]
    pipeline.access = JudgeAccessList(deny_agents=frozenset({agent["agent_id"]}))
    planned = plan(pipeline)
    assert planned.denied == agent["n"] > 0
    assert planned.judged.total() == unrestricted.judged.total() - agent["n"]
    assert f"{agent['n']} may not be sent to a judge" in " ".join(planned.sentences())
    for hour in HOURS:
        pipeline.refine(hour)
    assert judge.calls()["received"] == planned.calls
    after = plan(pipeline)
    assert (after.denied, after.judged.total()) == (agent["n"], 0)
    pipeline.access = UNRESTRICTED
    assert plan(pipeline).judged == {"denied before": agent["n"]}


def test_estimate_names_what_caps_would_defer(pipeline: Pipeline) -> None:
    pipeline.budget = {"daily_usd": Decimal("0.1")}
    planned = plan(pipeline)
    deferred = planned.not_judged["TRAJECTORY_DAILY_BUDGET_USD"]
    assert 0 < deferred < planned.judged.total()
    assert f"The caps may defer {deferred} by TRAJECTORY_DAILY_BUDGET_USD" in " ".join(planned.sentences())
    held = sum(pipeline.refine(hour).deferred.total() for hour in sorted(HOURS, reverse=True))
    # Each call costs less than its most, so that more is judged than the plan promises.
    assert held <= deferred


def test_estimate_unpriced_model_counts_tokens_only(pipeline: Pipeline) -> None:
    pipeline.model = "simulated-judge-of-tomorrow"
    planned = plan(pipeline)
    assert planned.max_usd is None
    assert planned.prompt_tokens > 0
    assert "no price is known" in " ".join(planned.sentences())
