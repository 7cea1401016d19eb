"""Reconciliation counts the sinks themselves, so that it reports whatever one of them lost or changed."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.reconcile_counts import _compare, reconcile_partition
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

HOUR = min(sample_partitions(), key=lambda hour: (abs(sample_partitions()[hour] - 6), hour))
KEY = partition_key(HOUR)


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    pipeline.capture(HOUR)
    assert differences(pipeline) == ()
    return pipeline


def differences(pipeline: Pipeline) -> tuple[str, ...]:
    return reconcile_partition(HOUR, pipeline.storage).differences


def rewrite(pipeline: Pipeline, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pa.Table.from_batches(pipeline.store.read(TRAJECTORIES, HOUR))
    pipeline.store.write(TRAJECTORIES, HOUR, change(table).to_batches())


def test_reconcile_reports_row_missing_in_postgres(captured: Pipeline) -> None:
    run_id = min(captured.run_ids(HOUR))
    captured.do(f"DELETE FROM trajectory.trajectories WHERE run_id = '{run_id}'")
    runs = sample_partitions()[HOUR]
    found = differences(captured)
    assert f"{KEY}: {runs} runs in the raw rows, {runs - 1} in Postgres" in found
    assert f"{KEY}: 1 run(s) in Parquet and not in Postgres, first {run_id}" in found


def test_reconcile_names_the_first_runs_of_a_difference() -> None:
    [sentence] = _compare(KEY, {f"run-{number}": "" for number in range(7)}, {})
    assert sentence.endswith(": 7 run(s) in Parquet and not in Postgres, first run-0, run-1, run-2, run-3, run-4")


def test_reconcile_reports_row_missing_in_parquet(captured: Pipeline) -> None:
    rewrite(captured, lambda table: table.slice(1))
    assert any(" in Parquet" in words and "runs in the raw rows" in words for words in differences(captured))
    assert any("in Postgres and not in Parquet" in words for words in differences(captured))


def test_reconcile_reports_duplicate_row(captured: Pipeline) -> None:
    rewrite(captured, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert any(words.endswith("in Parquet") for words in differences(captured))


def test_reconcile_reports_message_missing_in_parquet(captured: Pipeline) -> None:
    def without_turns(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("turns")
        empty = pa.array([[]] * len(table), table.schema.field("turns").type)
        return table.set_column(place, table.schema.field("turns"), empty)

    rewrite(captured, without_turns)
    found = differences(captured)
    assert {words.split(" in the raw rows")[0].split()[-1] for words in found} == {"steps", "messages"}


@pytest.mark.parametrize("column", ["message_count", "step_count"])
def test_reconcile_reports_wrong_count_in_postgres(captured: Pipeline, column: str) -> None:
    captured.do(f"UPDATE trajectory.trajectories SET {column} = {column} + 1")
    assert any(words.endswith("in Postgres") for words in differences(captured))


def test_reconcile_reports_different_content(captured: Pipeline) -> None:
    run_id = max(captured.run_ids(HOUR))
    captured.do(f"UPDATE trajectory.trajectories SET content_digest = 'other' WHERE run_id = '{run_id}'")
    assert differences(captured) == (f"{KEY}: 1 run(s) with other content in Parquet than in Postgres, first {run_id}",)


def test_reconcile_reports_run_moved_in_one_sink_only(captured: Pipeline) -> None:
    captured.do("UPDATE trajectory.trajectories SET partition_key = '2020-01-01-00:00'")
    assert any(words.endswith("0 in Postgres") for words in differences(captured))


def test_reconcile_reports_lost_quarantined_run(captured: Pipeline) -> None:
    rows = captured.parquet(TERMINAL_RUNS, HOUR)
    rows[0]["run"]["status"] = None
    batch = pa.RecordBatch.from_pylist(rows, schema=arrow_schema(TERMINAL_RUNS))
    captured.store.write(TERMINAL_RUNS, HOUR, [batch])
    assert captured.convert(HOUR).row_balance.quarantined == 1
    assert differences(captured) == ()
    captured.do("DELETE FROM trajectory.quarantine")
    assert len([words for words in differences(captured) if "runs in the raw rows" in words]) == 2
