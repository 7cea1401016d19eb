"""A source that changes: captured runs stay, late rows are captured, and each run is in one partition.

Deleted runs are carried forward with ``deleted_at`` and leave the view ``outcomes``. The next materialization finds
moved, late, restarted and reappearing runs.
"""

from datetime import datetime, timedelta

import pytest

from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.retention import prune_partition
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.letta.versions import create_statement
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, delete_run, some_run

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
"""The partition with most runs."""


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    pipeline.capture(HOUR)
    return pipeline


_TABLES = ("runs", "run_metrics", "steps", "step_metrics", "messages")


def back_up(pipeline: Pipeline) -> None:
    pipeline.change_source(*(f"CREATE TABLE saved_{table} AS TABLE {table}" for table in _TABLES))


def restore(pipeline: Pipeline) -> None:
    pipeline.change_source(
        *(f"INSERT INTO {table} SELECT * FROM saved_{table} ON CONFLICT DO NOTHING" for table in _TABLES)
    )


def in_view(pipeline: Pipeline, run_id: str) -> bool:
    return bool(pipeline.ask("SELECT 1 AS x FROM trajectory.outcomes WHERE run_id = %s", run_id))


def row_of(pipeline: Pipeline, run_id: str, hour: datetime = HOUR) -> Row:
    (row,) = [row for row in pipeline.parquet(TRAJECTORIES, hour) if row["run_id"] == run_id]
    return row


def test_deleted_run_is_carried_forward_and_marked(captured: Pipeline) -> None:
    run_id = some_run(captured)
    before, stored = row_of(captured, run_id), captured.trajectory(run_id)
    assert stored is not None
    delete_run(captured, run_id)
    result = captured.read(HOUR)
    assert len(result.counts.carried) == 1
    (converted,) = captured.capture(HOUR)
    assert converted.row_balance.runs_in == sample_partitions()[HOUR]
    after = row_of(captured, run_id)
    assert after["deleted_at"] == result.snapshot_at
    assert {**after, "deleted_at": None} == before
    stored_row = captured.trajectory(run_id)
    assert stored_row is not None
    assert (stored_row["data"], stored_row["first_captured_at"]) == (stored["data"], stored["first_captured_at"])
    assert stored_row["deleted_at"] == result.snapshot_at
    assert not in_view(captured, run_id)
    assert reconcile_partition(HOUR, captured.storage).differences == ()


def test_deleted_run_keeps_its_first_deleted_at(captured: Pipeline) -> None:
    run_id = some_run(captured)
    delete_run(captured, run_id)
    captured.capture(HOUR)
    files, noticed = captured.files(), row_of(captured, run_id)["deleted_at"]
    captured.capture(HOUR)
    assert row_of(captured, run_id)["deleted_at"] == noticed
    assert captured.files() == files


def test_deleted_agent_leaves_its_runs_carried_forward(captured: Pipeline) -> None:
    agent_id = captured.ask("SELECT agent_id FROM trajectory.trajectories ORDER BY 1 LIMIT 1")[0]["agent_id"]
    mine = {row["run_id"] for row in captured.parquet(TRAJECTORIES, HOUR) if row["agent_id"] == agent_id}
    for run_id in mine:
        delete_run(captured, run_id)
    captured.change_source(
        f"DELETE FROM messages WHERE agent_id = '{agent_id}'",
        f"DELETE FROM runs WHERE agent_id = '{agent_id}'",
        f"DELETE FROM agents WHERE id = '{agent_id}'",
    )
    captured.capture(HOUR)
    rows = {row["run_id"]: row for row in captured.parquet(TRAJECTORIES, HOUR)}
    assert len(rows) == sample_partitions()[HOUR]
    for run_id, row in rows.items():
        assert (row["deleted_at"] is not None) == (run_id in mine)
        assert in_view(captured, run_id) == (run_id not in mine)
    assert rows[min(mine)]["agent_name"] is not None


