"""Materializing an up-to-date partition reads and writes nothing; any difference rewrites it.

Counted are queries of messages at the source, conversions, and files written.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline import capture, convert
from trajectory_pipeline.pipeline.capture import TerminalRunsResult
from trajectory_pipeline.pipeline.convert import TrajectoriesResult
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, delete_run, some_run

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
"""The partition with most runs."""
KEY = partition_key(HOUR)

_TABLES = ("trajectories", "quarantine", "run_locations", "invalidations", "partitions")
_TIMES = ("materialized_at", "snapshot_at")


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    pipeline.capture(HOUR)
    return pipeline


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, captured: Pipeline) -> list[str]:
    """What is done from now on that costs in proportion to the rows."""
    done: list[str] = []

    def noted(what: str, real: Callable[..., object]) -> Callable[..., object]:
        def doing(*given: object, **more: object) -> object:
            done.append(what)
            return real(*given, **more)

        return doing

    monkeypatch.setattr(Snapshot, "prefetch_terminal_runs", noted("read", Snapshot.prefetch_terminal_runs))
    monkeypatch.setattr(convert, "convert_batch", noted("converted", convert.convert_batch))
    monkeypatch.setattr(ParquetStore, "stage", noted("made a file", ParquetStore.stage))
    return done


def held(pipeline: Pipeline) -> dict[str, list[Row]]:
    """All that Postgres holds, with the versions of its rows, but for the ledger's own times and versions."""
    tables = {}
    for table in _TABLES:
        version = ", xmin::text AS version" if table == "trajectories" else ""
        rows = pipeline.ask(f"SELECT *{version} FROM trajectory.{table} ORDER BY 1, 2")
        tables[table] = [{name: value for name, value in row.items() if name not in _TIMES} for row in rows]
    return tables


def again(pipeline: Pipeline) -> tuple[TerminalRunsResult, TrajectoriesResult]:
    read, converted = pipeline.read(HOUR), pipeline.convert(HOUR)
    assert reconcile_partition(HOUR, pipeline.storage).differences == ()
    return read, converted


# ---- nothing changed ------------------------------------------------------------------------------------------------


def test_unchanged_partition_reads_and_writes_nothing(captured: Pipeline, work: list[str]) -> None:
    files, rows = captured.files(), held(captured)
    read, converted = again(captured)
    assert work == []
    assert (read.unchanged, converted.unchanged) == (True, True)
    assert (captured.files(), held(captured)) == (files, rows)


def test_unchanged_partition_returns_the_same_result(pipeline: Pipeline) -> None:
    read, converted = pipeline.read(HOUR), pipeline.convert(HOUR)
    read_again, converted_again = again(pipeline)
    assert read_again.counts == read.counts
    assert read_again.written == replace(read.written, replaced=False)
    assert read_again.snapshot_at > read.snapshot_at
    assert converted.written is not None
    assert converted_again.written == replace(converted.written, replaced=False)
    assert converted_again.row_balance == converted.row_balance
    assert (converted_again.executions, converted_again.outcomes) == (converted.executions, converted.outcomes)
    assert (converted_again.escaped, converted_again.data_omitted) == (converted.escaped, converted.data_omitted)
    assert converted_again.merge_stats is not None
    assert converted_again.merge_stats.unchanged == converted.row_balance.trajectories


def test_unchanged_partition_updates_snapshot_time_in_ledger(captured: Pipeline) -> None:
    before = captured.database.ledger(TERMINAL_RUNS.name)[KEY]
    read, _ = again(captured)
    after = captured.database.ledger(TERMINAL_RUNS.name)[KEY]
    assert after.snapshot_at == read.snapshot_at
    assert after.materialized_at > before.materialized_at


def test_partition_with_deleted_run_is_read_once_more_only(captured: Pipeline, work: list[str]) -> None:
    delete_run(captured, some_run(captured))
    again(captured)
    work.clear()
    read, converted = again(captured)
    assert (work, len(read.counts.carried)) == ([], 1)
    assert (read.unchanged, converted.unchanged) == (True, True)


