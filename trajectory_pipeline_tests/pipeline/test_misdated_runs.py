"""Runs that ended at an impossible time: what was captured stays, the check names them, and nothing fails."""

from datetime import timedelta

import pytest

from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.completeness import CompletenessReport, CompletenessScope, check_completeness
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, delete_run, some_run

HOUR = min((size, hour) for hour, size in sample_partitions().items() if size > 4)[1]
"""A partition with few runs."""
TIMES = {
    "2099": "completed_at = '2099-01-01'",
    "year 20000": "completed_at = '20000-01-01'",
    "infinite": "completed_at = 'infinity', created_at = 'infinity'",
    "before time": "completed_at = '-infinity', created_at = '-infinity'",
    "null": "completed_at = NULL, created_at = NULL",
}


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    pipeline.change_source("ALTER TABLE runs ALTER created_at DROP NOT NULL")
    pipeline.capture(HOUR)
    return pipeline


def check(pipeline: Pipeline) -> CompletenessReport:
    scope = CompletenessScope(HOUR, stuck_after=timedelta(hours=24))
    return check_completeness(LettaSource(pipeline.letta_url), pipeline.storage, scope)


def differences(pipeline: Pipeline) -> list[str]:
    return [each for each in check(pipeline).differences if "never captured" not in each]


@pytest.mark.parametrize("time", some_heavy(TIMES, "null", "before time"))
def test_captured_run_with_impossible_time_stays(captured: Pipeline, time: str) -> None:
    run_id, before = some_run(captured), captured.run_ids(HOUR)
    captured.change_source("CREATE TABLE saved AS TABLE runs", f"UPDATE runs SET {TIMES[time]} WHERE id = '{run_id}'")
    for _ in range(2):
        captured.capture(HOUR)
        assert captured.run_ids(HOUR) == before
        assert run_id in {row["run_id"] for row in captured.parquet(TERMINAL_RUNS, HOUR)}
        row = captured.trajectory(run_id)
        assert row is not None
        assert row["deleted_at"] is None
    misdated = check(captured).misdated
    assert run_id in (misdated.after_now if "2" in time else misdated.without_time)
    assert differences(captured) == []
    assert reconcile_partition(HOUR, captured.storage).differences == ()
    captured.change_source("UPDATE runs r SET completed_at = s.completed_at FROM saved s WHERE s.id = r.id")
    captured.capture(HOUR)
    assert run_id not in {*check(captured).misdated.after_now, *check(captured).misdated.without_time}
    assert captured.run_ids(HOUR) == before


def test_misdated_run_that_is_deleted_is_marked(captured: Pipeline) -> None:
    run_id = some_run(captured)
    captured.change_source(f"UPDATE runs SET completed_at = '2099-01-01' WHERE id = '{run_id}'")
    captured.capture(HOUR)
    delete_run(captured, run_id)
    captured.capture(HOUR)
    row = captured.trajectory(run_id)
    assert row is not None
    assert row["deleted_at"] is not None


@pytest.mark.parametrize(
    "time",
    some_heavy(
        ["0044-03-15 BC", "0001-01-01", "9999-12-31 23:59:59", "20000-01-01", "294000-01-01"],
        "0044-03-15 BC",
        "294000-01-01",
    ),
)
def test_years_that_python_lacks_fail_nothing(captured: Pipeline, time: str) -> None:
    run_id = some_run(captured)
    captured.change_source(
        f"UPDATE runs SET completed_at = '{time}', created_at = '{time}' WHERE id = '{run_id}'",
        f"UPDATE runs SET created_at = '{time}' WHERE status = 'running'",
    )
    for _ in range(2):
        materialize_terminal_runs(HOUR, LettaSource(captured.letta_url), captured.storage, start=HOUR)
        captured.convert(HOUR)
    report = check(captured)
    assert differences(captured) == []
    assert (run_id in report.misdated.after_now) == (not time.startswith("00"))
    assert report.before_start > 0
