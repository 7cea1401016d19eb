"""Judging a panel: any policy, any number of times, within the same budget; nothing else that is read moves."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.judge.policy import verdict_key
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.judge_panel import PanelResult, judge_panel
from trajectory_pipeline.pipeline.judging_estimate import estimate_panel
from trajectory_pipeline.schema.frames import VERDICT_FRAME
from trajectory_pipeline.schema.types import Sink
from trajectory_pipeline.storage.postgres.query import query_postgres
from trajectory_pipeline.storage.postgres.summaries import verdicts_of_run
from trajectory_pipeline.storage.postgres.verdict_status import panel_candidates, unpublished_partitions
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline.storage.selection import Selection
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, only

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]


@pytest.fixture
def captured(pipeline: Pipeline, judge: SimulatedJudge) -> Pipeline:
    pipeline.judge_url = judge.base_url
    pipeline.capture(HOUR)
    return pipeline


def panel_of(pipeline: Pipeline, size: int = 3) -> list[str]:
    rows = pipeline.ask(
        "SELECT run_id FROM trajectory.trajectories WHERE message_count > 2 AND continues_run_id IS NULL"
        f" ORDER BY run_id LIMIT {size}"
    )
    return [row["run_id"] for row in rows]


def judged(pipeline: Pipeline, run_ids: list[str], repetitions: int) -> PanelResult:
    return judge_panel(run_ids, repetitions, pipeline.storage, pipeline.judge)


def seen(pipeline: Pipeline) -> object:
    """All that means "the verdict": views, frames, and whether files agree."""
    outcomes = pipeline.ask("SELECT * FROM trajectory.outcomes ORDER BY run_id")
    names = list(VERDICT_FRAME.names(Sink.POSTGRES))
    frame = query_postgres(pipeline.database, VERDICT_FRAME, Selection(), names).sort_by("run_id").to_pylist()
    current = pipeline.ask("SELECT policy_id FROM trajectory.policies WHERE is_current")
    return outcomes, frame, current, unpublished_partitions(pipeline.database, [partition_key(HOUR)])


def test_repetitions_leave_the_verdict_as_it_is(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine(HOUR)
    before, calls, runs = seen(captured), judge.calls()["received"], panel_of(captured)
    result = judged(captured, runs, 3)
    assert (result.reused, result.statuses.total(), result.stats.calls) == (3, 9, 6)
    assert judge.calls()["received"] == calls + 6
    assert seen(captured) == before
    rows = captured.ask("SELECT * FROM trajectory.verdicts WHERE run_id = ANY(%s)", runs)
    assert sorted(row["repetition"] for row in rows) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with open_verdicts(captured.database) as store:
        for row in rows:
            connection, (run_id, number) = store.connection, (row["run_id"], row["repetition"])
            (one,) = panel_candidates(connection, captured.policy.policy_id, [run_id], number)
            assert row["shown_digests"] == [*one.conversation_digests, *one.earlier_digests, one.content_digest]
            assert row["verdict_key"] == verdict_key(
                [*one.earlier_digests, one.content_digest],
                captured.policy,
                number,
                conversation_digests=one.conversation_digests,
                context_digest=one.context_digest,
            )
    # The verdict itself comes first, however late a repetition was stored.
    assert [row["repetition"] for row in verdicts_of_run(captured.database, runs[0])] == [0, 1, 2]


def test_panel_under_another_policy_keeps_the_current_one(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine(HOUR)
    before, runs = seen(captured), panel_of(captured)
    captured.judge_settings = {"max_response_tokens": 7000}
    result = judged(captured, runs, 2)
    assert result.policy_id == captured.policy.policy_id
    assert (result.statuses.total(), result.reused) == (6, 0)
    assert seen(captured) == before
    calls = judge.calls()["received"]
    assert judged(captured, runs, 2).reused == 6
    assert judge.calls()["received"] == calls


def test_panel_verdict_counts_once_its_policy_is_current(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine(HOUR)
    runs = panel_of(captured)
    captured.judge_settings = {"max_response_tokens": 7000}
    judged(captured, runs, 1)
    calls = judge.calls()["received"]
    eligible = only(captured.ask("SELECT count(*) AS n FROM trajectory.trajectories WHERE message_count > 0"))["n"]
    captured.refine(HOUR)
    assert judge.calls()["received"] == calls + eligible - len(runs)


def test_repetition_alone_leaves_the_run_new(captured: Pipeline) -> None:
    runs = panel_of(captured, 1)
    judged(captured, runs, 2)
    captured.do("DELETE FROM trajectory.verdicts WHERE repetition = 0")
    assert judged(captured, runs, 2).reused == 1
    assert only(captured.ask("SELECT verdict_status FROM trajectory.outcomes WHERE run_id = %s", runs[0])) == {
        "verdict_status": None
    }


def test_panel_stays_within_the_caps(captured: Pipeline) -> None:
    runs = panel_of(captured)
    cost = judged(captured, runs[:1], 1).stats.cost_usd
    captured.budget = {"daily_usd": cost + Decimal("0.0001")}
    result = judged(captured, runs, 1)
    assert result.statuses == {"judged": 1, "deferred_budget": 2}
    assert result.stats.deferred == {"daily_budget": 2}


def test_panel_sends_nothing_of_a_denied_agent(captured: Pipeline, judge: SimulatedJudge) -> None:
    runs = panel_of(captured, 1)
    agent = only(captured.ask("SELECT agent_id FROM trajectory.trajectories WHERE run_id = %s", runs[0]))["agent_id"]
    captured.access = replace(captured.access, deny_agents=frozenset({agent}))
    assert judged(captured, runs, 2).statuses == {"not_eligible": 2}
    assert judge.calls()["received"] == 0


def test_panel_names_runs_without_a_trajectory(captured: Pipeline) -> None:
    runs = panel_of(captured, 1)
    assert judged(captured, [*runs, "run-nowhere"], 1).missing == ["run-nowhere"]
    now = datetime.now(UTC)
    assert estimate_panel([*runs, "run-nowhere"], 2, captured.storage, captured.judge, now=now).missing == [
        "run-nowhere"
    ]


def test_estimate_of_a_panel_asks_nobody(captured: Pipeline, judge: SimulatedJudge) -> None:
    runs = panel_of(captured)
    judged(captured, runs[:1], 1)
    calls = judge.calls()["received"]
    estimate = estimate_panel(runs, 2, captured.storage, captured.judge, now=datetime.now(UTC))
    assert (estimate.reused, estimate.judged.total(), estimate.calls) == (1, 5, 5)
    assert judge.calls()["received"] == calls