# ---- one thing changed at the source ---------------------------------------------------------------------------------

_AT_THE_SOURCE = {
    "a run": "UPDATE runs SET stop_reason = 'cancelled' WHERE id = '{run}'",
    "a step": "UPDATE steps SET feedback = 'positive' WHERE run_id = '{run}'",
    "a message": "UPDATE messages SET content = '[]' WHERE run_id = '{run}'",
    "metrics": "UPDATE run_metrics SET run_ns = 1 WHERE id = '{run}'",
    "an agent's name": "UPDATE agents SET name = 'renamed' WHERE id = (SELECT agent_id FROM runs WHERE id = '{run}')",
    "a tag": "INSERT INTO agents_tags (agent_id, tag) SELECT agent_id, 'a-new-tag' FROM runs WHERE id = '{run}'",
    "a column": "ALTER TABLE steps DROP COLUMN feedback",
}


@pytest.mark.parametrize("change", some_heavy(_AT_THE_SOURCE, "a message", "an agent's name", "a column"))
def test_changed_source_is_read(captured: Pipeline, work: list[str], change: str) -> None:
    captured.change_source(_AT_THE_SOURCE[change].format(run=some_run(captured)))
    read, converted = again(captured)
    assert not read.unchanged
    # A column that held nothing leaves the raw rows as they were: there is nothing to convert.
    assert converted.unchanged == (not read.written.replaced)
    work.clear()
    assert all(result.unchanged for result in again(captured))
    assert work == []


def test_source_that_went_back_is_read(captured: Pipeline, work: list[str]) -> None:
    captured.do("UPDATE trajectory.partitions SET source_position = source_position + 1000000000")
    captured.read(HOUR)
    assert "read" in work


def test_agent_activity_leaves_old_partitions_up_to_date(captured: Pipeline, work: list[str]) -> None:
    captured.change_source(
        "UPDATE agents SET message_ids = (message_ids::jsonb || '[\"message-new\"]'::jsonb)::json,"
        " updated_at = now() WHERE json_array_length(message_ids) > 0"
    )
    assert all(result.unchanged for result in again(captured))
    assert work == []


def test_carried_run_returning_in_another_hour_departs(captured: Pipeline) -> None:
    run_id = some_run(captured)
    captured.change_source(f"CREATE TABLE saved AS SELECT * FROM runs WHERE id = '{run_id}'")
    delete_run(captured, run_id)
    again(captured)
    captured.change_source(
        "UPDATE saved SET completed_at = completed_at + interval '1 hour'", "INSERT INTO runs SELECT * FROM saved"
    )
    read, _ = again(captured)
    assert (read.unchanged, read.counts.carried, read.counts.pending_move) == (False, [], [run_id])


# ---- one thing changed in the sinks ----------------------------------------------------------------------------------

_ROWS = "SELECT to_jsonb(t) - 'updated_at' - 'first_captured_at' AS row FROM trajectory.trajectories t ORDER BY run_id"
_PLACES = "SELECT run_id, partition_key FROM trajectory.run_locations ORDER BY 1"
_IN_POSTGRES = {
    "a row is lost": "DELETE FROM trajectory.trajectories WHERE run_id = '{run}'",
    "a row is edited": "UPDATE trajectory.trajectories SET agent_name = 'edited' WHERE run_id = '{run}'",
    "a row moves": "UPDATE trajectory.trajectories SET partition_key = 'other partition' WHERE run_id = '{run}'",
    "the ledger is lost": "DELETE FROM trajectory.partitions",
    "an older schema made it": "UPDATE trajectory.partitions SET schema_version = '0'",
    "it was made before that was known": "UPDATE trajectory.partitions SET inputs_digest = NULL, rows_checksum = NULL",
    "a note asks for it": "INSERT INTO trajectory.invalidations SELECT asset, asset, partition_key, 'asked', now()"
    " FROM trajectory.partitions",
    "a place is lost": "DELETE FROM trajectory.run_locations WHERE run_id = '{run}'",
}


