"""Judging within a budget: no cap is exceeded, deferred runs are judged later, and no verdict is paid for twice.

The usage log of the simulated judge, the recorded calls and the spend totals must agree to the last digit.
"""

import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.budget.caps import Budget
from trajectory_pipeline.budget.prices import ModelPrice, Prices
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.judge.conftest import HOUR, eligible
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, only, program_that_judges

RUNS = sample_partitions()[HOUR]


def daily_total(pipeline: Pipeline) -> Row:
    return only(pipeline.ask("SELECT * FROM trajectory.spend_totals WHERE scope = 'day'"))


def statuses(pipeline: Pipeline) -> dict[str, int]:
    rows = pipeline.ask("SELECT verdict_status, count(*) AS n FROM trajectory.outcomes GROUP BY 1")
    return {row["verdict_status"]: row["n"] for row in rows}


def assert_costs_agree(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    usage_log = judge.calls()
    recorded = only(
        pipeline.ask("SELECT count(*) AS calls, coalesce(sum(cost_usd), 0) AS usd FROM trajectory.verdict_attempts")
    )
    assert (recorded["calls"], recorded["usd"]) == (usage_log["received"], Decimal(usage_log["cost_usd"]))
    assert (daily_total(pipeline)["spent_usd"], daily_total(pipeline)["reserved_usd"]) == (recorded["usd"], 0)
    of_verdicts = only(pipeline.ask("SELECT coalesce(sum(cost_usd), 0) AS usd FROM trajectory.verdicts"))
    assert of_verdicts["usd"] == recorded["usd"]


# ---- caps ---------------------------------------------------------------------------------------------------------


def test_daily_cap_defers_calls_and_judges_them_when_raised(captured: Pipeline, judge: SimulatedJudge) -> None:
    """The cap is never exceeded, and what it deferred is judged once it is raised."""
    cap = Decimal("0.04")
    captured.do(f"ALTER TABLE trajectory.spend_totals ADD CHECK (reserved_usd + spent_usd <= {cap})")
    captured.budget = {"daily_usd": cap}
    first = captured.refine(HOUR)
    assert first.statuses["deferred_budget"] == first.deferred["daily_budget"] > 0
    assert first.calls > 0
    assert sum(first.statuses.values()) == RUNS
    assert_costs_agree(captured, judge)
    # The remaining headroom is too small for another call.
    assert cap - daily_total(captured)["spent_usd"] < Decimal("0.03")
    for row in captured.ask("SELECT * FROM trajectory.outcomes WHERE verdict_status = 'deferred_budget'"):
        assert row["outcome"] is row["learning_value"] is row["judge_cost_usd"] is None
        assert row["error_class"] == "daily_budget"
        assert "TRAJECTORY_DAILY_BUDGET_USD" in row["error_message"]
    parquet = captured.files()
    again = captured.refine(HOUR)
    assert (again.calls, again.statuses, captured.files()) == (0, first.statuses, parquet)
    captured.do("ALTER TABLE trajectory.spend_totals DROP CONSTRAINT spend_totals_check")
    captured.budget = {"daily_usd": Decimal(5)}
    resumed = captured.refine(HOUR)
    assert (resumed.calls, resumed.deferred) == (eligible(captured) - first.calls, {})
    assert "deferred_budget" not in statuses(captured)
    assert {row["verdict_status"] for row in captured.parquet(REFINED_OUTCOMES, HOUR)} == set(statuses(captured))
    assert_costs_agree(captured, judge)


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ({"materialization_usd": Decimal("0.03")}, "materialization_budget"),
        ({"materialization_tokens": 30_000}, "materialization_tokens"),
        ({"organization_usd": Decimal("0.03")}, "organization_budget"),
        ({"daily_tokens": 30_000}, "daily_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_cap_reports_what_it_defers_under_its_own_name(captured: Pipeline, budget: dict[str, Any], name: str) -> None:
    captured.do("UPDATE trajectory.trajectories SET organization_id = 'org'")
    captured.budget = budget
    result = captured.refine(HOUR)
    assert set(result.deferred) == {name}
    assert result.calls > 0
    # A cap of a materialization is renewed by the next one.
    assert (captured.refine(HOUR).calls > 0) == name.startswith("materialization")


def test_cap_with_headroom_for_one_call_makes_every_call_in_turn(captured: Pipeline, judge: SimulatedJudge) -> None:
    """A call costs far less than it may: later calls wait for the reservations that earlier ones give back."""
    uncapped_usd = captured.refine(HOUR).cost_usd
    captured.max_prompt_tokens = 99_999
    captured.budget = {"daily_usd": 2 * uncapped_usd + Decimal("0.05")}
    result = captured.refine(HOUR)
    assert (result.calls, result.deferred) == (eligible(captured), {})
    assert_costs_agree(captured, judge)


def test_cap_judges_newest_or_signaled_trajectories_first(captured: Pipeline) -> None:
    captured.concurrency = 1
    captured.budget = {"materialization_usd": Decimal("0.03")}
    captured.refine(HOUR)
    newest_first = captured.ask(
        "SELECT t.end_time, o.verdict_status FROM trajectory.outcomes o JOIN trajectory.trajectories t USING (run_id)"
        " WHERE t.message_count > 0 ORDER BY t.end_time DESC"
    )
    judged = [row["verdict_status"] != "deferred_budget" for row in newest_first]
    assert judged[0]
    assert sum(judged[: len(judged) // 2]) > sum(judged[len(judged) // 2 :])
    captured.max_prompt_tokens = 99_999
    captured.order = "signals"
    captured.refine(HOUR)
    failures = captured.ask(
        "SELECT verdict_status FROM trajectory.outcomes WHERE heuristic_outcome = 'failure' AND verdict_status NOT IN"
        " ('not_eligible')"
    )
    assert failures
    assert {row["verdict_status"] for row in failures[:1]} != {"deferred_budget"}


# ---- prices -------------------------------------------------------------------------------------------------------


def test_unpriced_model_is_refused_before_any_call(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.budget = {"prices": Prices()}
    captured.model = "unpriced-judge"
    with pytest.raises(JudgeError, match=r"No price is known for the model .*TRAJECTORY_PRICES.*ALLOW_UNPRICED=true"):
        captured.refine(HOUR)
    assert judge.calls()["received"] == 0
    assert captured.ask("SELECT * FROM trajectory.verdicts") == []


def test_own_price_applies_whichever_model_answers(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "wrong_model_name"}])
    price = ModelPrice(model=captured.model, input=Decimal(1), output=Decimal(10))
    captured.budget = {"prices": Prices((price,))}
    result = captured.refine(HOUR)
    usage_log = judge.calls()
    assert result.cost_usd == (usage_log["prompt_tokens"] + 10 * usage_log["completion_tokens"]) / Decimal(1_000_000)
    assert result.unpriced_calls == 0


# ---- killed and concurrent processes ------------------------------------------------------------------------------


@pytest.mark.heavy
def test_killed_process_leaves_its_calls_lost_at_the_reserved_cost(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "hang"}])
    with subprocess.Popen([sys.executable, "-c", program_that_judges(captured, HOUR, concurrency=3)]) as process:
        deadline = time.monotonic() + 60
        while judge.calls()["in_flight"] < 3:
            assert time.monotonic() < deadline, "the judge received no call"
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    lost = captured.ask("SELECT * FROM trajectory.verdict_attempts")
    assert {(row["result"], row["duration_ns"]) for row in lost} == {("lost", None)}
    assert len(lost) == 3
    assert sum(row["cost_usd"] for row in lost) == daily_total(captured)["reserved_usd"] > 0
    while judge.calls()["in_flight"]:
        assert time.monotonic() < deadline, "the judge did not notice that its client had disconnected"
        time.sleep(0.05)
    judge.clear_faults()
    # The locks of the killed process expire by themselves; the test does not wait for that.
    captured.do("UPDATE trajectory.verdict_locks SET expires_at = now()")
    result = captured.refine(HOUR)
    assert result.calls == eligible(captured)
    usage_log = judge.calls()
    assert usage_log["received"] == len(lost) + result.calls
    recorded = only(captured.ask("SELECT sum(cost_usd) AS usd FROM trajectory.verdict_attempts"))
    assert recorded["usd"] == Decimal(usage_log["cost_usd"]) + sum(row["cost_usd"] for row in lost)
    assert daily_total(captured)["spent_usd"] == Decimal(usage_log["cost_usd"])
    assert daily_total(captured)["spent_usd"] + daily_total(captured)["reserved_usd"] == recorded["usd"]
    repeated = captured.ask("SELECT * FROM trajectory.verdicts WHERE attempts > 1")
    assert {row["run_id"] for row in repeated} == {row["run_id"] for row in lost}


@pytest.mark.heavy
def test_processes_judging_one_partition_together_pay_once(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.1}}])
    workers = [
        subprocess.Popen([sys.executable, "-c", program_that_judges(captured, HOUR)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    assert judge.calls()["received"] == eligible(captured)
    assert_costs_agree(captured, judge)
    assert captured.ask("SELECT * FROM trajectory.verdict_locks") == []
    assert len(captured.parquet(REFINED_OUTCOMES, HOUR)) == RUNS


def test_verdict_due_in_two_partitions_is_paid_once(captured: Pipeline, judge: SimulatedJudge) -> None:
    """A run that moves while it is judged is in another partition, with the same verdict key."""
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.1}}])
    first = subprocess.Popen([sys.executable, "-c", program_that_judges(captured, HOUR, concurrency=1)])
    deadline = time.monotonic() + 60
    while not judge.calls()["received"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    other = min(hour for hour in sample_partitions() if hour != HOUR)
    captured.capture(other)
    captured.do(f"UPDATE trajectory.trajectories SET partition_key = '{other:%Y-%m-%d-%H:00}'")
    captured.refine(other)
    assert first.wait(timeout=120) == 0
    assert judge.calls()["received"] == eligible(captured)
    assert_costs_agree(captured, judge)


def test_model_with_price_zero_needs_a_cap_in_tokens() -> None:
    """A price of 0 takes nothing from a cap in dollars, whatever is asked."""
    free = Prices((ModelPrice(model="m", input=Decimal(0), output=Decimal(0)),))
    with pytest.raises(JudgeError, match=r"is 0, .*: set .*TRAJECTORY_DAILY_BUDGET_TOKENS"):
        Budget(prices=free, daily_usd=Decimal(5)).require_price("m", "http://localhost/v1")
    Budget(prices=free, daily_tokens=1).require_price("m", "http://localhost/v1")
    half = Prices((ModelPrice(model="m", input=Decimal(0), output=Decimal(1)),))
    Budget(prices=half).require_price("m", "http://localhost/v1")