def test_partition_with_only_deleted_runs_carries_them_forward(captured: Pipeline) -> None:
    for run_id in captured.run_ids(HOUR):
        delete_run(captured, run_id)
    captured.read(HOUR, accept_deletions=True)
    captured.convert(HOUR)
    assert len(captured.run_ids(HOUR)) == sample_partitions()[HOUR]
    assert captured.ask("SELECT run_id FROM trajectory.outcomes") == []


def test_reappearing_run_loses_deleted_at(captured: Pipeline) -> None:
    run_id = some_run(captured)
    before = row_of(captured, run_id)
    back_up(captured)
    delete_run(captured, run_id)
    captured.capture(HOUR)
    restore(captured)
    captured.capture(HOUR)
    assert row_of(captured, run_id) == before
    assert in_view(captured, run_id)


def test_run_reappearing_elsewhere_is_in_one_partition(captured: Pipeline) -> None:
    run_id, later = some_run(captured), HOUR + timedelta(hours=24)
    back_up(captured)
    delete_run(captured, run_id)
    captured.read(HOUR)
    restore(captured)
    captured.change_source(f"UPDATE runs SET completed_at = completed_at + interval '24 hours' WHERE id = '{run_id}'")
    captured.read(later)
    captured.convert(HOUR)
    captured.convert(later)
    # No fingerprint tells it: the run is gone from the old hour since before it was read.
    source = LettaSource(captured.letta_url)
    for _ in range(2):
        captured.capture(*find_stale_partitions(source, captured.database, [HOUR, later]))
    assert find_stale_partitions(source, captured.database, [HOUR, later]) == []
    for table in (TERMINAL_RUNS, TRAJECTORIES):
        assert run_id not in {row["run_id"] for row in captured.parquet(table, HOUR)}
        assert run_id in {row["run_id"] for row in captured.parquet(table, later)}


def test_moved_run_is_in_its_new_partition_only(captured: Pipeline) -> None:
    run_id, later = some_run(captured), HOUR + timedelta(hours=100)
    first_captured = captured.trajectory(run_id)
    assert first_captured is not None
    captured.change_source(f"UPDATE runs SET completed_at = completed_at + interval '100 hours' WHERE id = '{run_id}'")
    # Its new partition first, as it may happen; then the one that it left.
    captured.capture(later)
    captured.capture(HOUR)
    assert run_id not in captured.run_ids(HOUR)
    assert run_id in captured.run_ids(later)
    moved = captured.trajectory(run_id)
    assert moved is not None
    assert (moved["partition_key"], moved["deleted_at"]) == (partition_key(later), None)
    assert moved["first_captured_at"] == first_captured["first_captured_at"]
    assert run_id not in {row["run_id"] for row in captured.parquet(TERMINAL_RUNS, HOUR)}


def test_moved_run_keeps_its_first_capture_time(captured: Pipeline) -> None:
    run_id, later = some_run(captured), HOUR + timedelta(hours=24)
    first_captured = captured.trajectory(run_id)
    assert first_captured is not None
    captured.change_source(f"UPDATE runs SET completed_at = completed_at + interval '24 hours' WHERE id = '{run_id}'")
    captured.capture(HOUR)
    assert run_id in captured.run_ids(HOUR)
    captured.read(later)
    captured.capture(HOUR)
    assert captured.trajectory(run_id) is None
    captured.capture(later)
    moved = captured.trajectory(run_id)
    assert moved is not None
    assert moved["first_captured_at"] == first_captured["first_captured_at"]


@pytest.mark.parametrize("new_first", [True, False])
def test_run_moved_then_deleted_stays_in_its_last_partition(captured: Pipeline, new_first: bool) -> None:
    run_id, later = some_run(captured), HOUR + timedelta(hours=24)
    captured.change_source(
        f"UPDATE runs SET completed_at = completed_at + interval '24 hours', status = 'failed' WHERE id = '{run_id}'"
    )
    captured.read(later)
    delete_run(captured, run_id)
    captured.capture(*((later, HOUR) if new_first else (HOUR, later)))
    assert run_id not in captured.run_ids(HOUR)
    assert run_id in captured.run_ids(later)
    assert run_id not in {row["run_id"] for row in captured.parquet(TERMINAL_RUNS, HOUR)}
    stored_row = row_of(captured, run_id, later)
    assert (stored_row["execution_status"], stored_row["deleted_at"] is None) == ("failed", False)


