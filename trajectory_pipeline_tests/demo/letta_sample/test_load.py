"""Loading the sample into a real server: everything or nothing, never over anything else, errors that help."""

import gzip
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from trajectory_pipeline.demo.letta_sample import load
from trajectory_pipeline.errors import SourceError
from trajectory_pipeline_tests.letta_sample import (
    SAMPLE_FILE,
    load_sample,
    sample_counts,
    sample_partitions,
    sample_terminal_run_ids,
)

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S') ORDER BY 1"


def ask(url: str, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(question.encode()).fetchall()


def do(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(statement.encode())


def changed(url: str, **parts: str) -> str:
    """The URL with another database, user or password."""
    split = urlsplit(url)
    user, password = parts.get("user", split.username or ""), parts.get("password", split.password)
    credentials = f"{user}:{password}@" if password else f"{user}@" if user else ""
    host = split.netloc.rpartition("@")[2]
    query = f"?{split.query}" if split.query else ""
    return f"{split.scheme}://{credentials}{host}/{parts.get('database', split.path[1:])}{query}"


def test_load_sample_loads_every_row(empty_database: str) -> None:
    counts = load_sample(empty_database)
    assert counts == sample_counts()
    for table in ("organizations", "agents", "conversations", "runs", "steps", "messages"):
        assert ask(empty_database, f"SELECT count(*) FROM public.{table}") == [(getattr(counts, table),)]
    terminal = ask(empty_database, "SELECT id FROM public.runs WHERE status IN ('completed', 'failed', 'cancelled')")
    assert {run_id for (run_id,) in terminal} == sample_terminal_run_ids()


def test_load_sample_creates_indexes_and_constraints(empty_database: str) -> None:
    load_sample(empty_database)
    indexes = {name for (name,) in ask(empty_database, "SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")}
    assert {"ix_runs_created_at", "ix_messages_run_sequence", "uq_messages_sequence_id", "ix_steps_run_id"} <= indexes
    (row,) = ask(empty_database, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'")
    assert row[0] == gzip.decompress(SAMPLE_FILE.read_bytes()).decode().count("FOREIGN KEY (")
    # The next message continues the sequence instead of colliding with a sample row.
    (row,) = ask(empty_database, "SELECT nextval('public.message_seq_id') > max(sequence_id) FROM public.messages")
    assert row[0] is True


def test_sample_partitions_equal_those_of_the_database(empty_database: str) -> None:
    load_sample(empty_database)
    rows = ask(
        empty_database,
        "SELECT date_trunc('hour', completed_at) AT TIME ZONE 'UTC', count(*) FROM public.runs"
        " WHERE completed_at IS NOT NULL GROUP BY 1",
    )
    assert dict(rows) == sample_partitions()


def test_load_sample_ignores_the_session_time_zone(empty_database: str) -> None:
    separator = "&" if "?" in empty_database else "?"
    load_sample(f"{empty_database}{separator}options=-c%20timezone%3DAsia/Tokyo")
    (row,) = ask(empty_database, "SELECT min(completed_at) FROM public.runs")
    first = min(sample_partitions())
    assert isinstance(row[0], datetime)
    assert row[0].replace(minute=0, second=0, microsecond=0) == first.replace(tzinfo=None)


def test_load_sample_twice_reports_nothing_to_do(empty_database: str) -> None:
    load_sample(empty_database)
    messages: list[str] = []
    counts = load_sample(empty_database, report=messages.append)
    assert counts.already_loaded
    assert counts.runs == sample_counts().runs
    assert len(messages) == 1
    assert "nothing to do" in messages[0]


def test_load_sample_goes_on_after_a_run_was_deleted(empty_database: str) -> None:
    """As erasing asks for it: what is left of the sample is not another database."""
    load_sample(empty_database)
    (run_id, *_) = sorted(sample_terminal_run_ids())
    do(empty_database, f"DELETE FROM public.runs WHERE id = '{run_id}'")
    messages: list[str] = []
    counts = load_sample(empty_database, report=messages.append)
    assert (counts.already_loaded, counts.deleted) == (True, {run_id})
    assert "without 1 deleted run" in messages[0]
    assert ask(empty_database, f"SELECT count(*) FROM public.runs WHERE id = '{run_id}'") == [(0,)]


def test_load_sample_into_a_database_without_runs_is_refused(empty_database: str) -> None:
    """It may be a new Letta server's."""
    load_sample(empty_database)
    do(empty_database, "DELETE FROM public.runs")
    with pytest.raises(SourceError, match=r"with 0 rows.*`trajectory-pipeline demo --reset`"):
        load_sample(empty_database)


def test_load_sample_reports_each_action(empty_database: str) -> None:
    messages: list[str] = []
    counts = load_sample(empty_database, report=messages.append)
    assert f"Loading {counts.runs} runs" in messages[0]
    assert f"{counts.partitions} different hours" in messages[1]


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_load_sample_accepts_urls_of_other_libraries(empty_database: str, scheme: str) -> None:
    assert not load_sample(empty_database.replace("postgresql", scheme, 1)).already_loaded


def test_load_sample_with_other_runs_is_refused(empty_database: str) -> None:
    do(
        empty_database,
        "CREATE TABLE public.runs (id text, agent_id text, created_at timestamptz, completed_at timestamp);"
        "INSERT INTO public.runs VALUES ('run-1', 'agent-1', now(), NULL)",
    )
    with pytest.raises(SourceError, match=r"already has a table public\.runs with 1 rows.*Use an empty database"):
        load_sample(empty_database)
    assert ask(empty_database, "SELECT id FROM public.runs") == [("run-1",)]
    assert ask(empty_database, TABLES) == [("runs",)]


def test_load_sample_with_an_additional_run_is_refused(empty_database: str) -> None:
    load_sample(empty_database)
    do(
        empty_database,
        "INSERT INTO public.runs (id, status, agent_id, organization_id)"
        " SELECT 'run-more', 'created', agent_id, organization_id FROM public.runs LIMIT 1",
    )
    with pytest.raises(SourceError, match="with 322 rows, of which 321 are"):
        load_sample(empty_database)


def test_load_sample_with_changed_times_is_refused(empty_database: str) -> None:
    load_sample(empty_database)
    do(empty_database, "UPDATE public.runs SET created_at = created_at + interval '1 hour'")
    with pytest.raises(SourceError, match="with 321 rows, of which 0 are"):
        load_sample(empty_database)


def test_load_sample_with_dagsters_runs_table_is_refused(empty_database: str) -> None:
    do(empty_database, "CREATE TABLE public.runs (id bigint, run_id text, status text)")
    with pytest.raises(SourceError, match=r"is not Letta's: it lacks agent_id, completed_at, created_at"):
        load_sample(empty_database)


def test_load_sample_with_another_sample_table_is_refused(empty_database: str) -> None:
    do(empty_database, "CREATE TABLE public.messages (id text)")
    with pytest.raises(SourceError, match=r"no table public\.runs, but messages"):
        load_sample(empty_database)
    assert ask(empty_database, TABLES) == [("messages",)]


def test_load_sample_that_fails_changes_nothing(empty_database: str) -> None:
    # The dump makes its type and two tables before it comes to this sequence.
    do(empty_database, "CREATE SEQUENCE public.message_seq_id")
    with pytest.raises(SourceError, match=r"could not be loaded.*message_seq_id.*Nothing was changed"):
        load_sample(empty_database)
    assert ask(empty_database, TABLES) == [("message_seq_id",)]
    assert ask(empty_database, "SELECT count(*) FROM pg_type WHERE typname = 'stepstatus'") == [(0,)]


def test_load_sample_creates_a_missing_database_on_request(empty_database: str) -> None:
    name = f"sample_{uuid4().hex[:12]}"
    url = changed(empty_database, database=name)
    with pytest.raises(SourceError, match=rf"{name}.*create_database=True"):
        load_sample(url)
    messages: list[str] = []
    try:
        assert not load_sample(url, create_database=True, report=messages.append).already_loaded
        assert messages[0].startswith("Created")
        assert load_sample(url, create_database=True).already_loaded
    finally:
        with psycopg.connect(empty_database, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))


def test_load_sample_without_privileges_says_what_to_grant(empty_database: str) -> None:
    name = f"sample_{uuid4().hex[:12]}"
    url = changed(empty_database, user=name, password="geheim")
    do(empty_database, f"CREATE ROLE {name} LOGIN PASSWORD 'geheim'; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        with pytest.raises(SourceError, match=rf"user {name} may not load.*grant it CREATE") as refused:
            load_sample(url)
        assert "geheim" not in str(refused.value)
        # The database is there, so that CREATEDB is not what is missing.
        with pytest.raises(SourceError, match=rf"user {name} may not load"):
            load_sample(url, create_database=True)
        with pytest.raises(SourceError, match=rf"Cannot create the database.*CREATEDB to the user {name}"):
            load_sample(changed(url, database=f"{name}_new"), create_database=True)
        assert ask(empty_database, TABLES) == []
    finally:
        do(empty_database, f"DROP ROLE {name}")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:geheim@127.0.0.1:1/letta", "127.0.0.1:1.*Check that the server runs"),
        ("postgresql://me:geheim@no-host.invalid/letta", "no-host.invalid.*Check that the server runs"),
        ("postgresql://me:geheim@127.0.0.1:1", "names no database"),
        ("postgresql://me:ge%zzheim@127.0.0.1:1/letta", "must be percent-encoded"),
        ("postgresql://me:geheim@127.0.0.1:1/letta?pool_size=5", "cannot be read"),
        ("mysql://me:geheim@127.0.0.1/letta", "must look like postgresql://"),
        ("host=127.0.0.1 password=geheim dbname=letta", "must look like postgresql://"),
    ],
)
@pytest.mark.parametrize("create_database", [False, True])
def test_load_sample_connection_error_hides_password(url: str, says: str, create_database: bool) -> None:
    with pytest.raises(SourceError, match=says) as refused:
        load_sample(url, create_database=create_database)
    assert "heim" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('FATAL: password authentication failed for user "me"', "Check the user and the password"),
        ('FATAL: role "me" does not exist', "Check the user and the password"),
        ('FATAL: database "letta" does not exist', "Create the database first"),
        ('FATAL: permission denied for database "letta"', "Grant this user CONNECT"),
        ("connection timeout expired", "Check that the server runs"),
        ("FATAL: etwas anderes", "Check the URL"),
    ],
)
def test_remedy_fits_each_connection_error(text: str, remedy: str) -> None:
    assert remedy in load._remedy(text)
