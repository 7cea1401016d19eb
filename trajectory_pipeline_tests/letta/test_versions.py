"""Letta 0.12.0 to 0.16.8 and what may come: an older server's rows read as nulls where it lacks a column.

Older databases are made from the sample by dropping what that version did not have. A newer one is read, and its
unknown columns are reported; only what makes a trajectory impossible is refused, by name.
"""

import json

import psycopg
import pytest

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.letta.catalog import Catalog
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.schema.raw import MESSAGES, RUN_METRICS, RUNS, SOURCE_TABLES, STEP_METRICS, STEPS
from trajectory_pipeline_tests.letta.snapshots import (
    Row,
    all_batches,
    all_runs,
    ask,
    changed,
    columns_of,
    do,
)
from trajectory_pipeline_tests.letta.versions import VERSIONS, create_statement, tables

FIELDS = {
    "run": RUNS,
    "run_metrics": RUN_METRICS,
    "steps": STEPS,
    "foreign_steps": STEPS,
    "step_metrics": STEP_METRICS,
    "messages": MESSAGES,
}
BROUGHT_BY_THE_SAMPLE = {"runs", "steps", "messages", "run_metrics", "step_metrics", "agents", "agents_tags"}


def without(run: Row, columns: dict[str, frozenset[str]]) -> Row:
    """The run as a server would give it that has these columns only."""
    changed_run = dict(run)
    for field, table in FIELDS.items():
        rows = run[field] if isinstance(run[field], list) else [run[field]] if run[field] else []
        nulled = [{name: value if name in columns[table.name] else None for name, value in row.items()} for row in rows]
        changed_run[field] = nulled if isinstance(run[field], list) else nulled[0] if nulled else None
    return changed_run


def absent_tables(catalog: Catalog) -> list[str]:
    return sorted(table.name for table in SOURCE_TABLES if table.name not in catalog.columns)


def test_columns_are_known_since_their_version() -> None:
    for table in SOURCE_TABLES:
        for column in table.columns:
            have = [version for version in VERSIONS if column.name in tables(version)[table.name]]
            assert have, f"{table.name}.{column.name} is in no version"
            assert column.since == have[0], f"{table.name}.{column.name}"
            assert not column.required or have == list(VERSIONS), f"{table.name}.{column.name} cannot be required"


def test_columns_of_runs_steps_and_messages_are_all_known() -> None:
    newest = tables(VERSIONS[-1])
    for table in (RUNS, STEPS, MESSAGES):
        assert {column.name for column in table.columns} == newest[table.name]


def test_sample_is_of_the_newest_version(untouched_sample: str) -> None:
    sample, newest = columns_of(untouched_sample), tables("0.16.8")
    assert {table: sample[table] for table in BROUGHT_BY_THE_SAMPLE} == {
        table: newest[table] for table in BROUGHT_BY_THE_SAMPLE
    }
    with LettaSource(untouched_sample).snapshot() as snapshot:
        assert snapshot.catalog.unknown_columns == []
        assert snapshot.catalog.absent_columns == []
        assert absent_tables(snapshot.catalog) == ["provider_traces", "tools", "tools_agents"]


@pytest.mark.parametrize("version", VERSIONS)
def test_older_server_gives_the_same_rows_with_nulls(letta_database: str, version: str) -> None:
    before = all_runs(letta_database)
    columns = tables(version)
    absent = sorted(
        f"{table}.{column}" for table in BROUGHT_BY_THE_SAMPLE for column in tables("0.16.8")[table] - columns[table]
    )
    do(
        letta_database,
        *(f"ALTER TABLE {name.replace('.', ' DROP COLUMN ')} CASCADE" for name in absent),
        *(create_statement(version, table) for table in ("provider_traces", "tools", "tools_agents")),
    )
    assert all_runs(letta_database) == {run_id: without(run, columns) for run_id, run in before.items()}
    known = {f"{table.name}.{column.name}" for table in SOURCE_TABLES for column in table.columns}
    if version != "0.16.8":
        absent.append("provider_traces.call_type")
    with LettaSource(letta_database).snapshot() as snapshot:
        assert snapshot.catalog.absent_columns == sorted(known.intersection(absent))
        assert absent_tables(snapshot.catalog) == []
        assert snapshot.catalog.unknown_columns == []


