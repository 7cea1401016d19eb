"""The completeness check passes if all sides are equal, and names each difference with its partition."""

from datetime import timedelta
from pathlib import Path

import psycopg

from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.completeness import CompletenessReport, CompletenessScope, check_completeness
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.letta_sample import sample_counts, sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

HOURS = list(sample_partitions())


def check(pipeline: Pipeline, start: int = 0, stuck_hours: int = 24) -> CompletenessReport:
    return check_completeness(
        LettaSource(pipeline.letta_url),
        pipeline.storage,
        CompletenessScope(HOURS[start], stuck_after=timedelta(hours=stuck_hours)),
    )


def change(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def test_completeness_reports_uncaptured_partitions_by_name(pipeline: Pipeline) -> None:
    found = check(pipeline)
    assert len(found.differences) == found.partitions == len(HOURS)
    assert found.runs == sample_counts().terminal_runs
    assert f"{partition_key(HOURS[0])}: 3 terminal runs in the source, never captured" in found.differences


def test_completeness_reports_each_kind_of_difference(pipeline: Pipeline) -> None:
    pipeline.capture(*HOURS)
    assert check(pipeline).differences == ()

    busy = HOURS[3]
    change(pipeline.letta_url, f"UPDATE steps SET feedback = 'positive' WHERE run_id = '{_run_of(pipeline, HOURS[1])}'")
    change(pipeline.database_url, f"DELETE FROM trajectory.trajectories WHERE run_id = '{_run_of(pipeline, busy)}'")
    Path(pipeline.store.path_of(TRAJECTORIES, HOURS[5])).unlink()
    change(pipeline.letta_url, f"UPDATE steps SET feedback = 'negative' WHERE run_id = '{_run_of(pipeline, HOURS[7])}'")
    pipeline.read(HOURS[7])
    differences = check(pipeline).differences
    assert [words.split(": ")[0] for words in differences] == [partition_key(HOURS[number]) for number in (1, 3, 5, 7)]
    assert "the source changed since" in differences[0]
    assert "in Postgres" in differences[1]
    assert "no file in Parquet" in differences[2]
    assert "its trajectories were not made of its raw rows" in differences[3]


def test_completeness_captured_deletions_are_no_difference(pipeline: Pipeline) -> None:
    pipeline.capture(*HOURS)
    gone = _run_of(pipeline, HOURS[2])
    for statement in (
        "DELETE FROM messages WHERE run_id",
        "DELETE FROM steps WHERE run_id",
        "DELETE FROM runs WHERE id",
    ):
        change(pipeline.letta_url, f"{statement} = '{gone}'")
    assert [words.split(": ")[0] for words in check(pipeline).differences] == [partition_key(HOURS[2])]
    pipeline.capture(HOURS[2])
    assert check(pipeline).differences == ()


def test_completeness_reports_early_and_stuck_runs(pipeline: Pipeline) -> None:
    found = check(pipeline, start=1)
    assert found.before_start == sample_partitions()[HOURS[0]]
    with psycopg.connect(pipeline.letta_url) as connection:
        never = connection.execute(
            "SELECT id FROM runs WHERE status IN ('created', 'running') ORDER BY created_at, id"
        ).fetchall()
    assert [run.run_id for run in found.stuck] == [row[0] for row in never]
    assert all(run.age > timedelta(hours=24) for run in found.stuck)
    assert check(pipeline, stuck_hours=24 * 365 * 100).stuck == ()


def _run_of(pipeline: Pipeline, hour: object) -> str:
    with psycopg.connect(pipeline.letta_url) as connection:
        row = connection.execute(
            "SELECT r.id FROM runs r JOIN steps s ON s.run_id = r.id"
            " WHERE date_trunc('hour', r.completed_at) = %s::timestamptz AT TIME ZONE 'UTC' ORDER BY 1 LIMIT 1",
            [hour],
        ).fetchone()
    assert row is not None
    return str(row[0])
