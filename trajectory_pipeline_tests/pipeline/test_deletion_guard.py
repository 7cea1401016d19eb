"""A source that shows implausibly less stops the partition: nothing is marked, erased or lost until a person confirms.

Absence is no deletion: rows may be hidden, on another server, not restored yet, or not replicated yet.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.errors import PipelineError, SinkError, SourceError, WithheldDeletionsError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.erase_deleted import erase_partition
from trajectory_pipeline.partition_keys import parse_partition_key, partition_key
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.deletion_guard import FEW_RUNS, LARGEST_SHARE
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline.schema.enums import DeletedContent
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.parquet.store import StagedFile
from trajectory_pipeline_tests.conftest import FAST
from trajectory_pipeline_tests.letta.snapshots import changed
from trajectory_pipeline_tests.letta_sample import load_sample, sample_partitions
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, delete_run, some_run
from trajectory_pipeline_tests.server_databases import create_database

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
"""The partition with most runs."""
OTHERS = [hour for hour in sample_partitions() if hour != HOUR][:3]
READ_TABLES = (
    "runs",
    "steps",
    "messages",
    "run_metrics",
    "step_metrics",
    "agents",
    "agents_tags",
    "tools",
    "tools_agents",
    "provider_traces",
)


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    """Some partitions, captured while nothing was deleted; from now on, what is deleted is erased."""
    pipeline.capture(HOUR, *OTHERS)
    return replace(pipeline, deleted=DeletedContent.ERASE)


@pytest.fixture
def reader(captured: Pipeline) -> Iterator[Pipeline]:
    """The pipeline as an ordinary user with SELECT on all tables."""
    name = f"reader_{uuid4().hex[:12]}"
    captured.change_source(
        f"CREATE ROLE {name} LOGIN PASSWORD 'pw'", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"
    )
    yield replace(captured, letta_url=changed(captured.letta_url, user=name, password="pw"))
    captured.change_source(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def sinks(pipeline: Pipeline) -> tuple[dict[str, bytes], list[Row]]:
    return pipeline.files(), pipeline.ask("SELECT * FROM trajectory.trajectories ORDER BY run_id")


def refused(pipeline: Pipeline, *hours: datetime, error: type[PipelineError] = WithheldDeletionsError) -> str:
    """Capture partitions that must be refused, and return the last reason; the sinks must stay as they are."""
    before, text = sinks(pipeline), ""
    for hour in hours or (HOUR,):
        with pytest.raises(error) as raised:
            pipeline.capture(hour)
        text = str(raised.value)
    assert sinks(pipeline) == before
    return text


def a_run(pipeline: Pipeline) -> str:
    return some_run(pipeline, f"message_count > 2 AND partition_key = '{partition_key(HOUR)}'")


def accepted(pipeline: Pipeline, *hours: datetime) -> None:
    for hour in hours:
        pipeline.read(hour, accept_deletions=True)
        pipeline.convert(hour)


def deleted_runs(pipeline: Pipeline) -> set[str]:
    return {row["run_id"] for row in pipeline.ask("SELECT * FROM trajectory.trajectories WHERE deleted_at IS NOT NULL")}


# ---- rows that are hidden --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", some_heavy(READ_TABLES, "runs", "messages", "tools_agents"))
def test_row_level_security_on_a_read_table_is_refused(reader: Pipeline, captured: Pipeline, table: str) -> None:
    if table in ("tools", "tools_agents", "provider_traces"):
        # The sample has none.
        tools = "CREATE TABLE {0} (id varchar, tool_id varchar, agent_id varchar, step_id varchar, json_schema json,"
        tools += " request_json json)"
        for name in ("tools", "tools_agents", "provider_traces"):
            captured.change_source(tools.format(name), f"GRANT SELECT ON {name} TO PUBLIC")
    reader.capture(HOUR)
    captured.change_source(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    text = refused(reader, error=SourceError)
    assert f'row-level security policy for table "{table}"' in text
    assert "BYPASSRLS" in text
    assert "GRANT SELECT" not in text
    with pytest.raises(SourceError, match="BYPASSRLS"), LettaSource(reader.letta_url).snapshot() as snapshot:
        list(snapshot.terminal_runs(HOUR, HOUR.replace(hour=HOUR.hour + 1)))


def test_role_with_bypassrls_reads_all_rows(reader: Pipeline, captured: Pipeline) -> None:
    captured.change_source("ALTER TABLE runs ENABLE ROW LEVEL SECURITY")
    name = reader.letta_url.partition("//")[2].partition(":")[0]
    captured.change_source(f"ALTER ROLE {name} BYPASSRLS")
    reader.capture(HOUR)
    assert deleted_runs(reader) == set()


@pytest.mark.parametrize("privilege", ["runs", "messages (content)", "steps (model)"])
def test_revoked_privilege_is_refused(reader: Pipeline, captured: Pipeline, privilege: str) -> None:
    reader.capture(HOUR)
    table, _, column = privilege.partition(" (")
    name = reader.letta_url.partition("//")[2].partition(":")[0]
    kept = [
        f'"{row[0]}"'
        for row in psycopg.connect(captured.letta_url).execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table]
        )
        if row[0] != column.rstrip(")")
    ]
    captured.change_source(
        f"REVOKE SELECT ON {table} FROM {name}",
        *([f"GRANT SELECT ({', '.join(kept)}) ON {table} TO {name}"] if column else []),
        f"UPDATE runs SET stop_reason = stop_reason WHERE id = '{a_run(captured)}'",
    )
    assert "GRANT SELECT" in refused(reader, error=SourceError)


@pytest.mark.parametrize("table", some_heavy(["runs", "messages", "steps"], "messages"))
def test_view_that_hides_rows_is_refused(captured: Pipeline, table: str) -> None:
    captured.change_source(
        f"ALTER TABLE {table} RENAME TO all_{table}", f"CREATE VIEW {table} AS SELECT * FROM all_{table} WHERE false"
    )
    refused(captured, HOUR, *OTHERS)


# ---- rows and columns that are gone ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    some_heavy(["runs", "messages", "steps", "run_metrics", "step_metrics", "agents"], "messages", "step_metrics"),
)
def test_truncated_table_is_refused_in_every_partition(captured: Pipeline, table: str) -> None:
    captured.change_source(
        # Without what refers to it, as a restore that did not come so far.
        "DO $$ DECLARE c record; BEGIN FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint"
        " WHERE contype = 'f' LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.conname); END LOOP;"
        " END $$",
        f"TRUNCATE {table}",
    )
    hours = [
        hour
        for hour in (HOUR, *OTHERS)
        if hour in find_stale_partitions(LettaSource(captured.letta_url), captured.database, [HOUR, *OTHERS])
    ]
    text = refused(captured, *(hours or [HOUR]))
    assert "--accept-deletions" in text
    assert "trajectory/accept_deletions=true" in text


def test_small_partitions_emptied_one_by_one_are_refused(pipeline: Pipeline) -> None:
    small = [hour for hour, size in sample_partitions().items() if size <= 5]
    pipeline.capture(HOUR, *small)
    for hour in small:
        for run_id in pipeline.run_ids(hour):
            delete_run(pipeline, run_id)
    before = sinks(pipeline)
    for hour in small:
        with pytest.raises(WithheldDeletionsError):
            pipeline.read(hour)
    assert sinks(pipeline) == before


def test_deletions_of_many_agents_within_a_day_are_refused(captured: Pipeline) -> None:
    rows = captured.ask(
        "SELECT DISTINCT ON (agent_id, partition_key) run_id, partition_key, agent_id FROM trajectory.trajectories"
        " ORDER BY 2, 3, 1"
    )
    captured_again = 0
    for row in rows:
        delete_run(captured, row["run_id"])
        try:
            captured.capture(parse_partition_key(row["partition_key"]))
        except WithheldDeletionsError:
            break
        captured_again += 1
    plausible = int(LARGEST_SHARE * sum(sample_partitions()[hour] for hour in (HOUR, *OTHERS)))
    assert FEW_RUNS <= captured_again == plausible < len(rows) - 1
    assert len(deleted_runs(captured)) == plausible


def test_half_of_the_messages_of_every_run_is_refused(captured: Pipeline) -> None:
    captured.change_source("DELETE FROM messages m WHERE sequence_id % 3 <> 0")
    refused(captured)


HIDDEN_EVERYWHERE = {
    "the newest message of every run": "DELETE FROM messages m"
    " WHERE sequence_id = (SELECT max(sequence_id) FROM messages WHERE run_id = m.run_id)",
    "what users said": "DELETE FROM messages WHERE role = 'user'",
}


@pytest.mark.parametrize("statement", HIDDEN_EVERYWHERE.values(), ids=HIDDEN_EVERYWHERE)
def test_a_little_of_most_runs_at_once_is_refused(captured: Pipeline, statement: str) -> None:
    """A view or a half restored dump: no run lost half of its rows, and nearly all lost some."""
    captured.change_source("SET session_replication_role = replica", statement)
    assert "lack what they had" in refused(captured)


def test_a_message_of_few_runs_may_go(captured: Pipeline) -> None:
    captured.change_source(
        "DELETE FROM messages m WHERE sequence_id = (SELECT max(sequence_id) FROM messages WHERE run_id = m.run_id)"
        f" AND run_id IN (SELECT id FROM runs WHERE date_trunc('hour', completed_at) = '{HOUR}' ORDER BY id LIMIT 5)"
    )
    captured.capture(HOUR)


SMALL = {size: hour for hour, size in sample_partitions().items() if size <= FEW_RUNS}
"""An hour of each small size."""


@pytest.mark.heavy
@pytest.mark.parametrize(
    "statement", [*HIDDEN_EVERYWHERE.values(), "DELETE FROM steps"], ids=[*HIDDEN_EVERYWHERE, "steps"]
)
@pytest.mark.parametrize("others", [True, False], ids=["with others", "alone"])
@pytest.mark.parametrize("size", [1, 4])
def test_rows_hidden_in_a_small_hour_are_refused(pipeline: Pipeline, size: int, others: bool, statement: str) -> None:
    """Few runs are no proof: most of them lack rows, and so do those of other hours, or there are no others."""
    hour = SMALL[size]
    pipeline.capture(hour, *([HOUR] if others else []))
    pipeline.change_source("SET session_replication_role = replica", statement)
    assert "lack what they had" in refused(pipeline, hour) or statement == "DELETE FROM steps"


def test_rows_of_several_agents_hidden_in_a_small_hour_alone_are_refused(pipeline: Pipeline) -> None:
    """The runs of all other hours are whole, and people do not delete a message of each run of an hour."""
    hour = agents_apart(pipeline)
    pipeline.change_source(
        "DELETE FROM messages m WHERE sequence_id = (SELECT max(sequence_id) FROM messages WHERE run_id = m.run_id)"
        f" AND run_id IN ({of_hour(hour)})"
    )
    assert "runs of this partition lack what they had" in refused(pipeline, hour)
    accepted(pipeline, hour)


def of_hour(hour: datetime) -> str:
    return f"SELECT id FROM runs WHERE date_trunc('hour', completed_at) = '{hour:%Y-%m-%d %H:%M}'"


def agents_apart(pipeline: Pipeline, size: int = 4) -> datetime:
    """Return a small hour, captured after each of its runs was given to another agent; others are captured too."""
    hour = SMALL[size]
    for number, run_id in enumerate(sorted(source_runs(pipeline, hour))):
        pipeline.change_source(
            f"INSERT INTO agents SELECT (jsonb_populate_record(a, jsonb_build_object('id', 'agent-{number}'))).*"
            " FROM agents a WHERE id = (SELECT min(id) FROM agents)",
            f"UPDATE runs SET agent_id = 'agent-{number}' WHERE id = '{run_id}'",
            f"UPDATE messages SET agent_id = 'agent-{number}' WHERE run_id = '{run_id}'",
        )
    pipeline.capture(hour, HOUR)
    return hour


def source_runs(pipeline: Pipeline, hour: datetime) -> list[str]:
    with psycopg.connect(pipeline.letta_url) as connection:
        return [row[0] for row in connection.execute(of_hour(hour).encode())]


def test_deleted_message_of_one_run_in_a_small_hour_is_followed(pipeline: Pipeline) -> None:
    for size, hour in ((size, SMALL[size]) for size in (1, 4)):
        pipeline.capture(hour, HOUR)
        (run_id, *_) = sorted(pipeline.run_ids(hour))
        pipeline.change_source(
            f"DELETE FROM messages WHERE id = (SELECT max(id) FROM messages WHERE run_id = '{run_id}')"
        )
        before = message_counts(pipeline, hour)
        pipeline.capture(hour)
        assert sum(message_counts(pipeline, hour).values()) == sum(before.values()) - 1, size


def message_counts(pipeline: Pipeline, hour: datetime) -> dict[str, int]:
    return {row["run_id"]: len(row["messages"]) for row in pipeline.parquet(TERMINAL_RUNS, hour)}


@pytest.mark.parametrize("gone", ["agents", "one agent's messages", "one conversation's messages"])
def test_what_is_emptied_as_a_whole_in_a_small_hour_is_followed(pipeline: Pipeline, gone: str) -> None:
    hour = SMALL[4]
    runs = of_hour(hour)
    if gone == "agents":
        hour = agents_apart(pipeline)
        pipeline.change_source(
            "SET session_replication_role = replica",
            f"DELETE FROM agents WHERE id IN (SELECT agent_id FROM runs WHERE id IN ({runs}))",
        )
    else:
        # All of one agent; others in other hours. Or nobody has another agent, and the conversations differ.
        one, column = ("agent-of-all", "agent_id") if "agent" in gone else ("conv-of-all", "conversation_id")
        pipeline.change_source(
            "SET session_replication_role = replica",
            *([] if "agent" in gone else ["UPDATE runs SET agent_id = (SELECT min(id) FROM agents)"]),
            'INSERT INTO agents SELECT (jsonb_populate_record(a, \'{"id": "agent-of-all"}\')).*'
            " FROM agents a WHERE id = (SELECT min(id) FROM agents)",
            f"UPDATE runs SET {column} = '{one}' WHERE id IN ({runs})",
        )
        pipeline.capture(hour, HOUR)
    pipeline.change_source("SET session_replication_role = replica", f"DELETE FROM messages WHERE run_id IN ({runs})")
    pipeline.capture(hour)
    assert set(message_counts(pipeline, hour).values()) == {0}
    assert deleted_runs(pipeline) == set()


# ---- texts that are masked -------------------------------------------------------------------------------------------

_MASKED_TEXTS = (
    "(SELECT json_agg(CASE WHEN part ->> 'type' = 'text' THEN jsonb_set(part, '{{text}}', to_jsonb({0})) ELSE part END)"
    " FROM jsonb_array_elements(content::jsonb) part)"
)
_MASKED_ARGUMENTS = (
    "(SELECT json_agg(jsonb_set(call, '{{function,arguments}}', to_jsonb({0})))"
    " FROM jsonb_array_elements(tool_calls::jsonb) call)"
)
MASKS = {
    "texts by null": {"content": "NULL::json"},
    "texts by nothing": {"content": "'[]'::json"},
    "texts by an empty one": {"content": _MASKED_TEXTS.format("''::text")},
    "texts by a constant": {"content": _MASKED_TEXTS.format("'CONFIDENTIAL'::text")},
    "texts by a word that is no JSON of Letta's": {"content": "'\"***\"'::json"},
    "texts by stars": {"content": _MASKED_TEXTS.format("repeat('*', length(part ->> 'text'))")},
    "texts but their first letters": {"content": _MASKED_TEXTS.format("left(part ->> 'text', 2) || '****'")},
    "texts of users": {
        "content": f"CASE WHEN role = 'user' THEN {_MASKED_TEXTS.format(chr(39) + '***' + chr(39) + '::text')}"
        " ELSE content END"
    },
    "arguments by a constant": {"tool_calls": _MASKED_ARGUMENTS.format("'{}'::text")},
    "results by null": {"tool_returns": "NULL::json"},
    "everything": {"content": "'[]'::json", "tool_calls": "'[]'::json", "tool_returns": "'[]'::json", "text": "''"},
}


def mask(pipeline: Pipeline, expressions: dict[str, str], where: str = "true") -> None:
    """Put a view with masked columns in the place of the messages."""
    with psycopg.connect(pipeline.letta_url) as connection:
        names = [
            row[0]
            for row in connection.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = 'messages'"
                " ORDER BY ordinal_position"
            )
        ]
    columns = ", ".join(
        f"CASE WHEN {where} THEN {expressions[name]} ELSE {name} END AS {name}" if name in expressions else f'"{name}"'
        for name in names
    )
    pipeline.change_source(
        "ALTER TABLE messages RENAME TO all_messages", f"CREATE VIEW messages AS SELECT {columns} FROM all_messages"
    )


def unmask(pipeline: Pipeline) -> None:
    pipeline.change_source("DROP VIEW messages", "ALTER TABLE all_messages RENAME TO messages")


@pytest.mark.heavy
@pytest.mark.parametrize("expressions", MASKS.values(), ids=MASKS)
def test_masked_texts_are_refused(captured: Pipeline, expressions: dict[str, str]) -> None:
    mask(captured, expressions)
    text = refused(captured, HOUR)
    assert any(f"messages.{name}" in text for name in expressions)
    assert "--accept-deletions" in text
    unmask(captured)
    before = sinks(captured)
    captured.capture(HOUR)
    assert sinks(captured)[0] == before[0]


@pytest.mark.parametrize("size", [2, 4])
def test_masked_texts_of_a_small_hour_are_refused(pipeline: Pipeline, size: int) -> None:
    pipeline.capture(SMALL[size])
    mask(pipeline, MASKS["texts by a constant"])
    assert "messages.content" in refused(pipeline, SMALL[size])


def test_masked_texts_of_some_tenants_are_refused(captured: Pipeline) -> None:
    """Less than half of the runs, and more than a person changes."""
    some = sorted(captured.run_ids(HOUR))[: FEW_RUNS + 3]
    mask(captured, MASKS["texts by a constant"], f"run_id IN ({', '.join(map(repr, some))})")
    assert "messages.content of " in refused(captured)


def test_accepted_masks_are_followed(captured: Pipeline) -> None:
    mask(captured, MASKS["texts by a constant"])
    refused(captured)
    accepted(captured, HOUR)
    texts = [message["content"] for row in captured.parquet(TERMINAL_RUNS, HOUR) for message in row["messages"]]
    assert any("CONFIDENTIAL" in text for text in texts if text)
    assert captured.database.withheld_deletions() == {}
    captured.change_source("UPDATE runs SET stop_reason = 'end_turn'")
    captured.capture(HOUR)


IS_JSONB = "concat(content, tool_calls) NOT LIKE '%\\\\ud%'"
"""Without lone surrogates, which `jsonb` refuses."""
EDITS = {
    "each text gets a word more": "UPDATE messages SET content ="
    """ replace(content::text, '"text": "', '"text": "Edited. ')::json""",
    "each text is written anew": "UPDATE messages SET content = (SELECT json_agg(part || CASE WHEN part ? 'text' THEN"
    " jsonb_build_object('text', md5(part ->> 'text') || reverse(part ->> 'text')) ELSE '{}' END)"
    " FROM jsonb_array_elements(content::jsonb) part) WHERE json_typeof(content) = 'array'"
    f" AND {IS_JSONB}",
    "one run says nothing more": "UPDATE messages SET content = '[]', text = NULL, tool_calls = '[]',"
    " tool_returns = '[]' WHERE run_id = {run!r}",
    "one message of some runs is removed": "UPDATE messages m SET content ="
    ' \'[{{"type": "text", "text": "[removed]"}}]\' WHERE run_id IN (SELECT id FROM runs WHERE'
    " date_trunc('hour', completed_at) = '{hour}' ORDER BY id LIMIT 5) AND sequence_id ="
    " (SELECT max(sequence_id) FROM messages WHERE run_id = m.run_id)",
    "JSON is formatted anew": "UPDATE messages SET content = content::jsonb::json,"
    f" tool_calls = tool_calls::jsonb::json WHERE {IS_JSONB}",
    "messages that are marked as deleted say nothing more": "UPDATE messages SET is_deleted = true, content = '[]'",
}


@pytest.mark.heavy
@pytest.mark.parametrize("statement", EDITS.values(), ids=EDITS)
def test_edits_are_followed(captured: Pipeline, statement: str) -> None:
    if "{run" in statement or "{hour" in statement:
        statement = statement.format(run=a_run(captured), hour=f"{HOUR:%Y-%m-%d %H:%M}")
    captured.change_source(statement)
    captured.capture(HOUR)


@pytest.mark.parametrize("size", [1, 4])
def test_edit_in_a_small_hour_is_followed(pipeline: Pipeline, size: int) -> None:
    pipeline.capture(SMALL[size])
    run_id = min(pipeline.run_ids(SMALL[size]))
    pipeline.change_source(
        'UPDATE messages SET content = \'[{"type": "text", "text": "No."}]\''
        f" WHERE id = (SELECT max(id) FROM messages WHERE run_id = '{run_id}' AND length(content::text) > 20)"
    )
    pipeline.capture(SMALL[size])


def test_dropped_column_with_values_is_refused(captured: Pipeline) -> None:
    captured.change_source("ALTER TABLE steps DROP COLUMN model_handle, DROP COLUMN provider_name")
    assert "steps." in refused(captured)


def test_column_hidden_by_a_view_is_refused(captured: Pipeline) -> None:
    captured.change_source(
        "ALTER TABLE messages RENAME TO all_messages",
        "DO $$ BEGIN EXECUTE (SELECT 'CREATE VIEW messages AS SELECT ' || string_agg(CASE WHEN column_name = 'content'"
        " THEN 'NULL::json AS content' ELSE quote_ident(column_name) END, ', ') || ' FROM all_messages'"
        " FROM information_schema.columns WHERE table_name = 'all_messages'); END $$",
    )
    assert "messages.content" in refused(captured)


HIDDEN_ENDS = {
    "unknown status": "status = 'SUCCEEDED'",
    "no status": "status = NULL",
    "restarted": "status = 'running'",
}


@pytest.mark.parametrize("change", some_heavy(HIDDEN_ENDS, "restarted"))
def test_runs_that_all_at_once_have_not_ended_are_refused(pipeline: Pipeline, change: str) -> None:
    """As where a newer Letta has other words, or a view hides them: the runs would leave both sinks."""
    small = [hour for hour, size in sample_partitions().items() if size <= 5]
    pipeline.capture(HOUR, *small)
    pipeline.change_source(
        "ALTER TABLE runs ALTER status DROP NOT NULL", f"UPDATE runs SET status = {HIDDEN_ENDS[change]}"
    )
    assert "lack what they had" in refused(pipeline, HOUR, *small)


def test_runs_that_all_at_once_ended_before_the_start_are_refused(captured: Pipeline) -> None:
    captured.change_source("UPDATE runs SET completed_at = '1970-01-01'")
    before = sinks(captured)
    with pytest.raises(WithheldDeletionsError):
        materialize_terminal_runs(HOUR, LettaSource(captured.letta_url), captured.storage, start=min(HOUR, *OTHERS))
    assert sinks(captured) == before


def test_few_restarted_runs_depart(captured: Pipeline) -> None:
    run_id = a_run(captured)
    captured.change_source(f"UPDATE runs SET status = 'running' WHERE id = '{run_id}'")
    captured.capture(HOUR)
    assert run_id not in captured.run_ids(HOUR)


# ---- another source, or the same at another time ---------------------------------------------------------------------


def test_swapped_url_withholds_every_deletion(captured: Pipeline, make_database: Callable[[str | None], str]) -> None:
    """One run differs, and the other source is a copy of the first."""
    other = replace(captured, letta_url=make_database("template_letta"))
    delete_run(other, a_run(captured))
    assert "it is another source: " in refused(other)
    captured.capture(HOUR)
    assert captured.database.withheld_deletions() == {}
    assert deleted_runs(captured) == set()


def test_swapped_url_after_a_first_capture_that_did_not_end_is_refused(
    pipeline: Pipeline, make_database: Callable[[str | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is there, though nothing of it was committed."""
    publish = StagedFile.publish

    def publish_and_fail(staged: StagedFile) -> None:
        publish(staged)
        raise SinkError("A fault of the test.")

    with monkeypatch.context() as patch:
        patch.setattr(StagedFile, "publish", publish_and_fail)
        with pytest.raises(SinkError):
            pipeline.read(HOUR)
    other = replace(pipeline, letta_url=make_database("template_letta"))
    delete_run(other, pipeline.parquet(TERMINAL_RUNS, HOUR)[0]["run_id"])
    assert "it is another source: " in refused(other)