@pytest.mark.parametrize(
    "damage", some_heavy(_IN_POSTGRES, "a row is edited", "the ledger is lost", "a note asks for it")
)
def test_changed_rows_in_postgres_are_rewritten(captured: Pipeline, work: list[str], damage: str) -> None:
    files, places = captured.files(), captured.ask(_PLACES)
    rows = captured.ask(_ROWS)
    captured.do(_IN_POSTGRES[damage].format(run=some_run(captured)))
    again(captured)
    assert work != []
    assert captured.ask(_ROWS) == rows
    assert captured.files() == files
    assert captured.ask(_PLACES) == places
    work.clear()
    assert all(result.unchanged for result in again(captured))
    assert work == []


@pytest.mark.parametrize("asset", [TERMINAL_RUNS, TRAJECTORIES], ids=lambda table: table.name)
def test_missing_file_is_rewritten(captured: Pipeline, asset: Table) -> None:
    files = captured.files()
    Path(captured.store.path_of(asset, HOUR)).unlink()
    again(captured)
    assert captured.files() == files


def test_corrupt_file_is_rewritten(captured: Pipeline) -> None:
    files = captured.files()
    path = Path(captured.store.path_of(TRAJECTORIES, HOUR))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    again(captured)
    assert captured.files() == files


def test_raw_rows_with_another_digest_are_converted(captured: Pipeline, work: list[str]) -> None:
    first = next(captured.store.read(TERMINAL_RUNS, HOUR)).slice(0, 1)
    captured.store.write(TERMINAL_RUNS, HOUR, [first])
    work.clear()
    assert not captured.convert(HOUR).unchanged
    assert work[:1] == ["made a file"]


# ---- one thing changed in the settings -------------------------------------------------------------------------------


def test_switching_to_erase_and_back_rewrites_deleted_content(captured: Pipeline, work: list[str]) -> None:
    run_id = some_run(captured)
    captured.change_source(f"UPDATE messages SET is_deleted = true WHERE run_id = '{run_id}'")
    again(captured)
    captured.deleted = "erase"
    read, _ = again(captured)
    assert (read.unchanged, read.counts.erased_runs) == (False, 1)
    work.clear()
    assert all(result.unchanged for result in again(captured))
    captured.deleted = "keep"
    read, _ = again(captured)
    assert (read.unchanged, read.counts.erased_runs, read.counts.deleted_and_kept) == (False, 0, 1)


def test_switching_to_erase_without_deleted_content_is_no_change(captured: Pipeline, work: list[str]) -> None:
    captured.deleted = "erase"
    assert all(result.unchanged for result in again(captured))
    assert work == []


def test_other_code_version_rebuilds_a_partition(
    captured: Pipeline, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "capture_code_version", lambda: "other code")
    monkeypatch.setattr(convert, "conversion_code_version", lambda: "other code")
    assert not any(result.unchanged for result in again(captured))
    assert all(result.unchanged for result in again(captured))


def test_edited_run_touches_only_its_row_and_the_ledger(captured: Pipeline) -> None:
    """Not even a lock, which the server would write to its log for each row of the partition."""
    where = {
        "trajectories": "SELECT run_id AS id, ctid::text, xmin::text, xmax::text FROM trajectory.trajectories",
        "run_locations": "SELECT run_id AS id, ctid::text, xmin::text, xmax::text FROM trajectory.run_locations",
    }
    before = {table: {row["id"]: row for row in captured.ask(query)} for table, query in where.items()}
    assert len(before["trajectories"]) > 10
    edited = min(before["trajectories"])
    captured.change_source(f"UPDATE runs SET project_id = 'edited' WHERE id = '{edited}'")
    _, converted = again(captured)
    assert converted.merge_stats is not None
    assert (converted.merge_stats.updated, converted.merge_stats.unchanged) == (1, len(before["trajectories"]) - 1)
    after = {table: {row["id"]: row for row in captured.ask(query)} for table, query in where.items()}
    assert after["run_locations"] == before["run_locations"]
    assert {run_id for run_id, row in after["trajectories"].items() if row != before["trajectories"][run_id]} == {
        edited
    }
