"""In a partition of many runs, only those that changed are read from the source and converted again.

Whatever changed, both files and all rows are then as if everything had been read again.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg.rows import dict_row

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.errors import WithheldDeletionsError
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.pipeline import convert, former_rows
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.schema.enums import DeletedContent
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet import io
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, delete_run, some_run

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
"""The partition with most runs."""

_ROWS = (
    "SELECT to_jsonb(t) - 'updated_at' - 'first_captured_at' AS row FROM trajectory.trajectories t ORDER BY run_id",
    "SELECT run_id, partition_key FROM trajectory.run_locations ORDER BY 1",
    "SELECT asset, partition_key, result, fingerprint, counts, content_digest, upstream_digest FROM"
    " trajectory.partitions ORDER BY 1, 2",
    "SELECT to_jsonb(q) - 'first_seen_at' - 'last_seen_at' AS row FROM trajectory.quarantine q ORDER BY run_id",
)


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small partitions are treated as large ones, in several row groups."""
    monkeypatch.setattr(former_rows, "_FEW_RUNS", 1)
    monkeypatch.setattr(former_rows, "_CONTROL_RUNS", 0)
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 50_000)
    monkeypatch.setattr(io, "_ROWS_AT_ONCE", 3)


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    pipeline.capture(HOUR)
    return pipeline


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, captured: Pipeline) -> dict[str, list[str]]:
    """Runs that are read from the source, and converted, from now on."""
    ids: dict[str, list[str]] = {"read": [], "converted": []}
    tables_of = Snapshot._tables_of

    def reading(snapshot: Snapshot, run_ids: list[str], *more: Any) -> Any:
        ids["read"] += run_ids
        return tables_of(snapshot, run_ids, *more)

    def converting(raw: pa.RecordBatch, *more: Any, **options: Any) -> Any:
        ids["converted"] += [str(run_id) for run_id in raw.column("run_id")]
        return convert_batch(raw, *more, **options)

    monkeypatch.setattr(Snapshot, "_tables_of", reading)
    monkeypatch.setattr(convert, "convert_batch", converting)
    return ids


def state(pipeline: Pipeline) -> tuple[dict[str, bytes], list[list[Row]]]:
    """Return the files, and what Postgres holds."""
    files = {str(path.relative_to(pipeline.folder)): path.read_bytes() for path in pipeline.folder.rglob("*.parquet")}
    return files, [pipeline.ask(question) for question in _ROWS]


def everything_again(pipeline: Pipeline) -> tuple[dict[str, bytes], list[list[Row]]]:
    """Read and convert all runs, whatever is known of them; return what is there then."""
    materialize_terminal_runs(
        HOUR, LettaSource(pipeline.letta_url), pipeline.storage, deleted=pipeline.deleted, force=True
    )
    materialize_trajectories(HOUR, pipeline.storage, force=True)
    return state(pipeline)


def ask_source(pipeline: Pipeline, question: str, *values: Any) -> list[Row]:
    with psycopg.connect(pipeline.letta_url, row_factory=dict_row) as connection:
        return connection.execute(question.encode(), values or None).fetchall()


def again(pipeline: Pipeline) -> None:
    pipeline.read(HOUR)
    pipeline.convert(HOUR)


_EDITS = {
    "a run": "UPDATE runs SET project_id = 'edited' WHERE id = '{run}'",
    "a step": "UPDATE steps SET feedback = 'positive' WHERE run_id = '{run}'",
    "a message": "UPDATE messages SET content = '[]' WHERE run_id = '{run}'",
    "a message marked deleted": "UPDATE messages SET is_deleted = true WHERE run_id = '{run}'",
    "a message gone": "DELETE FROM messages WHERE id = (SELECT max(id) FROM messages WHERE run_id = '{run}')",
    "metrics": "UPDATE run_metrics SET run_ns = 1 WHERE id = '{run}'",
    "metrics of steps": "UPDATE step_metrics SET step_ns = 1 FROM steps s"
    " WHERE s.id = step_metrics.id AND s.run_id = '{run}'",
    "a run that is not terminal any more": "UPDATE runs SET status = 'running' WHERE id = '{run}'",
    "a run that moved": "UPDATE runs SET completed_at = completed_at + interval '1 hour' WHERE id = '{run}'",
}


