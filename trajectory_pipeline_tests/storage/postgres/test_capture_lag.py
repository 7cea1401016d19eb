"""The contract of the capture lag: from a run's end to its row, of runs that are captured for the first time only."""

from datetime import UTC, datetime, timedelta

from trajectory_pipeline.storage.postgres.capture_lag import lag_since
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

SIZE, HOUR = min((size, hour) for hour, size in sample_partitions().items() if size > 2)


def test_capture_lag_of_known_runs_is_none(pipeline: Pipeline) -> None:
    (first,) = pipeline.capture(HOUR)
    assert first.lag is not None
    assert first.lag.runs == SIZE
    age = datetime.now(UTC) - HOUR
    assert age - timedelta(hours=1) <= first.lag.median <= first.lag.longest <= age
    pipeline.change_source("UPDATE steps SET feedback = 'positive'")
    (again,) = pipeline.capture(HOUR)
    assert again.lag is None


def test_lag_since_covers_recent_runs_only(pipeline: Pipeline) -> None:
    pipeline.change_source("UPDATE runs SET completed_at = completed_at - interval '400 days'")
    pipeline.capture(HOUR - timedelta(days=400))
    assert lag_since(pipeline.database, timedelta(days=1)) is None
    pipeline.do("UPDATE trajectory.trajectories SET end_time = now() - interval '1 hour', first_captured_at = now()")
    lag = lag_since(pipeline.database, timedelta(days=1))
    assert lag is not None
    assert (lag.runs, lag.median) == (SIZE, timedelta(hours=1))