def test_run_moved_unseen_then_deleted_stays_in_old_partition(captured: Pipeline) -> None:
    run_id, later = some_run(captured), HOUR + timedelta(hours=24)
    captured.change_source(f"UPDATE runs SET completed_at = completed_at + interval '24 hours' WHERE id = '{run_id}'")
    captured.capture(HOUR)
    assert row_of(captured, run_id)["deleted_at"] is None
    assert set(captured.database.invalidations([partition_key(HOUR)])) == {partition_key(HOUR)}
    delete_run(captured, run_id)
    captured.capture(later)
    captured.capture(HOUR)
    assert row_of(captured, run_id)["deleted_at"] is not None
    assert captured.database.invalidations([partition_key(HOUR), partition_key(later)]) == {}


def test_run_moved_before_the_first_partition_departs(captured: Pipeline) -> None:
    run_id = some_run(captured)
    captured.change_source(f"UPDATE runs SET completed_at = '2001-01-01' WHERE id = '{run_id}'")
    materialize_terminal_runs(HOUR, LettaSource(captured.letta_url), captured.storage, start=HOUR)
    captured.convert(HOUR)
    assert run_id not in captured.run_ids(HOUR)
    assert captured.database.invalidations([partition_key(HOUR)]) == {}


def test_run_moved_to_uncaptured_partition_stays_until_captured(captured: Pipeline) -> None:
    run_id, earlier = some_run(captured), HOUR - timedelta(hours=24)
    captured.change_source(f"UPDATE runs SET completed_at = completed_at - interval '24 hours' WHERE id = '{run_id}'")
    captured.capture(HOUR)
    delete_run(captured, run_id)
    captured.capture(earlier, HOUR)
    assert row_of(captured, run_id)["deleted_at"] is not None


def test_moved_run_after_clock_went_back_is_in_new_partition(captured: Pipeline) -> None:
    run_id, later = some_run(captured), HOUR + timedelta(hours=24)
    # Another server took the source over, and its clock is behind: what was seen before was seen "later".
    captured.do("UPDATE trajectory.run_locations SET seen_at = now() + interval '5 minutes'")
    captured.change_source(f"UPDATE runs SET completed_at = completed_at + interval '24 hours' WHERE id = '{run_id}'")
    captured.capture(later)
    captured.capture(HOUR)
    assert set(captured.database.invalidations([partition_key(later)])) == {partition_key(later)}
    captured.capture(later)
    captured.capture(HOUR)
    assert run_id in captured.run_ids(later)
    assert run_id not in captured.run_ids(HOUR)


def test_moved_run_without_old_raw_rows_is_in_new_partition(captured: Pipeline) -> None:
    run_id, later = some_run(captured), HOUR + timedelta(hours=24)
    captured.do("UPDATE trajectory.run_locations SET seen_at = now() + interval '5 minutes'")
    captured.change_source(f"UPDATE runs SET completed_at = completed_at + interval '24 hours' WHERE id = '{run_id}'")
    prune_partition("terminal_runs", HOUR, captured.storage)
    captured.capture(HOUR, later)
    assert not captured.database.invalidations([partition_key(HOUR), partition_key(later)])
    assert run_id in captured.run_ids(later)
    assert run_id not in captured.run_ids(HOUR)