def test_swapped_url_withholds_messages_marked_as_deleted(
    captured: Pipeline, make_database: Callable[[str | None], str]
) -> None:
    other = replace(captured, letta_url=make_database("template_letta"))
    other.change_source(f"UPDATE messages SET is_deleted = true WHERE run_id = '{a_run(captured)}'")
    refused(other)


@pytest.fixture(scope="session")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder: Path = tmp_path_factory.mktemp("other") / "server"
    with embedded_postgres.start(folder, settings=FAST) as server:
        yield server
    embedded_postgres.remove(folder)


def test_server_on_an_empty_volume_is_refused(captured: Pipeline, other_server: EmbeddedServer) -> None:
    name = captured.letta_url.rpartition("/")[2]
    create_database(other_server, name)
    load_sample(other_server.url(name))
    other = replace(captured, letta_url=other_server.url(name))
    other.change_source("TRUNCATE runs, steps, messages, agents CASCADE")
    refused(other, HOUR, *OTHERS)


def test_source_behind_the_captured_state_is_refused(captured: Pipeline) -> None:
    """As a replica that lags: the run is not there yet."""
    captured.do("UPDATE trajectory.partitions SET source_position = source_position + 1000000000")
    delete_run(captured, a_run(captured))
    assert "is behind the state that was captured" in refused(captured)
    captured.do("UPDATE trajectory.partitions SET source_position = source_position - 1000000000")
    captured.capture(HOUR)
    assert len(deleted_runs(captured)) == 1


