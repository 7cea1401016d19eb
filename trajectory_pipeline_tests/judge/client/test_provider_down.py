"""A materialization while the provider is down ends early, says so, and invents no verdict.

A run that was not sent has no verdict and no call. The next materialization tries one call.
"""

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline_tests.judge.conftest import HOUR, eligible
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, only


@pytest.fixture
def captured(captured: Pipeline) -> Pipeline:
    captured.concurrency = 2
    captured.judge_settings = {"first_pause_seconds": 0.01, "breaker_after": 4}
    return captured


def count(pipeline: Pipeline, table: str, where: str = "true") -> int:
    return int(only(pipeline.ask(f"SELECT count(*) AS n FROM trajectory.{table} WHERE {where}"))["n"])


@pytest.mark.parametrize(("fault", "most"), [("server_error", 5), ("unauthorized", 2)])
def test_judging_a_down_provider_ends_early_and_recovers(
    captured: Pipeline, judge: SimulatedJudge, fault: str, most: int
) -> None:
    """Judging ends early; the next run tries one call; once the provider is back, all is judged."""
    judge.plan_faults([{"fault": fault}])
    with pytest.raises(ProviderDownError) as caught:
        captured.refine(HOUR)
    received = judge.calls()["received"]
    assert 1 <= received <= most
    message = str(caught.value)
    assert message.startswith("The judge's provider is down, and nothing more is asked of it now (")
    assert "trajectories are done, the rest is left to a later run." in message
    # Runs that were sent failed with the error class of their last call. The others have no row.
    failed = captured.ask("SELECT run_id FROM trajectory.verdicts WHERE verdict_status = 'failed'")
    attempted = captured.ask("SELECT DISTINCT run_id FROM trajectory.verdict_attempts")
    assert {row["run_id"] for row in failed} == {row["run_id"] for row in attempted}
    assert count(captured, "verdict_attempts") == received
    assert count(captured, "verdicts", "outcome IS NOT NULL") == 0
    assert count(captured, "verdict_locks") == 0

    with pytest.raises(ProviderDownError):
        captured.refine(HOUR)
    assert judge.calls()["received"] == received + 1

    judge.clear_faults()
    result = captured.refine(HOUR)
    assert result.errors == {}
    assert judge.calls()["received"] == received + 1 + eligible(captured)
    assert count(captured, "verdict_attempts") == judge.calls()["received"]


def test_judging_keeps_verdicts_from_before_the_outage(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.concurrency = 1
    judge.plan_faults([{"fault": "slow", "times": 3, "params": {"seconds": 0.0}}, {"fault": "server_error"}])
    with pytest.raises(ProviderDownError):
        captured.refine(HOUR)
    assert count(captured, "verdicts", "error_class IS NULL") == 3
    judge.clear_faults()
    assert captured.refine(HOUR).calls == eligible(captured) - 3