def test_reappearing_run_after_clock_went_back_is_moved(captured: Pipeline) -> None:
    run_id, later = some_run(captured), HOUR + timedelta(hours=24)
    back_up(captured)
    delete_run(captured, run_id)
    captured.capture(HOUR)
    captured.do("UPDATE trajectory.run_locations SET seen_at = now() + interval '5 minutes'")
    restore(captured)
    captured.change_source(f"UPDATE runs SET completed_at = completed_at + interval '24 hours' WHERE id = '{run_id}'")
    for hour in (later, HOUR, later, HOUR):
        if partition_key(hour) in captured.database.invalidations([partition_key(hour)]) or hour == later:
            captured.capture(hour)
    assert not captured.database.invalidations([partition_key(HOUR), partition_key(later)])
    assert run_id in captured.run_ids(later)
    assert run_id not in captured.run_ids(HOUR)


def test_unconverted_raw_rows_without_ledger_are_stale(pipeline: Pipeline) -> None:
    pipeline.read(HOUR)
    pipeline.do("DELETE FROM trajectory.partitions")
    assert set(pipeline.database.invalidations([partition_key(HOUR)])) == {partition_key(HOUR)}


def test_context_at_capture_stays_as_it_was_first_captured(pipeline: Pipeline) -> None:
    """What an agent is told later must not make a verdict stale that was paid for."""
    pipeline.change_source("UPDATE agents SET system = 'As it was.'")
    pipeline.capture(HOUR)

    def contexts() -> set[tuple[str, str, str]]:
        rows = pipeline.ask("SELECT run_id, context_digest FROM trajectory.trajectories")
        digests = {row["run_id"]: row["context_digest"] for row in rows}
        return {
            (row["run_id"], row["context"]["system_prompt"], digests[row["run_id"]])
            for row in pipeline.parquet(TRAJECTORIES, HOUR)
        }

    before = contexts()
    assert {prompt for _, prompt, _ in before} == {"As it was."}
    run_id = some_run(pipeline)
    pipeline.change_source(
        "UPDATE agents SET system = 'As it is now.'",
        f"UPDATE steps SET feedback = 'positive' WHERE run_id = '{run_id}'",
    )
    pipeline.capture(HOUR)
    assert contexts() == before


@pytest.mark.parametrize("loss", ["TRUNCATE provider_traces", "DROP TABLE provider_traces"])
def test_context_of_a_recorded_call_outlives_its_record(pipeline: Pipeline, loss: str) -> None:
    """Servers prune these records: what a call told is not known from anywhere else."""
    pipeline.change_source(
        create_statement("0.16.8", "provider_traces"),
        "INSERT INTO provider_traces (id, step_id, request_json, response_json)"
        " SELECT id, id, json_build_object('system', 'As sent in ' || id), '{}' FROM steps",
        "UPDATE agents SET system = 'As it stands.'",
    )
    pipeline.capture(HOUR)

    def contexts() -> dict[str, tuple[str, str]]:
        rows = pipeline.parquet(TERMINAL_RUNS, HOUR)
        return {row["run_id"]: (row["context"]["source"], row["context"]["system_prompt"]) for row in rows}

    before = contexts()
    told = {run_id for run_id, (source, _) in before.items() if source == "provider_trace"}
    assert len(told) > 1
    pipeline.change_source(loss, f"UPDATE runs SET project_id = 'edited' WHERE id = '{min(told)}'")
    pipeline.capture(HOUR)
    assert contexts() == before


def test_context_of_an_agent_that_is_gone_stays(pipeline: Pipeline) -> None:
    pipeline.change_source("UPDATE agents SET system = 'As it was.'")
    pipeline.capture(HOUR)
    run_id = some_run(pipeline)
    agent_id = pipeline.ask("SELECT agent_id FROM trajectory.trajectories WHERE run_id = %s", run_id)[0]["agent_id"]
    pipeline.change_source(
        "ALTER TABLE agents RENAME TO kept", f"CREATE VIEW agents AS SELECT * FROM kept WHERE id <> '{agent_id}'"
    )
    pipeline.capture(HOUR)
    found = {row["run_id"]: row["context"] for row in pipeline.parquet(TERMINAL_RUNS, HOUR)}
    assert found[run_id]["system_prompt"] == "As it was."