# ---- what goes on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", DeletedContent)
def test_accepted_deletions_are_marked_or_erased(captured: Pipeline, policy: DeletedContent) -> None:
    captured = replace(captured, deleted=policy)
    captured.change_source("TRUNCATE runs, steps, messages CASCADE")
    refused(captured, HOUR, *OTHERS)
    assert set(captured.database.withheld_deletions()) == set(map(partition_key, (HOUR, *OTHERS)))
    accepted(captured, HOUR)
    rows = captured.ask("SELECT * FROM trajectory.trajectories WHERE partition_key = %s", partition_key(HOUR))
    assert all(row["deleted_at"] for row in rows)
    assert all(row["erased"] == (policy == DeletedContent.ERASE) for row in rows)
    assert set(captured.database.withheld_deletions()) == set(map(partition_key, OTHERS))


def test_accepted_source_is_the_one_whose_deletions_count(
    captured: Pipeline, make_database: Callable[[str | None], str]
) -> None:
    other = replace(captured, letta_url=make_database("template_letta"))
    run_id, *_ = (row["run_id"] for row in captured.ask("SELECT run_id FROM trajectory.trajectories ORDER BY 1"))
    delete_run(other, a_run(captured))
    accepted(other, HOUR)
    hour = captured.hour_of_run(run_id)
    delete_run(other, run_id)
    other.capture(hour)
    assert run_id in deleted_runs(other)
    # And the former one is a foreign one now.
    delete_run(captured, min(captured.run_ids(OTHERS[0])))
    refused(captured, OTHERS[0])