def test_newer_server_is_read_and_its_new_columns_reported(letta_database: str) -> None:
    before = all_batches(letta_database)
    do(
        letta_database,
        "CREATE TYPE quality AS ENUM ('good')",
        "ALTER TABLE runs ADD COLUMN quality quality DEFAULT 'good'",
        'ALTER TABLE messages ADD COLUMN "Odd ""name""" point[]',
        "ALTER TABLE agents ADD COLUMN of_no_concern text",
        "CREATE TABLE qualities (id text)",
    )
    assert all_batches(letta_database) == before
    with LettaSource(letta_database).snapshot() as snapshot:
        assert snapshot.catalog.unknown_columns == ['messages.Odd "name"', "runs.quality"]


def test_optional_tables_may_all_be_missing(letta_database: str) -> None:
    do(letta_database, "DROP TABLE run_metrics, step_metrics, agents_tags", "DROP TABLE agents CASCADE")
    runs = all_runs(letta_database)
    assert len(runs) == 317
    assert {
        str([run["run_metrics"], run["step_metrics"], run["agent"], run["agent_tags"]]) for run in runs.values()
    } == {"[None, [], None, []]"}


def test_each_missing_required_column_is_named(letta_database: str) -> None:
    with psycopg.connect(letta_database, autocommit=True) as connection:
        for table in (RUNS, STEPS, MESSAGES):
            for column in (column.name for column in table.columns if column.required):
                connection.execute(f"ALTER TABLE {table.name} RENAME {column} TO elsewhere".encode())
                with pytest.raises(SourceError) as refused, LettaSource(letta_database).snapshot():
                    pass
                assert f"table public.{table.name} of the source" in str(refused.value)
                assert f"required column(s) '{column}': this version of Letta is not supported" in str(refused.value)
                connection.execute(f"ALTER TABLE {table.name} RENAME elsewhere TO {column}".encode())


def test_each_missing_required_table_is_named(letta_database: str) -> None:
    for table in ("messages", "steps", "runs"):
        do(letta_database, f"DROP TABLE {table} CASCADE")
        with (
            pytest.raises(SourceError, match=f"has no table '{table}'.*Check the database name in LETTA_PG_URI"),
            LettaSource(letta_database).snapshot(),
        ):
            pass


def test_json_stored_as_jsonb_or_text_is_read(letta_database: str) -> None:
    before = all_runs(letta_database)
    do(
        letta_database,
        "ALTER TABLE messages ALTER tool_calls TYPE jsonb USING tool_calls::jsonb",
        "ALTER TABLE messages ALTER content TYPE text",
        "ALTER TABLE runs ALTER metadata_ TYPE jsonb USING metadata_::jsonb",
    )
    for run_id, run in all_runs(letta_database).items():
        for message, expected in zip(run["messages"], before[run_id]["messages"], strict=True):
            assert json.loads(message["tool_calls"]) == json.loads(expected["tool_calls"])
            assert message["content"] == expected["content"]
        assert json.loads(run["run"]["metadata_"]) == json.loads(before[run_id]["run"]["metadata_"])


def test_times_with_or_without_a_zone_are_read(letta_database: str) -> None:
    before = all_batches(letta_database)
    do(
        letta_database,
        "ALTER TABLE runs ALTER completed_at TYPE timestamptz USING completed_at AT TIME ZONE 'UTC',"
        " ALTER created_at TYPE timestamp(6) USING created_at AT TIME ZONE 'UTC'",
        "ALTER TABLE messages ALTER created_at TYPE timestamp USING created_at AT TIME ZONE 'UTC'",
        "ALTER TABLE steps ALTER created_at DROP DEFAULT,"
        " ALTER created_at TYPE timestamp USING created_at AT TIME ZONE 'UTC'",
    )
    assert all_batches(letta_database) == before


