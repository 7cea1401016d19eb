"""The contract of the refinement sensor: what lacks a verdict is requested, if quiet, within horizon and budget.

Real databases, a clock that stands still, no call to any judge: the sensor only looks at what is stored.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.hours import HOUR, key_of
from trajectory_pipeline.orchestration.assets import CAPTURE, REFINEMENT
from trajectory_pipeline.orchestration.partitions import hours_of_tags
from trajectory_pipeline.orchestration.refinement_sensor import build_refinement_sensor
from trajectory_pipeline.orchestration.resources import PipelineResource
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.simulated_judge import SimulatedJudge
from trajectory_pipeline.sinks.verdicts import GIVE_UP_AFTER
from trajectory_pipeline_tests.conftest import with_judge

from .conftest import BUSY, NOW
from .running import add_run, ask, do, run


@pytest.fixture
def ready(captured: Settings, judge: SimulatedJudge) -> Settings:
    """Eight hours of trajectories, captured an hour ago, none of them judged; and a judge."""
    return with_judge(captured, judge)


def tick(settings: Settings, instance: dg.DagsterInstance, now: datetime = NOW) -> "dg.SensorExecutionData":  # type: ignore[name-defined]
    context = dg.build_sensor_context(
        instance=instance,
        repository_def=build_defs(settings).get_repository_def(),
        resources={"pipeline": PipelineResource(settings)},
    )
    return build_refinement_sensor(settings, lambda: now).evaluate_tick(context)


def requested(result: "dg.SensorExecutionData") -> list[datetime]:  # type: ignore[name-defined]
    ranges = [hours for request in result.run_requests if (hours := hours_of_tags(request.tags))]
    return sorted(first + number * HOUR for first, last in ranges for number in range(round((last - first) / HOUR) + 1))


def add_verdicts(
    settings: Settings, status: str, *, attempts: int = 1, age: str = "0 s", hours: list[datetime] = BUSY
) -> None:
    """Store a verdict on each trajectory of these hours, last changed so long ago by the database's clock."""
    policy = PipelineResource(settings).policy.policy_id
    keys = ", ".join(f"'{key_of(hour)}'" for hour in hours)
    do(
        str(settings.database_url),
        "INSERT INTO trajectory.verdicts (run_id, verdict_key, policy_id, partition_key, content_digest,"
        " verdict_status, error_class, simulated, attempts, created_at, updated_at)"
        f" SELECT run_id, 'key', '{policy}', partition_key, content_digest, '{status}', 'timeout', true, {attempts},"
        f" now() - interval '{age}', now() - interval '{age}' FROM trajectory.trajectories"
        f" WHERE partition_key IN ({keys})",
    )


# ---- what is requested ----------------------------------------------------------------------------------------------


def test_trajectories_without_verdicts_are_requested_and_nothing_else_of_them(
    ready: Settings, instance: dg.DagsterInstance
) -> None:
    result = tick(ready, instance)
    assert requested(result) == BUSY
    # Eight hours, in batches of six.
    assert len(result.run_requests) == 2
    for request in result.run_requests:
        assert request.asset_selection == REFINEMENT
        assert request.tags["trajectory/reason"] == "verdicts are missing"


def test_what_is_judged_is_not_requested_any_more(ready: Settings, instance: dg.DagsterInstance) -> None:
    assert run(ready, instance, BUSY[6], assets=["refined_outcomes"]).success
    assert requested(tick(ready, instance)) == [*BUSY[:6], BUSY[7]]


@pytest.mark.parametrize("status", ["judged", "insufficient_evidence", "not_eligible", "quarantined"])
def test_a_final_verdict_of_any_kind_is_one(ready: Settings, instance: dg.DagsterInstance, status: str) -> None:
    add_verdicts(ready, status, age="30 days")
    result = tick(ready, instance)
    assert (result.run_requests, result.skip_message) == ([], "0 partitions lack verdicts.")


