r"""A run whose rows cannot be converted is quarantined with its raw rows; the others go on.

The next materialization tries it again, and removes it from quarantine if it can be converted. What can be read is
never quarantined: lone surrogates and ``\u0000`` are escaped in documents, and verbatim in raw rows.
"""

import json
import secrets
from datetime import datetime
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.conversion.document import trajectory_document
from trajectory_pipeline.lossless_json import write_json
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, only

HOUR = min(sample_partitions(), key=lambda hour: (abs(sample_partitions()[hour] - 8), hour))
RUNS = sample_partitions()[HOUR]


@pytest.fixture
def loose(pipeline: Pipeline) -> Pipeline:
    """A source whose JSON columns take any text, as some other database's might."""
    pipeline.change_source(
        "ALTER TABLE messages ALTER COLUMN content TYPE text USING content::text",
        "ALTER TABLE messages ALTER COLUMN tool_calls TYPE text USING tool_calls::text",
        "ALTER TABLE runs ALTER COLUMN metadata_ TYPE text USING metadata_::text",
    )
    return pipeline


def a_message(pipeline: Pipeline) -> tuple[str, str, str]:
    """A message of a run in the partition: run id, message id, content."""
    with psycopg.connect(pipeline.letta_url) as source:
        row = source.execute(
            "SELECT m.run_id, m.id, m.content::text FROM messages m JOIN runs r ON r.id = m.run_id"
            " WHERE date_trunc('hour', r.completed_at) = %s AND m.role = 'user' ORDER BY 1, 2 LIMIT 1",
            [HOUR.replace(tzinfo=None)],
        ).fetchone()
    assert row is not None
    return row


def set_content(pipeline: Pipeline, message_id: str, content: str) -> None:
    with psycopg.connect(pipeline.letta_url) as source:
        kind = source.execute(
            "SELECT format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = 'messages'::regclass AND attname = 'content'"
        ).fetchone()
        assert kind is not None
        source.execute(f"UPDATE messages SET content = %s::{kind[0]} WHERE id = %s".encode(), [content, message_id])


def quarantine(pipeline: Pipeline) -> list[Row]:
    return pipeline.ask("SELECT * FROM trajectory.quarantine ORDER BY run_id")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('[{"type": "text", "text": "cut', "is not valid JSON: Unterminated string"),
        ('[{"type": "text", "text": NaN}]', "is not valid JSON: NaN is no JSON number"),
        ('{"type": "text"}', "is an object, expected an array"),
        ('["text"]', "is a string, expected an object"),
    ],
)
def test_convert_unreadable_row_quarantines_its_run_only(loose: Pipeline, content: str, error: str) -> None:
    run_id, message_id, good = a_message(loose)
    set_content(loose, message_id, content)
    (result,) = loose.capture(HOUR)
    row = only(quarantine(loose))
    assert (row["run_id"], row["error"].startswith(error)) == (run_id, True), row["error"]
    assert row["json_path"].startswith(f"messages[{message_id}].content")
    raw = json.loads(row["raw"])
    assert content in [message["content"] for message in raw["messages"]]
    assert (len(raw["messages"]), len(raw["steps"])) == (row["messages"], row["steps"])
    counts = result.row_balance
    assert (counts.runs_in, counts.trajectories, counts.quarantined) == (RUNS, RUNS - 1, 1)
    assert counts.balanced
    assert len(loose.run_ids(HOUR)) == RUNS - 1
    verification = reconcile_partition(HOUR, loose.storage)
    assert verification.differences == ()
    assert verification.raw["runs"] == RUNS
    assert loose.database.ledger(TRAJECTORIES.name)[row["partition_key"]].result == "quarantined"

    # Tried again in vain, then mended.
    loose.capture(HOUR)
    assert only(quarantine(loose))["first_seen_at"] == row["first_seen_at"]
    set_content(loose, message_id, good)
    (mended,) = loose.capture(HOUR)
    assert (mended.row_balance.trajectories, mended.row_balance.quarantined) == (RUNS, 0)
    assert quarantine(loose) == []
    assert run_id in loose.run_ids(HOUR)
    assert loose.database.ledger(TRAJECTORIES.name)[row["partition_key"]].result == "complete"


def test_convert_run_that_becomes_unreadable_leaves_trajectories(loose: Pipeline) -> None:
    run_id, message_id, _ = a_message(loose)
    loose.capture(HOUR)
    assert run_id in loose.run_ids(HOUR)
    set_content(loose, message_id, "no JSON")
    loose.capture(HOUR)
    assert run_id not in loose.run_ids(HOUR)
    assert loose.trajectory(run_id) is None
    assert only(quarantine(loose))["run_id"] == run_id


def test_quarantine_raw_rows_equal_the_source(loose: Pipeline) -> None:
    run_id, message_id, _ = a_message(loose)
    odd = '[ {"type":"text","text":"\\ud83d\\u0000é"},  {"n":1.0e2} ] trailing'
    set_content(loose, message_id, odd)
    loose.capture(HOUR)
    (stored,) = [row for row in loose.parquet(TERMINAL_RUNS, HOUR) if row["run_id"] == run_id]
    assert odd in [message["content"] for message in stored["messages"]]
    assert odd in [message["content"] for message in json.loads(only(quarantine(loose))["raw"])["messages"]]


