"""What the source holds is what comes out: every terminal run once, with all its rows, each value as it is there.

The rows are compared with the data file itself, which is what ``pg_dump`` wrote: the text of every column, JSON byte
for byte. Neither the session's time zone nor the order of rows on disk may show.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from trajectory_pipeline.demo.letta_sample import dump
from trajectory_pipeline.letta import snapshot as snapshots
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.schema import versions
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.raw import (
    AGENTS,
    MESSAGES,
    RUN_METRICS,
    RUNS,
    STEP_METRICS,
    STEPS,
    TERMINAL_RUNS,
    SourceTable,
)
from trajectory_pipeline.schema.types import Scalar
from trajectory_pipeline_tests.conversion.output_record import check_output, json_digest, parquet_digest
from trajectory_pipeline_tests.letta.snapshots import Row, all_batches, all_runs, ask, changed, do, hours
from trajectory_pipeline_tests.letta_sample import (
    SAMPLE_FILE,
    sample_partitions,
    sample_terminal_run_ids,
)

FILE = {
    block.table.removeprefix("public."): {
        row.get("id") or str(number): row for number, row in enumerate(block.records())
    }
    for block in dump.copy_blocks(dump.read(SAMPLE_FILE))
}
TERMINAL = sample_terminal_run_ids()


def as_in_file(table: SourceTable, row: dict[str, str | None]) -> Row:
    """A row of the data file with the types that it is read as; JSON stays the text that it is."""
    return {column.name: _typed(column.type, row.get(column.name)) for column in table.columns}


def _typed(kind: Scalar, text: str | None) -> Any:
    if text is None:
        return None
    match kind:
        case Scalar.INT:
            return int(text)
        case Scalar.BOOL:
            return {"t": True, "f": False}[text]
        case Scalar.TIMESTAMP | Scalar.NAIVE_TIMESTAMP:
            return datetime.fromisoformat(text)
    return text


def rows_in_file(table: SourceTable, column: str, value: str) -> list[Row]:
    return [as_in_file(table, row) for row in FILE[table.name].values() if row[column] == value]


def test_terminal_runs_read_by_hour_come_once(untouched_sample: str) -> None:
    found: dict[datetime, list[str]] = {}
    with LettaSource(untouched_sample).snapshot() as snapshot:
        for start, end in hours():
            for batch in snapshot.terminal_runs(start, end):
                found.setdefault(start, []).extend(map(str, batch["run_id"].to_pylist()))
    assert {hour: len(ids) for hour, ids in found.items()} == sample_partitions()
    assert len(TERMINAL) == 317
    assert Counter(run_id for ids in found.values() for run_id in ids) == Counter(TERMINAL)
    assert all(ids == sorted(ids) for ids in found.values())


def test_rows_of_a_terminal_run_equal_the_data_file(untouched_sample: str) -> None:
    runs = all_runs(untouched_sample)
    assert runs.keys() == TERMINAL
    for run_id, row in runs.items():
        assert row["run"] == as_in_file(RUNS, FILE["runs"][run_id])
        assert row["run_metrics"] == as_in_file(RUN_METRICS, FILE["run_metrics"][run_id])
        steps = sorted(rows_in_file(STEPS, "run_id", run_id), key=lambda step: step["id"])
        assert row["steps"] == steps
        assert row["messages"] == sorted(
            rows_in_file(MESSAGES, "run_id", run_id), key=lambda message: message["sequence_id"]
        )
        metrics = [FILE["step_metrics"][step["id"]] for step in steps if step["id"] in FILE["step_metrics"]]
        assert row["step_metrics"] == [as_in_file(STEP_METRICS, each) for each in metrics]
        agent_id = row["run"]["agent_id"]
        assert row["agent"] == as_in_file(AGENTS, FILE["agents"][agent_id])
        tags = FILE["agents_tags"].values()
        assert row["agent_tags"] == sorted(str(tag["tag"]) for tag in tags if tag["agent_id"] == agent_id)
        assert row["deleted_at"] is None


def test_steps_and_messages_of_terminal_runs_are_read_once(untouched_sample: str) -> None:
    runs = all_runs(untouched_sample).values()
    for table, column in ((STEPS, "steps"), (MESSAGES, "messages")):
        expected = {row_id for row_id, row in FILE[table.name].items() if row["run_id"] in TERMINAL}
        assert Counter(each["id"] for run in runs for each in run[column]) == Counter(expected)


def test_read_of_a_lone_surrogate_keeps_it_as_written(letta_database: str) -> None:
    surrogates = [
        message["content"]
        for run in all_runs(letta_database).values()
        for message in run["messages"]
        if "\\ud83d" in message["content"]
    ]
    assert surrogates
    do(letta_database, """UPDATE runs SET metadata_ = '{"lone": "\\ud83d", "nul": "\\u0000", "lone": 1e999}'""")
    do(letta_database, """UPDATE steps SET error_data = '{"deep": "\\udc00"}'""")
    runs = all_runs(letta_database)
    assert {run["run"]["metadata_"] for run in runs.values()} == {
        '{"lone": "\\ud83d", "nul": "\\u0000", "lone": 1e999}'
    }


def test_batches_have_the_declared_schema_and_hold_valid_text(untouched_sample: str) -> None:
    for batch in all_batches(untouched_sample):
        assert batch.schema.equals(arrow_schema(TERMINAL_RUNS), check_metadata=True)
        batch.validate(full=True)


def test_window_is_half_open_to_the_microsecond(letta_database: str) -> None:
    run_id = min(TERMINAL)
    at = datetime(2030, 1, 1, 12, tzinfo=UTC)
    do(letta_database, f"UPDATE runs SET completed_at = '2030-01-01 12:00:00' WHERE id = '{run_id}'")
    tick, hour = timedelta(microseconds=1), timedelta(hours=1)
    with LettaSource(letta_database).snapshot() as snapshot:
        assert snapshot.run_ids(at, at + hour) == [run_id]
        assert snapshot.run_ids(at - hour, at) == []
        assert snapshot.run_ids(at, at + tick) == [run_id]
        assert snapshot.run_ids(at + tick, at + hour) == []


def test_window_in_another_time_zone_finds_the_same_runs(untouched_sample: str) -> None:
    start, end = max(sample_partitions(), key=lambda hour: sample_partitions()[hour]), timedelta(hours=1)
    kathmandu = ZoneInfo("Asia/Kathmandu")
    with LettaSource(untouched_sample).snapshot() as snapshot:
        expected = snapshot.run_ids(start, start + end)
        assert expected
        assert snapshot.run_ids(start.astimezone(kathmandu), (start + end).astimezone(kathmandu)) == expected


def test_run_without_an_end_belongs_to_its_creation_hour(letta_database: str) -> None:
    run_id = min(TERMINAL)
    do(
        letta_database,
        "UPDATE runs SET completed_at = NULL, created_at = '2030-01-01 14:30:00+02:00' WHERE id = '" + run_id + "'",
    )
    at = datetime(2030, 1, 1, 12, tzinfo=UTC)
    with LettaSource(letta_database).snapshot() as snapshot:
        assert snapshot.run_ids(at, at + timedelta(hours=1)) == [run_id]
        assert len(snapshot.run_ids(at - timedelta(days=9999), at)) == 316


def test_run_that_is_not_terminal_is_not_read(letta_database: str) -> None:
    do(letta_database, "UPDATE runs SET status = 'running'")
    assert all_runs(letta_database) == {}


def test_settings_of_the_server_change_nothing(letta_database: str) -> None:
    with_backslash = r"UPDATE public.messages SET text = E'back\\slash ’ \U0001F600' WHERE role = 'user'"
    do(letta_database, "SET standard_conforming_strings = on", with_backslash)
    before = all_batches(letta_database)
    database, user = ask(letta_database, "SELECT quote_ident(current_database()), quote_ident(current_user)")[0]
    settings = (
        "timezone = 'America/St_Johns'",
        "datestyle = 'SQL, DMY'",
        "client_encoding = 'LATIN1'",
        "search_path = ''",
        "standard_conforming_strings = off",
        "default_transaction_isolation = 'serializable'",
        "idle_in_transaction_session_timeout = 500",
    )
    do(letta_database, *(f"ALTER DATABASE {database} SET {setting}" for setting in settings))
    assert all_batches(letta_database) == before
    do(letta_database, f"ALTER ROLE {user} IN DATABASE {database} SET timezone = 'Asia/Tokyo'")
    assert all_batches(letta_database) == before
    texts = {message["text"] for run in all_runs(letta_database).values() for message in run["messages"]}
    assert "back\\slash ’ 😀" in texts


@pytest.mark.parametrize(("variable", "value"), [("PGTZ", "Asia/Tokyo"), ("PGCLIENTENCODING", "LATIN1")])
def test_environment_variables_of_libpq_change_nothing(
    untouched_sample: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    before = all_batches(untouched_sample)
    monkeypatch.setenv(variable, value)
    assert all_batches(untouched_sample) == before


def test_settings_in_the_url_change_nothing(untouched_sample: str) -> None:
    zone = changed(untouched_sample, query="options=-c%20timezone%3DAsia/Tokyo")
    assert all_batches(zone) == all_batches(untouched_sample)


def test_order_on_disk_does_not_change_the_rows(letta_database: str) -> None:
    before = all_batches(letta_database)
    indexes = ask(
        letta_database,
        "SELECT c.relname, i.relname FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_class i"
        " ON i.oid = x.indexrelid WHERE x.indisprimary AND c.relnamespace = 'public'::regnamespace",
    )
    do(letta_database, *(f'CLUSTER public."{table}" USING "{index}"' for table, index in indexes))
    # Some rows are added after all others.
    do(
        letta_database,
        "UPDATE messages SET is_err = is_err WHERE sequence_id % 3 = 0",
        "UPDATE agents_tags SET tag = tag",
    )
    assert all_batches(letta_database) == before


def test_batch_size_does_not_change_the_rows(untouched_sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_batches(untouched_sample)
    assert len(whole) == 1
    monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", 50)
    by_count = all_batches(untouched_sample)
    assert [batch.num_rows for batch in by_count] == [50] * 6 + [17]
    monkeypatch.setattr(snapshots, "BYTES_PER_BATCH", 20_000)
    by_bytes = all_batches(untouched_sample)
    assert len(by_bytes) > 20
    for batches in (by_count, by_bytes):
        assert pa.Table.from_batches(batches).combine_chunks().to_batches() == whole


def test_infinite_time_reads_as_null(letta_database: str) -> None:
    run_id = min(TERMINAL)
    do(
        letta_database,
        f"UPDATE runs SET completed_at = 'infinity', updated_at = '-infinity' WHERE id = '{run_id}'",
    )
    row = all_runs(letta_database)[run_id]["run"]
    assert (row["completed_at"], row["updated_at"]) == (None, None)


def test_run_locations_say_where_a_run_is(letta_database: str) -> None:
    there, again, gone = sorted(TERMINAL)[:3]
    do(
        letta_database,
        f"UPDATE runs SET status = 'running' WHERE id = '{again}'",
        f"DELETE FROM runs WHERE id = '{gone}'",
    )
    with LettaSource(letta_database).snapshot() as snapshot:
        where = snapshot.run_locations([there, again, gone])
        assert {run_id: (each.exists, each.terminal) for run_id, each in where.items()} == {
            there: (True, True),
            again: (True, False),
            gone: (False, False),
        }
        assert snapshot.run_locations([]) == {}


def test_raw_rows_of_the_sample_match_the_record(untouched_sample: str, tmp_path: Path) -> None:
    """Changed raw rows make partitions stale: they need another ``CAPTURE_VERSION``."""
    batches = all_batches(untouched_sample)
    check_output(
        Path(__file__).with_name("recorded_output.json"),
        "CAPTURE_VERSION (schema/versions.py)",
        versions.CAPTURE_VERSION,
        {
            "rows": json_digest(row for batch in batches for row in batch.to_pylist()),
            "parquet_file": parquet_digest(TERMINAL_RUNS, batches, tmp_path),
        },
    )