def test_a_verdict_under_another_policy_is_none(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_verdicts(ready, "judged")
    other = ready.model_copy(update={"judge_model": "simulated-judge-obedient"})
    assert requested(tick(other, instance)) == BUSY


def test_a_verdict_on_former_content_is_none(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_verdicts(ready, "judged")
    do(
        str(ready.database_url),
        f"UPDATE trajectory.trajectories SET content_digest = 'new' WHERE partition_key = '{key_of(BUSY[3])}'",
    )
    assert requested(tick(ready, instance)) == [BUSY[3]]


def test_what_was_deleted_at_the_source_is_not_judged(ready: Settings, instance: dg.DagsterInstance) -> None:
    do(str(ready.database_url), "UPDATE trajectory.trajectories SET deleted_at = now()")
    assert requested(tick(ready, instance)) == []


# ---- when it is left alone ------------------------------------------------------------------------------------------


def test_without_a_judge_the_sensor_says_what_to_set(captured: Settings, instance: dg.DagsterInstance) -> None:
    result = tick(captured, instance)
    assert result.run_requests == []
    assert str(result.skip_message).startswith("No judge is configured: set TRAJECTORY_JUDGE_MODEL")
    described = build_refinement_sensor(captured).description
    assert "**Requests nothing.** No judge is configured" in str(described)


def test_a_trajectory_that_just_changed_is_left_until_it_is_quiet(
    ready: Settings, instance: dg.DagsterInstance
) -> None:
    do(
        str(ready.database_url),
        f"UPDATE trajectory.trajectories SET updated_at = '{NOW - timedelta(minutes=5)}'"
        f" WHERE partition_key = '{key_of(BUSY[1])}'",
        f"UPDATE trajectory.trajectories SET updated_at = '{NOW - timedelta(minutes=4, seconds=59)}'"
        f" WHERE partition_key = '{key_of(BUSY[2])}'",
    )
    assert requested(tick(ready, instance)) == [BUSY[0], BUSY[1], *BUSY[3:]]
    assert requested(tick(ready, instance, NOW + timedelta(seconds=1))) == BUSY


def test_runs_older_than_the_horizon_are_left_to_an_explicit_backfill(
    ready: Settings, instance: dg.DagsterInstance
) -> None:
    do(
        str(ready.database_url),
        "UPDATE trajectory.trajectories SET end_time = end_time - interval '8 days'"
        f" WHERE partition_key < '{key_of(BUSY[5])}'",
    )
    assert requested(tick(ready, instance)) == BUSY[5:]
    assert requested(tick(ready.model_copy(update={"horizon_days": 30}), instance)) == BUSY


def test_a_spent_budget_leaves_the_rest_for_tomorrow(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_cost(ready, "4.99", NOW)
    add_cost(ready, "100", NOW - timedelta(days=1))
    assert requested(tick(ready, instance)) == BUSY
    add_cost(ready, "0.01", NOW.replace(hour=0, minute=0))
    result = tick(ready, instance)
    assert result.run_requests == []
    assert result.skip_message == (
        "5.00 dollars were spent today (UTC), the budget is 5 (TRAJECTORY_DAILY_BUDGET_USD): the rest is judged"
        " tomorrow."
    )
    assert requested(tick(ready, instance, NOW + timedelta(days=1))) == BUSY


def add_cost(settings: Settings, dollars: str, at: datetime) -> None:
    do(
        str(settings.database_url),
        "INSERT INTO trajectory.verdict_attempts (attempt_id, run_id, verdict_key, policy_id, model, base_url,"
        " started_at, prompt_characters, result, cost_usd) SELECT gen_random_uuid()::text, 'run-1', 'key', 'policy',"
        f" 'm', 'u', '{at}', 1, 'answered', {dollars}",
    )


BACK_OFF: list[Mapping[str, Any]] = [
    {"attempts": 1, "wait": "14 minutes", "due": False},
    {"attempts": 1, "wait": "16 minutes", "due": True},
    {"attempts": 2, "wait": "29 minutes", "due": False},
    {"attempts": 2, "wait": "31 minutes", "due": True},
    {"attempts": 5, "wait": "239 minutes", "due": False},
    {"attempts": 5, "wait": "241 minutes", "due": True},
    {"attempts": GIVE_UP_AFTER - 1, "wait": "400 days", "due": True},
    {"attempts": GIVE_UP_AFTER, "wait": "400 days", "due": False},
]


@pytest.mark.parametrize("case", BACK_OFF, ids=lambda case: f"{case['attempts']} attempts, {case['wait']}")
def test_a_failed_verdict_is_tried_again_later_and_later_and_then_given_up(
    ready: Settings, instance: dg.DagsterInstance, case: Mapping[str, Any]
) -> None:
    add_verdicts(ready, "failed", attempts=case["attempts"], age=case["wait"])
    assert requested(tick(ready, instance)) == (BUSY if case["due"] else [])


def test_a_partition_under_way_is_not_requested_again(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": key_of(BUSY[0])}, REFINEMENT)
    add_run(instance, dg.DagsterRunStatus.QUEUED, {"dagster/partition": key_of(BUSY[1])}, CAPTURE)
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": key_of(BUSY[2])})
    assert requested(tick(ready, instance)) == BUSY[3:]


def test_what_is_no_partition_any_more_fails_no_tick(ready: Settings, instance: dg.DagsterInstance) -> None:
    """TRAJECTORY_START was moved: Dagster would refuse the whole tick for one key that it does not know."""
    later = ready.model_copy(update={"start": BUSY[4]})
    assert requested(tick(later, instance)) == BUSY[4:]


def test_a_database_that_is_not_migrated_is_a_sentence(
    ready: Settings, instance: dg.DagsterInstance, empty_database: str
) -> None:
    result = tick(ready.model_copy(update={"database_url": empty_database}), instance)
    assert result.run_requests == []
    assert str(result.skip_message).endswith("run `trajectory-pipeline migrate`.")


def test_looking_for_missing_verdicts_changes_nothing(ready: Settings, instance: dg.DagsterInstance) -> None:
    tick(ready, instance)
    assert ask(str(ready.database_url), "SELECT count(*) FROM trajectory.policies") == [(0,)]
