"""A source that cannot be read: one sentence that names what was being done, where, what is wrong, and what to do.

No password is in it, whatever it holds, and neither is the driver's noise (the text of the query, hints, framing).
"""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.letta import snapshot as snapshots
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.urls import describe_postgres
from trajectory_pipeline_tests.letta.snapshots import (
    FAR_AHEAD,
    LONG_AGO,
    all_batches,
    all_runs,
    ask,
    changed,
    do,
)

PASSWORD = "ge he%im@/:?#&é'\"\\x"
NOISE = ("Query", "SELECT", "SQLSTATE", "libpq", "PGRES", "COPY", "LINE 1", "\n", "Failed to", "Traceback", "adbc")


def refusal(url: str, **settings: Any) -> str:
    with pytest.raises(SourceError) as refused, LettaSource(url, **settings).snapshot() as snapshot:
        list(snapshot.terminal_runs(LONG_AGO, FAR_AHEAD))
    return sentence(refused.value)


def sentence(error: SourceError) -> str:
    text = str(error)
    for noise in NOISE:
        assert noise not in text.replace("GRANT SELECT", "")
    for secret in (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), "geheim", "ge he"):
        assert secret not in text
    assert "LETTA_PG_URI" in text or "TRAJECTORY_SOURCE_TIMEOUT" in text or "again" in text
    assert text.endswith(".")
    assert len(text) < 400
    return text


