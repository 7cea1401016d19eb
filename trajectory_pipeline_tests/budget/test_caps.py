"""The contract of judging within a budget: no cap is passed, what is held back comes back, and nobody pays twice.

The simulated judge keeps its own books: they, the attempts and the accounts must agree to the last digit.
"""

import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.budget.prices import ModelPrice, Prices
from trajectory_pipeline.demo.letta_sample.load import sample_partitions
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, only, program_that_judges

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
RUNS = sample_partitions()[HOUR]


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    pipeline.capture(HOUR)
    return pipeline


def day(pipeline: Pipeline) -> Row:
    return only(pipeline.ask("SELECT * FROM trajectory.spend_totals WHERE scope = 'day'"))


def statuses(pipeline: Pipeline) -> dict[str, int]:
    rows = pipeline.ask("SELECT verdict_status, count(*) AS n FROM trajectory.outcomes GROUP BY 1")
    return {row["verdict_status"]: row["n"] for row in rows}


def eligible(pipeline: Pipeline) -> int:
    return int(only(pipeline.ask("SELECT count(*) AS n FROM trajectory.trajectories WHERE message_count > 0"))["n"])


def books_agree(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    books = judge.calls()
    told = only(
        pipeline.ask("SELECT count(*) AS calls, coalesce(sum(cost_usd), 0) AS usd FROM trajectory.verdict_attempts")
    )
    assert (told["calls"], told["usd"]) == (books["received"], Decimal(books["cost_usd"]))
    assert (day(pipeline)["spent_usd"], day(pipeline)["reserved_usd"]) == (told["usd"], 0)
    of_verdicts = only(pipeline.ask("SELECT coalesce(sum(cost_usd), 0) AS usd FROM trajectory.verdicts"))
    assert of_verdicts["usd"] == told["usd"]


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
    books_agree(captured, judge)
    # As much was judged as fitted: what is left would not take one call more.
    assert cap - day(captured)["spent_usd"] < Decimal("0.03")
    for row in captured.ask("SELECT * FROM trajectory.outcomes WHERE verdict_status = 'deferred_budget'"):
        assert row["outcome"] is row["learning_value"] is row["judge_cost_usd"] is None
        assert row["error_class"] == "daily_budget"
        assert "TRAJECTORY_DAILY_BUDGET_USD" in row["error_message"]
    parquet = captured.files()
    again = captured.refine(HOUR)
    assert (again.calls, again.statuses, captured.files()) == (0, first.statuses, parquet)
    captured.do("ALTER TABLE trajectory.spend_totals DROP CONSTRAINT spend_totals_check")
    captured.budget = {"daily_usd": Decimal(5)}
    healed = captured.refine(HOUR)
    assert (healed.calls, healed.deferred) == (eligible(captured) - first.calls, {})
    assert "deferred_budget" not in statuses(captured)
    assert {row["verdict_status"] for row in captured.parquet(REFINED_OUTCOMES, HOUR)} == set(statuses(captured))
    books_agree(captured, judge)


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
    # One that is a materialisation's own has room again in the next one.
    assert (captured.refine(HOUR).calls > 0) == name.startswith("materialization")


def test_cap_with_headroom_for_one_call_makes_every_call_in_turn(captured: Pipeline, judge: SimulatedJudge) -> None:
    """A call costs far less than it may: later calls wait for the reservations that earlier ones give back."""
    unhindered = captured.refine(HOUR).cost_usd
    captured.max_prompt_tokens = 99_999
    captured.budget = {"daily_usd": 2 * unhindered + Decimal("0.05")}
    result = captured.refine(HOUR)
    assert (result.calls, result.deferred) == (eligible(captured), {})
    books_agree(captured, judge)


def test_cap_judges_newest_or_signaled_trajectories_first(captured: Pipeline) -> None:
    captured.concurrency = 1
    captured.budget = {"materialization_usd": Decimal("0.03")}
    captured.refine(HOUR)
    ended = captured.ask(
        "SELECT t.end_time, o.verdict_status FROM trajectory.outcomes o JOIN trajectory.trajectories t USING (run_id)"
        " WHERE t.message_count > 0 ORDER BY t.end_time DESC"
    )
    judged = [row["verdict_status"] != "deferred_budget" for row in ended]
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
    captured.model = "simulated-judge-of-tomorrow"
    with pytest.raises(JudgeError, match=r"No price is known for the model .*TRAJECTORY_PRICES.*ALLOW_UNPRICED=true"):
        captured.refine(HOUR)
    assert judge.calls()["received"] == 0
    assert captured.ask("SELECT * FROM trajectory.verdicts") == []


def test_own_price_applies_whichever_model_answers(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "wrong_model_name"}])
    price = ModelPrice(model=captured.model, input=Decimal(1), output=Decimal(10))
    captured.budget = {"prices": Prices((price,))}
    result = captured.refine(HOUR)
    books = judge.calls()
    assert result.cost_usd == (books["prompt_tokens"] + 10 * books["completion_tokens"]) / Decimal(1_000_000)
    assert result.unpriced_calls == 0


# ---- who is killed, and who comes at the same time ----------------------------------------------------------------


def test_killed_process_leaves_its_calls_lost_at_the_reserved_cost(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "hang"}])
    with subprocess.Popen([sys.executable, "-c", program_that_judges(captured, HOUR, concurrency=3)]) as process:
        deadline = time.monotonic() + 60
        while judge.calls()["in_flight"] < 3:
            assert time.monotonic() < deadline, "nothing was asked"
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    lost = captured.ask("SELECT * FROM trajectory.verdict_attempts")
    assert {(row["result"], row["duration_ns"]) for row in lost} == {("lost", None)}
    assert len(lost) == 3
    assert sum(row["cost_usd"] for row in lost) == day(captured)["reserved_usd"] > 0
    while judge.calls()["in_flight"]:
        assert time.monotonic() < deadline, "the judge did not notice that its client is gone"
        time.sleep(0.05)
    judge.clear_faults()
    # The claims of the dead end by themselves: here the clock is moved on instead.
    captured.do("UPDATE trajectory.verdict_locks SET expires_at = now()")
    result = captured.refine(HOUR)
    assert result.calls == eligible(captured)
    books = judge.calls()
    assert books["received"] == len(lost) + result.calls
    told = only(captured.ask("SELECT sum(cost_usd) AS usd FROM trajectory.verdict_attempts"))
    assert told["usd"] == Decimal(books["cost_usd"]) + sum(row["cost_usd"] for row in lost)
    assert day(captured)["spent_usd"] == Decimal(books["cost_usd"])
    assert day(captured)["spent_usd"] + day(captured)["reserved_usd"] == told["usd"]
    twice = captured.ask("SELECT * FROM trajectory.verdicts WHERE attempts > 1")
    assert {row["run_id"] for row in twice} == {row["run_id"] for row in lost}


def test_processes_judging_one_partition_together_pay_once(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.1}}])
    workers = [
        subprocess.Popen([sys.executable, "-c", program_that_judges(captured, HOUR)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for worker in workers:
        _, told = worker.communicate(timeout=120)
        assert worker.returncode == 0, told.decode()
    assert judge.calls()["received"] == eligible(captured)
    books_agree(captured, judge)
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
    books_agree(captured, judge)