def test_statuses_and_roles_of_enum_type_are_read(letta_database: str) -> None:
    before = all_batches(letta_database)
    do(
        letta_database,
        # Without 'cancelled' and with one of its own: what is asked for may be no label at all.
        "UPDATE runs SET status = 'failed' WHERE status = 'cancelled'",
        "CREATE TYPE runstatus AS ENUM ('created', 'running', 'completed', 'failed', 'expired')",
        "ALTER TABLE runs ALTER status TYPE runstatus USING status::runstatus",
        "CREATE TYPE role AS ENUM ('user', 'assistant', 'tool', 'approval', 'summary', 'system')",
        "ALTER TABLE messages ALTER role TYPE role USING role::role",
        "ALTER TABLE steps ALTER status TYPE varchar USING status::varchar",
    )
    after = all_runs(letta_database)
    assert len(after) == sum(batch.num_rows for batch in before)
    assert {run["run"]["status"] for run in after.values()} == {"completed", "failed"}


@pytest.mark.parametrize("kind", ["text", 'varchar(60) COLLATE "C"'])
def test_ids_of_any_text_type_are_read(letta_database: str, kind: str) -> None:
    before = all_batches(letta_database)
    do(
        letta_database,
        f"ALTER TABLE runs ALTER id TYPE {kind}",
        f"ALTER TABLE steps ALTER run_id TYPE {kind}, ALTER id TYPE {kind}",
        f"ALTER TABLE messages ALTER run_id TYPE {kind}, ALTER step_id TYPE {kind}",
    )
    assert all_batches(letta_database) == before


def test_ids_of_type_uuid_are_read(letta_database: str) -> None:
    foreign_keys = ask(
        letta_database, "SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint WHERE contype = 'f'"
    )
    messages = {
        run_id.removeprefix("run-"): [message["content"] for message in run["messages"]]
        for run_id, run in all_runs(letta_database).items()
    }
    columns = (
        ("runs", "id"),
        ("steps", "run_id"),
        ("messages", "run_id"),
        ("run_metrics", "id"),
        ("step_metrics", "run_id"),
    )
    do(
        letta_database,
        *(f"ALTER TABLE {table} DROP CONSTRAINT {name}" for table, name in foreign_keys),
        *(
            f"ALTER TABLE {table} ALTER {column} TYPE uuid USING replace({column}, 'run-', '')::uuid"
            for table, column in columns
        ),
    )
    runs = all_runs(letta_database)
    assert {run_id: [message["content"] for message in run["messages"]] for run_id, run in runs.items()} == messages
    with LettaSource(letta_database).snapshot() as snapshot:
        assert all(where.terminal for where in snapshot.run_locations(list(runs)).values())


def test_catalog_finds_letta_in_another_schema(letta_database: str) -> None:
    before = all_batches(letta_database)
    do(
        letta_database,
        'ALTER SCHEMA public RENAME TO "Letta""s"',
        "CREATE SCHEMA public",
        "CREATE TABLE public.runs (id bigint, run_id text, status text)",
    )
    assert all_batches(letta_database) == before
    with LettaSource(letta_database).snapshot() as snapshot:
        assert snapshot.catalog.schema == 'Letta"s'


def test_catalog_of_two_schemas_follows_the_search_path(letta_database: str) -> None:
    do(
        letta_database,
        "CREATE SCHEMA staging",
        *(f"CREATE TABLE staging.{t} (LIKE public.{t})" for t in ("runs", "steps", "messages")),
    )
    assert len(all_runs(letta_database)) == 317
    staging = changed(letta_database, query="options=-c%20search_path%3Dstaging,public")
    with LettaSource(staging).snapshot() as snapshot:
        assert snapshot.catalog.schema == "staging"
        assert absent_tables(snapshot.catalog) == [
            table.name
            for table in sorted(SOURCE_TABLES, key=lambda t: t.name)
            if table.name not in ("runs", "steps", "messages")
        ]
    assert all_runs(staging) == {}


def test_views_are_read_as_tables(letta_database: str) -> None:
    before = all_batches(letta_database)
    names = sorted(BROUGHT_BY_THE_SAMPLE)
    do(
        letta_database,
        "ALTER SCHEMA public RENAME TO hidden",
        "CREATE SCHEMA public",
        *(f"CREATE VIEW public.{name} AS SELECT * FROM hidden.{name}" for name in names),
        "ALTER TABLE hidden.runs RENAME TO runs_hidden",
    )
    assert all_batches(letta_database) == before
