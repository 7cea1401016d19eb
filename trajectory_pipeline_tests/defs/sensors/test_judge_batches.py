"""The contract of the batch sensor: its ticks say what was seen, and a batch that ended is collected and published."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from trajectory_pipeline.defs.assets.refined_outcomes import COLLECT_TAG
from trajectory_pipeline.defs.sensors.judge_batches import build_judge_batch_sensor
from trajectory_pipeline.defs.sensors.refinement import build_refinement_sensor
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.judge.client.batch_api import BatchApi, BatchApiError
from trajectory_pipeline.schema.enums import ErrorClass, JudgeMode
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings, make_settings, with_judge
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import execute, query, requested_hours, run, tick_sensor


@pytest.fixture
def ready(captured: Settings, judge: SimulatedJudge) -> Settings:
    """Eight hours of trajectories, none of them judged; and a judge that is asked in batches."""
    return change_settings(with_judge(captured, judge), judge__mode=JudgeMode.BATCH)


def tick(settings: Settings, instance: dg.DagsterInstance) -> SensorExecutionData:
    return tick_sensor(build_judge_batch_sensor(settings), settings, instance)


def judged(settings: Settings, instance: dg.DagsterInstance, last: datetime = BUSY[-1], **options: Any) -> bool:
    return run(settings, instance, BUSY[0], last, assets=["refined_outcomes"], **options).success


def statuses(settings: Settings) -> set[str]:
    url = str(settings.storage.database_url)
    return {row[0] for row in query(url, "SELECT DISTINCT verdict_status FROM trajectory.verdicts")}


def test_tick_without_batches_says_so(ready: Settings, instance: dg.DagsterInstance) -> None:
    assert tick(ready, instance).skip_message == "No batch runs at the judge's provider."
    disabled = tick(make_settings(), instance).skip_message
    assert disabled is not None
    assert "No judge is configured" in disabled


def test_ticks_follow_a_batch_to_its_published_verdicts(
    ready: Settings, instance: dg.DagsterInstance, judge: SimulatedJudge
) -> None:
    judge.plan_batches({"seconds": 5.0})
    assert judged(ready, instance)
    assert "submitted" in statuses(ready)
    seen = tick(ready, instance).skip_message
    assert seen is not None
    assert "in_progress (0 of " in seen
    while not (ended := tick(ready, instance)).run_requests:
        pass
    # One of them was judged online, to learn which form of a request is accepted: its hour may have no other.
    assert len(set(BUSY) - set(requested_hours(ended))) <= 1
    assert all(request.tags[COLLECT_TAG] == "true" for request in ended.run_requests)
    received = judge.calls()["received"]
    assert judged(ready, instance, tags={COLLECT_TAG: "true"})
    assert statuses(ready) <= {"judged", "insufficient_evidence", "not_eligible"}
    assert judge.calls()["received"] == received  # what the poll let the server work on
    assert tick(ready, instance).skip_message == "No batch runs at the judge's provider."


def test_batch_of_hours_that_are_no_partitions_any_more_is_collected(
    ready: Settings, instance: dg.DagsterInstance, judge: SimulatedJudge
) -> None:
    assert judged(ready, instance)
    moved = change_settings(ready, capture__start=BUSY[-1] + timedelta(hours=1))
    collected = tick(moved, instance)
    assert not collected.run_requests
    assert collected.skip_message is not None
    assert "is collected (completed)" in collected.skip_message
    assert statuses(ready) <= {"judged", "insufficient_evidence", "not_eligible"}
    assert tick(moved, instance).skip_message == "No batch runs at the judge's provider."


def test_hours_before_a_start_that_moved_are_not_requested(
    ready: Settings, instance: dg.DagsterInstance, judge: SimulatedJudge
) -> None:
    assert judged(ready, instance)
    moved = change_settings(ready, capture__start=BUSY[-2])
    requested = requested_hours(tick(moved, instance))
    assert requested
    assert set(requested) <= set(BUSY[-2:])


def test_collection_that_failed_is_requested_after_a_pause(
    ready: Settings, instance: dg.DagsterInstance, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> bool:
        raise BatchApiError("gone", ErrorClass.CONNECTION, is_refusal=False)

    assert judged(ready, instance)
    assert tick(ready, instance).run_requests
    with monkeypatch.context() as patched:
        patched.setattr(BatchApi, "download", fail)
        assert not judged(ready, instance, tags={COLLECT_TAG: "true"})
    paused = tick(ready, instance)
    assert not paused.run_requests
    assert paused.skip_message is not None
    assert "failed in the last 10 minutes" in paused.skip_message
    later = build_judge_batch_sensor(ready, clock=lambda: datetime.now(UTC) + timedelta(minutes=11))
    assert tick_sensor(later, ready, instance).run_requests


def test_refinement_waits_between_two_batches(ready: Settings, instance: dg.DagsterInstance) -> None:
    sensor = build_refinement_sensor(ready, lambda: NOW)
    assert tick_sensor(sensor, ready, instance).run_requests
    assert judged(ready, instance, BUSY[0])
    begun = NOW - timedelta(minutes=20)
    execute(str(ready.storage.database_url), f"UPDATE trajectory.judge_batches SET created_at = '{begun}'")
    waiting = tick_sensor(sensor, ready, instance)
    assert not waiting.run_requests
    assert waiting.skip_message is not None
    assert "The next batch is submitted in 40 minutes." in waiting.skip_message
    later = build_refinement_sensor(ready, lambda: NOW + timedelta(minutes=41))
    assert tick_sensor(later, ready, instance).run_requests