@pytest.mark.parametrize("edit", some_heavy(_EDITS, "a message", "metrics of steps", "a run that moved"))
def test_edited_run_alone_is_read_and_converted(captured: Pipeline, done: dict[str, list[str]], edit: str) -> None:
    run_id = some_run(captured)
    captured.change_source(_EDITS[edit].format(run=run_id))
    again(captured)
    assert set(done["read"]) | set(done["converted"]) <= {run_id}
    assert len(done["read"]) == (0 if "any more" in edit or "moved" in edit else 1)
    assert state(captured) == everything_again(captured)
    assert len(done["read"]) > 10


@pytest.mark.parametrize(
    ("edit", "condition"),
    [
        ("UPDATE agents SET name = 'renamed' WHERE id = '{agent}'", "agent_id = '{agent}'"),
        ("INSERT INTO agents_tags (agent_id, tag) VALUES ('{agent}', 'a-new-tag')", "agent_id = '{agent}'"),
        ("UPDATE steps SET model = 'other' WHERE id = '{asking}'", "run_id = '{answering}' OR run_id = '{asked}'"),
    ],
    ids=["an agent's name", "a tag", "a step that an approval of another run names"],
)
def test_runs_that_depend_on_an_edited_row_are_read(
    captured: Pipeline, done: dict[str, list[str]], edit: str, condition: str
) -> None:
    asking = ask_source(
        captured,
        "SELECT m.run_id AS answering, m.step_id AS asking, s.run_id AS asked FROM messages m"
        " JOIN steps s ON s.id = m.step_id WHERE s.run_id <> m.run_id AND m.run_id = ANY(%s) LIMIT 1",
        [row["run_id"] for row in captured.ask("SELECT run_id FROM trajectory.trajectories")],
    )[0]
    agent = captured.ask("SELECT agent_id FROM trajectory.trajectories ORDER BY run_id LIMIT 1")[0]["agent_id"]
    names = {"agent": agent, **asking}
    captured.change_source(edit.format(**names))
    again(captured)
    expected = captured.ask(f"SELECT run_id FROM trajectory.trajectories WHERE {condition.format(**names)}")
    assert set(done["read"]) == set(done["converted"]) == {row["run_id"] for row in expected} != set()
    assert state(captured) == everything_again(captured)


def test_new_and_deleted_runs_leave_the_others_alone(captured: Pipeline, done: dict[str, list[str]]) -> None:
    deleted, new = some_run(captured), "run-00000000-0000-4000-8000-000000000000"
    columns = ask_source(
        captured,
        "SELECT column_name::text AS name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name = 'runs' AND column_name <> 'id'",
    )
    names = ", ".join(row["name"] for row in columns)
    copied = captured.ask("SELECT max(run_id) AS run_id FROM trajectory.trajectories")[0]["run_id"]
    captured.change_source(f"INSERT INTO runs (id, {names}) SELECT '{new}', {names} FROM runs WHERE id = '{copied}'")
    delete_run(captured, deleted)
    again(captured)
    assert done == {"read": [new], "converted": [new, deleted]}
    files = state(captured)
    assert files == everything_again(captured)
    captured.change_source(f"UPDATE runs SET project_id = 'edited' WHERE id = '{copied}'")
    done.update(read=[], converted=[])
    again(captured)
    # What the source lacks is in the former file alone, so it is converted with what changed.
    assert done == {"read": [copied], "converted": [copied, deleted]}
    assert state(captured) == everything_again(captured)


def test_runs_edited_between_two_conversions_are_all_converted(captured: Pipeline, done: dict[str, list[str]]) -> None:
    first, last = (
        str(captured.ask(f"SELECT {name}(run_id) AS run_id FROM trajectory.trajectories")[0]["run_id"])
        for name in ("min", "max")
    )
    for run_id in (last, first):
        captured.change_source(f"UPDATE runs SET project_id = 'edited' WHERE id = '{run_id}'")
        captured.read(HOUR)
    captured.convert(HOUR)
    assert done == {"read": [last, first], "converted": [first, last]}
    assert state(captured) == everything_again(captured)


def test_run_that_cannot_be_converted_any_more_leaves_the_trajectories(
    captured: Pipeline, done: dict[str, list[str]]
) -> None:
    run_id = some_run(captured)
    captured.change_source(f"UPDATE messages SET tool_returns = '{{}}' WHERE run_id = '{run_id}'")
    again(captured)
    assert [row["run_id"] for row in captured.ask("SELECT run_id FROM trajectory.quarantine")] == [run_id]
    assert done == {"read": [run_id], "converted": [run_id]}
    assert state(captured) == everything_again(captured)
    captured.change_source(f"UPDATE messages SET tool_returns = '[]' WHERE run_id = '{run_id}'")
    again(captured)
    assert captured.ask("SELECT run_id FROM trajectory.quarantine") == []
    assert state(captured) == everything_again(captured)