def test_withheld_partition_is_stale_and_recovers_by_itself(captured: Pipeline) -> None:
    captured.change_source("ALTER TABLE runs RENAME TO kept", "CREATE VIEW runs AS SELECT * FROM kept WHERE false")
    refused(captured)
    captured.change_source("DROP VIEW runs", "ALTER TABLE kept RENAME TO runs")
    source = LettaSource(captured.letta_url)
    assert find_stale_partitions(source, captured.database, [HOUR]) == [HOUR]
    captured.capture(HOUR)
    assert find_stale_partitions(source, captured.database, [HOUR]) == []
    assert captured.database.withheld_deletions() == {}


def runs_of_busiest_agent(pipeline: Pipeline) -> tuple[str, set[str]]:
    agent_id = pipeline.ask("SELECT agent_id FROM trajectory.trajectories GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")[
        0
    ]["agent_id"]
    rows = pipeline.ask("SELECT * FROM trajectory.trajectories WHERE agent_id = %s", agent_id)
    return agent_id, {row["run_id"] for row in rows}


def test_agent_deleted_with_all_its_runs_is_plausible(captured: Pipeline) -> None:
    agent_id, mine = runs_of_busiest_agent(captured)
    assert len(mine) > 5
    for run_id in mine:
        delete_run(captured, run_id)
    captured.change_source(
        "ALTER TABLE agents RENAME TO kept", f"CREATE VIEW agents AS SELECT * FROM kept WHERE id <> '{agent_id}'"
    )
    captured.capture(HOUR, *OTHERS)
    assert deleted_runs(captured) == mine


