"""Access lists: a denied trajectory is not sent to the judge, and is considered again when the lists change."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.judge.access_lists import JudgeAccessList
from trajectory_pipeline.pipeline.pending_verdicts import find_pending_verdicts
from trajectory_pipeline_tests.judge.conftest import HOUR
from trajectory_pipeline_tests.pipeline.materializing import Pipeline


def requested(pipeline: Pipeline, access: JudgeAccessList) -> list[str]:
    """The partitions that the refinement sensor would request."""
    now = datetime.now(UTC) + timedelta(hours=1)
    return find_pending_verdicts(
        pipeline.database,
        replace(pipeline.judge, access=access),
        now=now,
        settle_for=timedelta(0),
        lookback=timedelta(days=3650),
        give_up_after=3,
    ).partition_keys


def test_denied_agent_is_not_judged_until_the_list_changes(captured: Pipeline, judge: SimulatedJudge) -> None:
    count = "SELECT agent_id, count(*) AS n FROM trajectory.trajectories WHERE message_count > 0 GROUP BY 1 ORDER BY 2"
    agent, runs = captured.ask(count)[-1].values()
    captured.access = JudgeAccessList(deny_agents=frozenset({agent}))
    captured.refine(HOUR)
    denied = captured.ask("SELECT * FROM trajectory.verdicts WHERE error_class = 'denied'")
    assert {row["verdict_status"] for row in denied} == {"not_eligible"}
    assert (len(denied), {row["attempts"] for row in denied}) == (runs, {0})
    assert agent in denied[0]["error_message"]
    assert "TRAJECTORY_JUDGE_DENY_AGENTS" in denied[0]["error_message"]
    calls = captured.ask(
        "SELECT 1 AS x FROM trajectory.verdict_attempts a JOIN trajectory.trajectories t USING (run_id)"
        " WHERE t.agent_id = %s",
        agent,
    )
    assert calls == []
    # While denied, it is not considered again. Once allowed, the sensor requests it and a materialization judges it.
    received = judge.calls()["received"]
    captured.refine(HOUR)
    assert judge.calls()["received"] == received
    assert requested(captured, captured.access) == []
    captured.access = JudgeAccessList()
    assert len(requested(captured, captured.access)) == 1
    assert captured.refine(HOUR).calls == runs
    assert captured.ask("SELECT 1 AS x FROM trajectory.verdicts WHERE error_class = 'denied'") == []