def _lose_the_versions(pipeline: Pipeline) -> None:
    pipeline.do("DELETE FROM trajectory.run_versions")


def _edit_the_raw_file(pipeline: Pipeline) -> None:
    rows = list(pipeline.store.read(TERMINAL_RUNS, HOUR))
    pipeline.store.write(TERMINAL_RUNS, HOUR, [rows[0].slice(0, 1)])


def _come_from_another_source(pipeline: Pipeline) -> None:
    pipeline.do("UPDATE trajectory.partitions SET source_identity = 'another' WHERE asset = 'terminal_runs'")
    pipeline.do("UPDATE trajectory.run_versions SET scope = 'another'")


def _ask_for_all(pipeline: Pipeline) -> None:
    pipeline.do(
        "INSERT INTO trajectory.invalidations SELECT asset, asset, partition_key, 'asked', now()"
        " FROM trajectory.partitions"
    )


@pytest.mark.parametrize(
    "damage",
    some_heavy(
        [_lose_the_versions, _edit_the_raw_file, _come_from_another_source, _ask_for_all],
        *(_edit_the_raw_file, _come_from_another_source),
    ),
    ids=lambda do: do.__name__,
)
def test_all_runs_are_read_where_it_is_not_known_what_changed(
    captured: Pipeline, done: dict[str, list[str]], damage: Callable[[Pipeline], None]
) -> None:
    captured.change_source(f"UPDATE runs SET project_id = 'edited' WHERE id = '{some_run(captured)}'")
    damage(captured)
    again(captured)
    runs = captured.ask("SELECT run_id FROM trajectory.trajectories ORDER BY 1")
    assert sorted(done["read"]) == [row["run_id"] for row in runs]
    assert state(captured) == everything_again(captured)


@pytest.mark.parametrize("damage", ["a file", "a row"])
def test_all_runs_are_converted_where_a_sink_was_changed(
    captured: Pipeline, done: dict[str, list[str]], damage: str
) -> None:
    run_id = some_run(captured)
    captured.change_source(f"UPDATE runs SET project_id = 'edited' WHERE id = '{run_id}'")
    if damage == "a file":
        Path(captured.store.path_of(TRAJECTORIES, HOUR)).unlink()
    else:
        captured.do("UPDATE trajectory.trajectories SET agent_name = 'edited'")
    again(captured)
    assert done["read"] == [run_id]
    assert len(done["converted"]) == captured.ask("SELECT count(*) AS rows FROM trajectory.trajectories")[0]["rows"]
    assert state(captured) == everything_again(captured)


def test_source_that_masks_texts_is_not_followed(captured: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column policy leaves the versions of rows: unchanged runs that are read too show it."""
    monkeypatch.setattr(former_rows, "_CONTROL_RUNS", 20)
    before, tables_of = state(captured), Snapshot._tables_of

    def masked(snapshot: Snapshot, *given: Any) -> Any:
        tables = tables_of(snapshot, *given)
        at = tables.messages.schema.get_field_index("content")
        nothing = pa.array(['[{"type": "text", "text": "***"}]'] * tables.messages.num_rows)
        return replace(tables, messages=tables.messages.set_column(at, "content", nothing))

    monkeypatch.setattr(Snapshot, "_tables_of", masked)
    captured.change_source(f"UPDATE runs SET project_id = 'edited' WHERE id = '{some_run(captured)}'")
    with pytest.raises(WithheldDeletionsError, match="mask"):
        captured.read(HOUR)
    assert state(captured) == before


def test_erased_messages_stay_erased(captured: Pipeline, done: dict[str, list[str]]) -> None:
    captured.deleted = DeletedContent.ERASE
    runs = captured.ask("SELECT run_id FROM trajectory.trajectories WHERE message_count > 2 ORDER BY 1 LIMIT 2")
    erased, edited = (row["run_id"] for row in runs)
    captured.change_source(f"UPDATE messages SET is_deleted = true WHERE run_id = '{erased}'")
    again(captured)
    captured.change_source(f"UPDATE runs SET project_id = 'edited' WHERE id = '{edited}'")
    done.update(read=[], converted=[])
    again(captured)
    assert done == {"read": [edited], "converted": [edited]}
    (counts,) = captured.ask("SELECT counts FROM trajectory.partitions WHERE asset = 'terminal_runs'")
    assert counts["counts"]["erased_runs"] == 1, json.dumps(counts)
    assert state(captured) == everything_again(captured)