@pytest.fixture
def role(letta_database: str) -> Iterator[str]:
    """A user who may log in with ``PASSWORD``, and nothing else."""
    name = f"some_{uuid4().hex[:12]}"
    do(letta_database, f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
    yield name
    do(letta_database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def test_connect_to_a_closed_port_says_so() -> None:
    port = closed_port()
    text = refusal(f"postgresql://me:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/letta")
    assert text == (
        f"Connecting failed at the source 127.0.0.1:{port}/letta: Connection refused — is the server running, and"
        " reachable from here? Check the host and port in LETTA_PG_URI."
    )


def test_connect_to_an_unknown_host_says_so() -> None:
    text = refusal("postgresql://me:geheim@no-host.invalid/letta")
    assert text.startswith("Connecting failed at the source no-host.invalid:5432/letta: could not translate host name")
    assert "Check the host and port in LETTA_PG_URI" in text


@pytest.mark.slow
def test_connect_to_a_silent_host_times_out() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        text = refusal(f"postgresql://me:geheim@127.0.0.1:{port}/letta?connect_timeout=2&sslmode=disable")
    assert "timeout expired" in text
    assert "reachable from here?" in text


def test_connect_to_an_unknown_socket_says_so() -> None:
    for url in ("postgresql:///letta?host=/nowhere&user=me&password=geheim", "postgresql://me:geheim@%2Fnowhere/letta"):
        text = refusal(url)
        assert text.startswith("Connecting failed at the source /nowhere:5432/letta: ")
        assert "No such file or directory" in text


def test_connect_to_an_unknown_database_says_so(letta_database: str) -> None:
    text = refusal(letta_database + "_gone")
    assert "_gone: database " in text
    assert "there is no such database: check the name at the end of LETTA_PG_URI" in text


def test_connect_with_a_wrong_password_says_so(letta_database: str, role: str) -> None:
    text = refusal(changed(letta_database, user=role, password=PASSWORD + "geheim"))
    assert f'password authentication failed for user "{role}"' in text
    assert text.endswith("the password is wrong: check LETTA_PG_URI.")


def test_connect_as_an_unknown_user_says_so(letta_database: str) -> None:
    text = refusal(changed(letta_database, user="some_nobody", password=PASSWORD))
    assert '"some_nobody"' in text
    assert text.endswith("check LETTA_PG_URI.")


def test_connect_with_a_password_of_any_characters_succeeds(letta_database: str, role: str) -> None:
    do(letta_database, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    assert len(all_runs(changed(letta_database, user=role, password=PASSWORD))) == 317


def test_user_with_select_on_read_tables_suffices(letta_database: str, role: str) -> None:
    tables = "runs, steps, messages, run_metrics, step_metrics, agents, agents_tags"
    do(letta_database, f"GRANT SELECT ON {tables} TO {role}")
    assert all_batches(changed(letta_database, user=role, password=PASSWORD)) == all_batches(letta_database)


def test_read_without_permission_names_the_table(letta_database: str, role: str) -> None:
    url = changed(letta_database, user=role, password=PASSWORD)
    do(letta_database, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    for table in ("runs", "steps", "messages", "run_metrics", "agents_tags"):
        do(letta_database, f"REVOKE SELECT ON {table} FROM {role}")
        text = refusal(url)
        assert f"permission denied for table {table}" in text
        assert "GRANT SELECT on Letta's tables to the user in LETTA_PG_URI" in text
        do(letta_database, f"GRANT SELECT ON {table} TO {role}")


def test_connect_without_access_names_database_or_schema(letta_database: str, role: str) -> None:
    url = changed(letta_database, user=role, password=PASSWORD)
    do(letta_database, "REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    assert "permission denied for schema public" in refusal(url)
    (database,) = ask(letta_database, "SELECT quote_ident(current_database())")[0]
    do(letta_database, f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
    text = refusal(url)
    assert "permission denied for database" in text
    assert "GRANT CONNECT on the database" in text


def test_catalog_of_an_empty_database_is_refused(empty_database: str) -> None:
    text = refusal(empty_database)
    assert text == (
        f"The source {describe_postgres(empty_database)} has no table 'runs': is it the database of a Letta server"
        " (0.12 or later)?"
        " Check the database name in LETTA_PG_URI. Where that is unset, the embedded server is read,"
        " which has only what `trajectory-pipeline load-sample` loads."
    )


def test_catalog_of_dagsters_database_is_refused(empty_database: str) -> None:
    do(empty_database, "CREATE TABLE runs (id bigint, run_id text, status text)")
    assert "lacks the required column(s) 'completed_at', " in refusal(empty_database)


@pytest.mark.parametrize("mid_query", [False, True])
def test_read_on_a_lost_connection_says_so(
    letta_database: str, monkeypatch: pytest.MonkeyPatch, mid_query: bool
) -> None:
    monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", 20)
    end_it = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'trajectory-pipeline'"
    )
    end_itself = (
        "SELECT repeat('x', 1000) AS x FROM generate_series(1, 10000) i"
        " UNION ALL SELECT pg_terminate_backend(pg_backend_pid())::text"
    )
    with LettaSource(letta_database).snapshot() as snapshot:
        batches = snapshot.terminal_runs(LONG_AGO, FAR_AHEAD)
        next(batches)
        if not mid_query:
            ask(letta_database, end_it)
        with pytest.raises(SourceError) as refused:
            _ = snapshot.read("Reading messages", end_itself) if mid_query else list(batches)
    text = sentence(refused.value)
    assert "terminating connection due to administrator command — the connection was lost: " in text
    assert describe_postgres(letta_database) in text


def test_prefetch_on_a_lost_connection_says_so(letta_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", 20)
    with (
        LettaSource(letta_database).snapshot() as snapshot,
        snapshot.prefetch_terminal_runs(LONG_AGO, FAR_AHEAD) as batches,
    ):
        next(batches)
        ask(
            letta_database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'trajectory-pipeline'",
        )
        with pytest.raises(SourceError) as refused:
            list(batches)
    assert "the connection was lost: " in sentence(refused.value)


def test_stream_on_a_lost_connection_says_so(letta_database: str) -> None:
    do(
        letta_database,
        "CREATE VIEW provider_traces AS SELECT id, id AS step_id, 'agent_step'::text AS call_type, now() AS created_at,"
        " CASE WHEN id < 'step-f' THEN json_build_object('system', repeat('x', 50000))"
        " ELSE json_build_array(pg_terminate_backend(pg_backend_pid())) END AS request_json FROM steps",
    )
    text = refusal(letta_database)
    assert text.startswith("Reading provider_traces failed")
    assert "the connection was lost: " in text


def test_read_beyond_the_timeout_names_the_setting(letta_database: str) -> None:
    with psycopg.connect(letta_database) as connection:
        connection.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        text = refusal(letta_database, timeout_seconds=1)
    assert "Measuring messages failed" in text
    assert "canceling statement due to statement timeout — the query took longer than TRAJECTORY_SOURCE_TIMEOUT" in text


def test_snapshot_held_too_long_names_the_setting(letta_database: str) -> None:
    with LettaSource(letta_database, timeout_seconds=1).snapshot() as snapshot:
        ask(letta_database, "SELECT pg_sleep(1.5)::text")
        with pytest.raises(SourceError) as refused:
            snapshot.run_ids(LONG_AGO, FAR_AHEAD)
    assert "idle-in-transaction timeout" in sentence(refused.value)


def test_read_of_a_dropped_column_names_it(letta_database: str) -> None:
    with LettaSource(letta_database).snapshot() as snapshot:
        do(letta_database, "ALTER TABLE runs DROP COLUMN background")
        with pytest.raises(SourceError) as refused:
            list(snapshot.terminal_runs(LONG_AGO, FAR_AHEAD))
    text = sentence(refused.value)
    assert "column t.background does not exist — the source has changed" in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:ge%zzheim@127.0.0.1:1/letta",
        "postgresql://me:gehe/im@127.0.0.1:1/letta",
        "postgresql://me:1234/geheim@127.0.0.1:1/letta",
        "postgresql://me:x@geheim@127.0.0.1:1/letta",
        "postgresql://me:geheim@127.0.0.1:1/letta?pool_size=5",
        "mysql://me:geheim@127.0.0.1:1/letta",
        "host=127.0.0.1 password=geheim",
        "",
    ],
)
def test_error_for_an_unreadable_url_does_not_repeat_it(url: str) -> None:
    text = refusal(url)
    assert text.startswith(("LETTA_PG_URI cannot be read", "LETTA_PG_URI holds a character", "LETTA_PG_URI must look"))
    for piece in ("1234", "gehe", "zzheim", "me:"):
        assert piece not in text
