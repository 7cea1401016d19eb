"""What must hold when all is over: both sinks equal to the source, and nothing left behind by anybody."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import psycopg

from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness
from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.crashes.processes import locks_and_sessions, wait_until
from trajectory_pipeline_tests.pipeline.materializing import Pipeline


def assert_complete(pipeline: Pipeline, hours: Sequence[datetime]) -> None:
    """The completeness check is green over these hours, each run is there once, and nothing is left over."""
    with psycopg.connect(pipeline.letta_url) as connection:
        # The comparison covers the whole history; other hours of the sample were not asked for.
        connection.execute(
            "DELETE FROM runs WHERE completed_at IS NULL OR completed_at < %s OR completed_at >= %s",
            [hours[0].replace(tzinfo=None), (hours[-1] + HOUR).replace(tzinfo=None)],
        )
        expected = connection.execute(
            "SELECT id FROM runs WHERE status IN ('completed', 'failed', 'cancelled') ORDER BY 1"
        ).fetchall()
    pipeline.capture(*hours)
    found = check_completeness(
        LettaSource(pipeline.letta_url),
        pipeline.storage,
        CompletenessScope(hours[0], stuck_after=timedelta(days=10_000)),
    )
    assert found.differences == ()
    assert found.runs == len(expected) > 0
    for hour in hours:
        assert reconcile_partition(hour, pipeline.storage).differences == ()
    for table in (TERMINAL_RUNS, TRAJECTORIES):
        rows = [row["run_id"] for hour in hours for row in pipeline.parquet(table, hour) if row["deleted_at"] is None]
        assert sorted(rows) == [row[0] for row in expected]
    assert pipeline.ask("SELECT * FROM trajectory.invalidations") == []
    assert_no_leftovers(pipeline)


def assert_no_leftovers(pipeline: Pipeline) -> None:
    """No temporary file, no staging table, no lock, no session in the middle of something."""
    assert [path for path in pipeline.folder.rglob("*") if path.is_file() and path.name != "part-0.parquet"] == []
    wait_until(lambda: locks_and_sessions(pipeline.database_url) == (0, 0), "locks and sessions to end")
    assert pipeline.ask("SELECT relname FROM pg_class WHERE relname = 'staged'") == []