def test_convert_missing_required_value_quarantines_the_run(loose: Pipeline) -> None:
    run_id, _, _ = a_message(loose)
    loose.change_source(
        "ALTER TABLE runs ALTER COLUMN agent_id DROP NOT NULL",
        f"UPDATE runs SET agent_id = NULL WHERE id = '{run_id}'",
    )
    loose.capture(HOUR)
    row = only(quarantine(loose))
    assert row["json_path"].endswith(f"[{run_id}].agent_id")
    assert row["error"] == "is null"


# ---- odd, but readable --------------------------------------------------------------------------------------------


def captured_text(pipeline: Pipeline, content: str) -> tuple[Row, Row, str]:
    """Capture a message of this content; the trajectory in Parquet and in Postgres, and the raw text."""
    run_id, message_id, _ = a_message(pipeline)
    set_content(pipeline, message_id, content)
    pipeline.capture(HOUR)
    assert quarantine(pipeline) == []
    row = only(row for row in pipeline.parquet(TRAJECTORIES, HOUR) if row["run_id"] == run_id)
    raw = only(row for row in pipeline.parquet(TERMINAL_RUNS, HOUR) if row["run_id"] == run_id)
    stored = pipeline.trajectory(run_id)
    assert stored is not None
    return row, stored, only(m for m in raw["messages"] if m["id"] == message_id)["content"]


def first_part(document: Any) -> Any:
    return next(part for turn in document["turns"] for m in turn["messages"] for part in m["content"])


def test_escapes_show_in_documents_and_raw_rows_stay_verbatim(
    pipeline: Pipeline,
) -> None:
    content = '[{"type": "text", "text": "half \\ud83d, nul \\u0000, whole \\ud83d\\ude00, \\\\u0000"}]'
    row, stored, raw = captured_text(pipeline, content)
    seen = "half \\ud83d, nul \\u0000, whole 😀, \\u0000"
    assert first_part(stored["data"])["text"] == seen
    assert first_part(trajectory_document(row))["text"] == seen
    assert stored["escaped"] == row["escaped"]
    assert any(place.endswith("content[0].text") for place in row["escaped"])
    assert raw == content


def test_document_beyond_jsonb_is_whole_in_parquet_only(
    pipeline: Pipeline,
) -> None:
    deep = "[" * 400 + "]" * 400
    row, stored, raw = captured_text(pipeline, f'[{{"type": "text", "text": "x", "deep": {deep}}}]')
    assert deep in raw
    assert deep in write_json(trajectory_document(row))
    assert stored["data"] is None
    assert "nested more than" in stored["data_omitted_reason"]


def test_large_texts_and_scripts_pass_unchanged(pipeline: Pipeline) -> None:
    text = "שלום ‮ é é 👩‍👩‍👧 " + "x" * 2_000_000
    row, stored, _ = captured_text(pipeline, json.dumps([{"type": "text", "text": text}]))
    assert first_part(stored["data"])["text"] == first_part(trajectory_document(row))["text"] == text


def test_hour_of_these_tests_is_in_the_sample() -> None:
    assert isinstance(HOUR, datetime)
    assert RUNS > 2


LONG = secrets.token_hex(6_000)
"""No compression makes it fit into an index of Postgres."""


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (f"agent_id = '{LONG[:1_500]}', organization_id = '{LONG[:1_500]}'", "id+agent_id+organization_id"),
        (f"agent_id = '{LONG[:1_500]}', conversation_id = '{LONG[:1_500]}'", "agent_id+conversation_id"),
    ],
)
def test_run_whose_ids_no_index_can_hold_is_quarantined_alone(pipeline: Pipeline, change: str, path: str) -> None:
    run_id, _, _ = a_message(pipeline)
    with psycopg.connect(pipeline.letta_url) as source:
        source.execute("SET session_replication_role = replica")
        source.execute(f"UPDATE runs SET {change} WHERE id = %s".encode(), [run_id])
    (result,) = pipeline.capture(HOUR)
    assert (result.row_balance.trajectories, result.row_balance.quarantined) == (RUNS - 1, 1)
    row = only(quarantine(pipeline))
    assert (row["run_id"], row["json_path"]) == (run_id, f"runs[{run_id}].{path}")
    assert "bytes together, and an index can hold 2,070" in row["error"]


def test_names_that_no_index_can_hold_are_whole_in_the_document_and_short_in_the_lists(pipeline: Pipeline) -> None:
    """A model may call a tool that it makes up, by any name: that cost all runs of the hour."""
    run_id, _, _ = a_message(pipeline)
    calls = json.dumps([{"id": "call-1", "type": "function", "function": {"name": LONG, "arguments": "{}"}}])
    with psycopg.connect(pipeline.letta_url) as source:
        message = "SELECT min(id) FROM messages WHERE run_id = %s AND role = 'assistant'"
        source.execute(f"UPDATE messages SET tool_calls = %s::json WHERE id = ({message})".encode(), [calls, run_id])
        source.execute("UPDATE steps SET model = %s WHERE run_id = %s", [LONG, run_id])
    (result,) = pipeline.capture(HOUR)
    assert (result.row_balance.trajectories, result.row_balance.quarantined) == (RUNS, 0)
    trajectory = pipeline.trajectory(run_id)
    assert trajectory is not None
    for names in (trajectory["tools_used"], trajectory["models"]):
        (short,) = [name for name in names if name.startswith(LONG[:100])]
        assert short.endswith(LONG[-50:])
        assert len(short) < 1_000
    assert LONG in {turn["model"] for turn in trajectory["data"]["turns"]}
    calls_made = [
        call["function"]["name"]
        for turn in trajectory["data"]["turns"]
        for message in turn["messages"]
        for call in message.get("tool_calls") or ()
    ]
    assert LONG in calls_made