def test_late_message_is_captured(captured: Pipeline) -> None:
    run_id = some_run(captured)
    before, stored = row_of(captured, run_id), captured.trajectory(run_id)
    assert stored is not None
    columns = "SELECT string_agg(quote_ident(column_name), ', ') AS names FROM information_schema.columns" + (
        " WHERE table_name = 'messages' AND column_name NOT IN ('id', 'sequence_id')"
    )
    names = Pipeline("", captured.letta_url, captured.folder).ask(columns)[0]["names"]
    captured.change_source(
        f"INSERT INTO messages (id, sequence_id, {names}) SELECT 'message-late', 10000000, {names} FROM messages"
        f" WHERE run_id = '{run_id}' ORDER BY sequence_id DESC LIMIT 1"
    )
    (result,) = captured.capture(HOUR)
    assert result.merge_stats is not None
    assert (result.merge_stats.updated, result.merge_stats.inserted, result.merge_stats.removed) == (1, 0, 0)
    after = row_of(captured, run_id)
    assert after["message_count"] == before["message_count"] + 1
    assert after["turns"][-1]["messages"][-1]["message_id"] == "message-late"
    assert after["content_digest"] != before["content_digest"]
    changed = captured.trajectory(run_id)
    assert changed is not None
    assert changed["updated_at"] > stored["updated_at"]


def test_restarted_run_departs_and_returns(captured: Pipeline) -> None:
    run_id = some_run(captured, "status = 'completed'")
    captured.change_source(f"UPDATE runs SET status = 'running' WHERE id = '{run_id}'")
    captured.capture(HOUR)
    assert run_id not in captured.run_ids(HOUR)
    captured.change_source(f"UPDATE runs SET status = 'failed' WHERE id = '{run_id}'")
    captured.capture(HOUR)
    assert run_id in captured.run_ids(HOUR)
    assert row_of(captured, run_id)["execution_status"] == "failed"


def test_approval_answer_in_later_partition_is_linked_both_ways(pipeline: Pipeline) -> None:
    source = Pipeline("", pipeline.letta_url, pipeline.folder)
    pair = source.ask(
        "SELECT s.run_id AS asking, m.run_id AS answering FROM messages m JOIN steps s ON s.id = m.step_id"
        " JOIN runs a ON a.id = s.run_id JOIN runs b ON b.id = m.run_id WHERE s.run_id <> m.run_id"
        " AND date_trunc('hour', a.completed_at) < date_trunc('hour', b.completed_at) ORDER BY 1, 2 LIMIT 1"
    )[0]
    asked, answered = pipeline.hour_of_run(pair["asking"]), pipeline.hour_of_run(pair["answering"])
    pipeline.capture(asked)
    before = pipeline.trajectory(pair["asking"])
    pipeline.capture(answered)
    pipeline.capture(asked)
    assert pipeline.trajectory(pair["asking"]) == before
    answering = pipeline.trajectory(pair["answering"])
    assert answering is not None
    assert answering["continues_run_id"] == pair["asking"]
    (link,) = pipeline.ask("SELECT * FROM trajectory.chains WHERE continued_by_run_id = %s", pair["answering"])
    assert (link["run_id"], link["partition_key"]) == (pair["asking"], partition_key(asked))
    assert link["continued_by_partition_key"] == partition_key(answered)


def test_empty_hour_without_ledger_row_before_convert_is_stale(pipeline: Pipeline) -> None:
    empty = HOUR + timedelta(days=300)
    pipeline.read(empty)
    pipeline.do("DELETE FROM trajectory.partitions")
    pipeline.convert(empty)
    assert set(pipeline.database.invalidations([partition_key(empty)])) == {partition_key(empty)}
    pipeline.capture(empty)
    assert pipeline.database.invalidations([partition_key(empty)]) == {}


def test_hour_without_runs_is_an_empty_partition(pipeline: Pipeline) -> None:
    empty = HOUR + timedelta(days=300)
    (result,) = pipeline.capture(empty)
    assert result.row_balance.runs_in == 0
    assert pipeline.run_ids(empty) == set()
    assert pipeline.store.exists(TRAJECTORIES, empty)