def test_view_that_hides_the_runs_of_an_agent_that_is_there_is_refused(captured: Pipeline) -> None:
    agent_id, mine = runs_of_busiest_agent(captured)
    hours = {captured.hour_of_run(run_id) for run_id in mine}
    captured.change_source(
        "ALTER TABLE runs RENAME TO kept", f"CREATE VIEW runs AS SELECT * FROM kept WHERE agent_id <> '{agent_id}'"
    )
    assert "are gone, or lack what they had" in refused(captured, *hours)


def test_messages_of_one_agent_that_are_all_deleted_are_plausible(captured: Pipeline) -> None:
    agent_id, mine = runs_of_busiest_agent(captured)
    hours = {captured.hour_of_run(run_id) for run_id in mine}
    captured.change_source(f"DELETE FROM messages WHERE agent_id = '{agent_id}'")
    captured.capture(*hours)
    assert deleted_runs(captured) == set()


def test_erase_with_withheld_deletions_erases_nothing(captured: Pipeline) -> None:
    replace(captured, deleted=DeletedContent.KEEP).capture(HOUR)
    delete_run(captured, a_run(captured))
    replace(captured, deleted=DeletedContent.KEEP).capture(HOUR)
    captured.change_source("TRUNCATE runs, steps, messages CASCADE")
    before = sinks(captured)
    refused(captured)
    with pytest.raises(PipelineError, match="withheld"):
        erase_partition(HOUR, captured.storage)
    assert sinks(captured) == before


def test_missing_file_and_empty_source_lose_nothing(captured: Pipeline) -> None:
    """The trajectories in Postgres would leave with the raw rows."""
    captured.change_source("TRUNCATE runs, steps, messages CASCADE")
    Path(captured.store.path_of(TERMINAL_RUNS, HOUR)).unlink()
    refused(captured)
