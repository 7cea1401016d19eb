"""The contract of the refinement sensor: what lacks a verdict is requested, if quiet, within horizon and budget.

Real databases, a clock that stands still, no call to any judge: the sensor only looks at what is stored.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from trajectory_pipeline.defs.asset_keys import CAPTURE, REFINEMENT
from trajectory_pipeline.defs.partitions import hours_of_tags
from trajectory_pipeline.defs.sensors import refinement
from trajectory_pipeline.defs.sensors.refinement import build_refinement_sensor
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.pipeline.configured_models import judge_config
from trajectory_pipeline.pipeline.judge import JudgingRun
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdict_status import judging_candidates
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import change_settings, make_settings, with_judge
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import add_run, execute, query, requested_hours, run, tick_sensor


@pytest.fixture
def ready(captured: Settings, judge: SimulatedJudge) -> Settings:
    """Eight hours of trajectories, captured an hour ago, none of them judged; and a judge."""
    return with_judge(captured, judge)


def tick(settings: Settings, instance: dg.DagsterInstance, now: datetime = NOW) -> SensorExecutionData:
    return tick_sensor(build_refinement_sensor(settings, lambda: now), settings, instance)


def add_verdicts(settings: Settings, status: str, **values: Any) -> None:
    """Store a verdict on each trajectory of these hours under the current policy, and publish them."""
    judge = judge_config(settings.judge, settings.privacy, settings.budget)
    policy_id = judge.policy.policy_id
    with open_verdicts(TrajectoryDatabase(str(settings.storage.database_url))) as store:
        found = judging_candidates(store.connection, policy_id, [partition_key(hour) for hour in BUSY], "newest")
        store.save_verdicts(
            [
                {
                    "run_id": one.run_id,
                    "verdict_key": one.verdict_key,
                    "policy_id": policy_id,
                    "partition_key": one.partition_key,
                    "content_digest": one.content_digest,
                    "verdict_status": status,
                    "simulated": True,
                    "shown_run_ids": [one.run_id],
                    "shown_digests": [one.content_digest],
                    "erased": False,
                    **values,
                }
                for one in found
            ],
            "worker",
        )
    storage = Storage.at(settings.storage.parquet_location, str(settings.storage.database_url))
    JudgingRun(storage, judge, publish_only=True).judge_partitions(BUSY)


# ---- what is requested ----------------------------------------------------------------------------------------------


def test_refinement_requests_trajectories_without_verdicts(ready: Settings, instance: dg.DagsterInstance) -> None:
    result = tick(ready, instance)
    assert requested_hours(result) == BUSY
    # Eight hours, in batches of six.
    assert len(result.run_requests) == 2
    for request in result.run_requests:
        assert request.asset_selection == REFINEMENT
        assert request.tags["trajectory/reason"] == "verdicts are missing"


def test_refinement_skips_judged_partitions(ready: Settings, instance: dg.DagsterInstance) -> None:
    assert run(ready, instance, BUSY[6], assets=["refined_outcomes"]).success
    assert requested_hours(tick(ready, instance)) == [*BUSY[:6], BUSY[7]]


@pytest.mark.parametrize("status", ["judged", "insufficient_evidence", "not_eligible", "quarantined"])
def test_refinement_skips_final_verdicts(ready: Settings, instance: dg.DagsterInstance, status: str) -> None:
    add_verdicts(ready, status)
    result = tick(ready, instance)
    assert (result.run_requests, result.skip_message) == (
        [],
        "10 partitions compared, 0 with a file that lacks stored verdicts, 0 without verdicts.",
    )


def test_refinement_requests_verdicts_of_another_policy(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_verdicts(ready, "judged")
    other = change_settings(ready, judge__model="simulated-judge-obedient")
    assert requested_hours(tick(other, instance)) == BUSY


def test_refinement_requests_verdicts_on_former_content(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_verdicts(ready, "judged")
    execute(
        str(ready.storage.database_url),
        f"UPDATE trajectory.trajectories SET content_digest = 'new' WHERE partition_key = '{partition_key(BUSY[3])}'",
    )
    assert requested_hours(tick(ready, instance)) == [BUSY[3]]


def test_refinement_skips_deleted_runs(ready: Settings, instance: dg.DagsterInstance) -> None:
    execute(str(ready.storage.database_url), "UPDATE trajectory.trajectories SET deleted_at = now()")
    assert requested_hours(tick(ready, instance)) == []


def test_refinement_publishes_stored_verdicts_without_a_call(ready: Settings, instance: dg.DagsterInstance) -> None:
    """The worker was killed between the last verdict and the file, and the budget of the day is spent."""
    add_verdicts(ready, "judged")
    execute(str(ready.storage.database_url), "DELETE FROM trajectory.partitions WHERE asset = 'refined_outcomes'")
    spend(ready, "100", NOW)
    result = tick(ready, instance)
    assert requested_hours(result) == BUSY
    assert {request.tags["trajectory/publish_only"] for request in result.run_requests} == {"true"}
    for request in result.run_requests:
        assert run(ready, instance, *hours_of_tags(request.tags), tags=request.tags).success
    assert requested_hours(tick(ready, instance)) == []


def test_refinement_compares_files_older_than_the_lookback_in_turn(
    ready: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "OLDER_PER_TICK", 5)
    add_verdicts(ready, "judged")
    execute(str(ready.storage.database_url), "DELETE FROM trajectory.partitions WHERE asset = 'refined_outcomes'")
    settings = change_settings(ready, capture__start=BUSY[0] - 2 * HOUR, judge__lookback_days=0)
    sensor, cursor, requested = build_refinement_sensor(settings, lambda: NOW), None, []
    for _ in range(4):
        result = tick_sensor(sensor, settings, instance, cursor)
        cursor = result.cursor
        requested.append(requested_hours(result))
    assert requested == [BUSY[:3], BUSY[3:], [], BUSY[:3]]


# ---- when it is left alone ------------------------------------------------------------------------------------------


def test_refinement_without_judge_starts_no_embedded_server(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    settings = make_settings(storage__data_folder=tmp_path)
    assert str(tick(settings, instance).skip_message).startswith("No judge is configured")
    assert list(tmp_path.iterdir()) == []


def test_refinement_without_judge_says_what_to_set(captured: Settings, instance: dg.DagsterInstance) -> None:
    result = tick(captured, instance)
    assert result.run_requests == []
    assert str(result.skip_message).startswith("No judge is configured: set TRAJECTORY_JUDGE_MODEL")
    described = build_refinement_sensor(captured).description
    assert "**Requests nothing.** No judge is configured" in str(described)


def test_refinement_waits_for_the_settle_minutes(ready: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(ready.storage.database_url),
        f"UPDATE trajectory.trajectories SET updated_at = '{NOW - timedelta(minutes=5)}'"
        f" WHERE partition_key = '{partition_key(BUSY[1])}'",
        f"UPDATE trajectory.trajectories SET updated_at = '{NOW - timedelta(minutes=4, seconds=59)}'"
        f" WHERE partition_key = '{partition_key(BUSY[2])}'",
    )
    assert requested_hours(tick(ready, instance)) == [BUSY[0], BUSY[1], *BUSY[3:]]
    assert requested_hours(tick(ready, instance, NOW + timedelta(seconds=1))) == BUSY


def test_refinement_skips_runs_older_than_the_lookback(ready: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(ready.storage.database_url),
        "UPDATE trajectory.trajectories SET end_time = end_time - interval '8 days'"
        f" WHERE partition_key < '{partition_key(BUSY[5])}'",
    )
    assert requested_hours(tick(ready, instance)) == BUSY[5:]
    assert requested_hours(tick(change_settings(ready, judge__lookback_days=30), instance)) == BUSY


def test_refinement_requests_a_chain_whose_earlier_run_changed(ready: Settings, instance: dg.DagsterInstance) -> None:
    (first, second), *_ = query(
        str(ready.storage.database_url),
        "SELECT a.run_id, b.run_id FROM trajectory.trajectories a JOIN trajectory.trajectories b"
        " ON b.continues_run_id = a.run_id ORDER BY 1 LIMIT 1",
    )
    add_verdicts(ready, "judged")
    execute(
        str(ready.storage.database_url),
        f"UPDATE trajectory.trajectories SET content_digest = 'new' WHERE run_id = '{first}'",
        f"UPDATE trajectory.trajectories SET end_time = end_time - interval '30 days' WHERE run_id = '{first}'",
    )
    ((key,),) = query(
        str(ready.storage.database_url), f"SELECT partition_key FROM trajectory.trajectories WHERE run_id = '{second}'"
    )
    assert [partition_key(hour) for hour in requested_hours(tick(ready, instance))] == [key]


def test_refinement_skips_an_inconsistent_partition(ready: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(ready.storage.database_url),
        "UPDATE trajectory.partitions SET result = 'inconsistent' WHERE asset = 'trajectories'"
        f" AND partition_key = '{partition_key(BUSY[2])}'",
    )
    assert requested_hours(tick(ready, instance)) == [*BUSY[:2], *BUSY[3:]]


# ---- money ----------------------------------------------------------------------------------------------------------


def spend(settings: Settings, dollars: str, at: datetime, *, scope: str = "day", suffix: str = "") -> None:
    execute(
        str(settings.storage.database_url),
        "INSERT INTO trajectory.spend_totals (scope, scope_key, calls, reserved_usd, spent_usd, reserved_tokens,"
        f" spent_tokens, updated_at) VALUES ('{scope}', '{at:%Y-%m-%d}{suffix}', 1, 0.25, {dollars}, 0, 0, now())",
    )


def test_refinement_with_spent_budget_waits_until_tomorrow(ready: Settings, instance: dg.DagsterInstance) -> None:
    spend(ready, "100", NOW - timedelta(days=1))
    assert requested_hours(tick(ready, instance)) == BUSY
    # What is reserved counts too, and so does what one call may cost at most.
    spend(ready, "4.74", NOW)
    result = tick(ready, instance)
    assert result.run_requests == []
    assert result.skip_message == (
        "Today (UTC) 4.7400 USD and 0 tokens are spent, and 0.2500 USD and 0 tokens are reserved: the budget of a day"
        " (UTC) of 5 USD (TRAJECTORY_DAILY_BUDGET_USD) has no headroom left for it. The rest is judged when the"
        " budget allows: tomorrow, or with a higher cap."
    )
    assert requested_hours(tick(ready, instance, NOW + timedelta(days=1))) == BUSY
    raised = change_settings(ready, budget__daily_usd=Decimal("5.1"))
    assert requested_hours(tick(raised, instance)) == BUSY


def test_refinement_requests_deferred_verdicts_when_they_fit(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_verdicts(ready, "deferred_budget", deferred_usd=Decimal("0.5"), deferred_tokens=1000)
    assert requested_hours(tick(ready, instance)) == BUSY
    spend(ready, "4.5", NOW)
    assert requested_hours(tick(ready, instance)) == []
    assert requested_hours(tick(change_settings(ready, budget__daily_usd=Decimal(6)), instance)) == BUSY


def test_refinement_skips_an_organization_with_spent_budget(ready: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(ready.storage.database_url),
        "UPDATE trajectory.trajectories SET organization_id ="
        f" CASE WHEN partition_key < '{partition_key(BUSY[5])}' THEN 'org-frugal' ELSE 'org-rich' END",
    )
    capped = change_settings(ready, budget__organization_daily_usd=Decimal(1))
    assert requested_hours(tick(capped, instance)) == BUSY
    spend(capped, "0.75", NOW, scope="organization", suffix=" org-frugal")
    assert requested_hours(tick(capped, instance)) == BUSY[5:]
    assert requested_hours(tick(ready, instance)) == BUSY


def test_refinement_with_unpriced_model_says_what_to_set(ready: Settings, instance: dg.DagsterInstance) -> None:
    unpriced = change_settings(ready, judge__model="some-local-model")
    message = str(tick(unpriced, instance).skip_message)
    assert message.startswith("No price is known for the model some-local-model")
    assert "TRAJECTORY_ALLOW_UNPRICED=true" in message
    allowed = change_settings(unpriced, budget__allow_unpriced=True, budget__daily_tokens=10**9)
    assert requested_hours(tick(allowed, instance)) == BUSY
    spend(allowed, "0", NOW)
    execute(str(ready.storage.database_url), "UPDATE trajectory.spend_totals SET spent_tokens = 1000000")
    assert requested_hours(tick(allowed, instance)) == BUSY
    assert requested_hours(tick(change_settings(allowed, budget__daily_tokens=1_000_100), instance)) == []


# ---- failures -------------------------------------------------------------------------------------------------------


def test_refinement_retries_a_failed_verdict_when_due(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_verdicts(ready, "failed", error_class="timeout")
    ((due,),) = query(
        str(ready.storage.database_url),
        "SELECT DISTINCT date_trunc('second', next_attempt_at) FROM trajectory.verdicts",
    )
    hours = (due - NOW) + timedelta(seconds=1)
    longer = change_settings(ready, judge__lookback_days=10_000)
    assert requested_hours(tick(longer, instance, NOW + hours - timedelta(seconds=2))) == []
    assert requested_hours(tick(longer, instance, NOW + hours)) == BUSY


def test_refinement_reports_abandoned_verdicts(ready: Settings, instance: dg.DagsterInstance) -> None:
    impatient = change_settings(ready, judge__give_up_after=1, judge__lookback_days=10_000)
    add_verdicts(ready, "failed", error_class="timeout")
    result = tick(impatient, instance, NOW + timedelta(days=1000))
    assert result.run_requests == []
    ((verdicts,),) = query(str(ready.storage.database_url), "SELECT count(*) FROM trajectory.verdicts")
    assert result.skip_message == (
        f"{1000 * 24 + 10} partitions compared, 0 with a file that lacks stored verdicts, 0 without verdicts."
        f" {verdicts} verdicts abandoned: see the check no_abandoned_verdicts."
    )


# ---- in progress ----------------------------------------------------------------------------------------------------


def test_refinement_skips_a_partition_in_progress(ready: Settings, instance: dg.DagsterInstance) -> None:
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": partition_key(BUSY[0])}, REFINEMENT)
    add_run(instance, dg.DagsterRunStatus.QUEUED, {"dagster/partition": partition_key(BUSY[1])}, CAPTURE)
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": partition_key(BUSY[2])})
    assert requested_hours(tick(ready, instance)) == BUSY[3:]


def test_refinement_skips_hours_before_a_moved_start(ready: Settings, instance: dg.DagsterInstance) -> None:
    """TRAJECTORY_START was moved: Dagster would refuse the whole tick for one key that it does not know."""
    later = change_settings(ready, capture__start=BUSY[4])
    assert requested_hours(tick(later, instance)) == BUSY[4:]


def test_refinement_with_unmigrated_database_says_to_migrate(
    ready: Settings, instance: dg.DagsterInstance, empty_database: str
) -> None:
    result = tick(change_settings(ready, storage__database_url=empty_database), instance)
    assert result.run_requests == []
    assert str(result.skip_message).endswith("run `trajectory-pipeline migrate`.")


def test_refinement_tick_writes_nothing(ready: Settings, instance: dg.DagsterInstance) -> None:
    tick(ready, instance)
    assert query(str(ready.storage.database_url), "SELECT count(*) FROM trajectory.policies") == [(0,)]
