"""Databases as people have them: whatever a server, database, role or pooler sets, the rows are the same or refused."""

import itertools
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import SinkError, SourceError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.postgres import retrying_connection
from trajectory_pipeline.storage.postgres.connection import database_error
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.pool import ConnectionPool
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction
from trajectory_pipeline_tests.letta.snapshots import all_batches
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, do
from trajectory_pipeline_tests.server_databases import drop_database

HOUR = min(hour for hour, runs in sample_partitions().items() if runs >= 3)
_NUMBERS = itertools.count()
SETTINGS = {
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "client_encoding": "LATIN1",
    "session_replication_role": "replica",
    "synchronous_commit": "off",
    "statement_timeout": "2s",
    "lock_timeout": "50ms",
    "idle_in_transaction_session_timeout": "300ms",
    "transaction_timeout": "2s",
}
"""What an administrator may have set, and a statement of ours may trip over."""
SHADOWING = (
    "CREATE SCHEMA evil",
    "CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT '1999-01-01Z'::timestamptz$$",
    "CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql AS $$SELECT 1::bigint$$",
    "CREATE FUNCTION evil.md5(text) RETURNS text LANGUAGE sql AS $$SELECT 'x'::text$$",
    "CREATE FUNCTION evil.isfinite(timestamp) RETURNS boolean LANGUAGE sql AS $$SELECT false$$",
    "CREATE FUNCTION evil.never(varchar, varchar) RETURNS boolean LANGUAGE sql AS $$SELECT false$$",
    "CREATE OPERATOR evil.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = evil.never)",
    "CREATE TABLE evil.pg_database (datname text, oid integer)",
)


def set_defaults(url: str, **settings: str) -> None:
    with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
        database = sql.Identifier(connection.info.dbname)
        for name, value in settings.items():
            form = "{}" if name == "search_path" else "'{}'"
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET {} = ").format(database, sql.Identifier(name))
                + sql.SQL(form.format(value))  # type: ignore[arg-type]  # not a literal
            )


@pytest.fixture
def judged(pipeline: Pipeline, judge: SimulatedJudge) -> Pipeline:
    pipeline.judge_url = judge.base_url
    return pipeline


def run_all_stages(pipeline: Pipeline, hour: datetime) -> tuple[Any, ...]:
    pipeline.capture(hour)
    pipeline.refine(hour)
    rows = pipeline.database.rows(
        "SELECT run_id, content_digest, data, start_time, duration_ns FROM trajectory.trajectories ORDER BY 1"
    )
    verdicts = [
        {name: value for name, value in row.items() if name in ("run_id", "verdict_status", "outcome")}
        for row in pipeline.parquet(REFINED_OUTCOMES, hour)
    ]
    return rows, verdicts


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_all_stages_give_the_same_under_any_defaults(
    judged: Pipeline, make_database: Callable[[str | None], str], isolation: str
) -> None:
    expected = run_all_stages(judged, HOUR)
    other = Pipeline(judged.letta_url, make_database(None), judged.folder.with_name("other"), judged.judge_url)
    for url in (judged.letta_url, other.database_url):
        do(url, *SHADOWING)
        set_defaults(url, **SETTINGS, default_transaction_isolation=isolation, search_path="evil, pg_catalog, public")
    migrate(other.database_url)
    assert run_all_stages(other, HOUR) == expected
    assert other.convert(HOUR).unchanged


def test_source_is_read_whatever_time_its_role_allows(pipeline: Pipeline) -> None:
    """The driver asks for types before anything can be set."""
    set_defaults(pipeline.letta_url, statement_timeout="1ms")
    (result,) = pipeline.capture(HOUR)
    assert result.row_balance.trajectories == sample_partitions()[HOUR]


def test_connection_that_long_work_closed_is_not_lent_again(trajectory_database: str) -> None:
    with TrajectoryDatabase(trajectory_database).pooled(idle=4) as database:
        for _ in range(3):
            with database.retrying() as retrying:
                assert retrying.rows("Asking", "SELECT 1 AS one") == [{"one": 1}]
            assert database.rows("SELECT 1 AS one") == [{"one": 1}]


def test_transaction_states_what_it_needs(trajectory_database: str) -> None:
    set_defaults(trajectory_database, **SETTINGS, default_transaction_isolation="serializable")
    database = TrajectoryDatabase(trajectory_database)
    needed = {
        "transaction_isolation": "read committed",
        "transaction_read_only": "off",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "transaction_timeout": "0",
        "session_replication_role": "origin",
        "synchronous_commit": "on",
        "search_path": "pg_catalog",
        "row_security": "off",
        "client_encoding": "UTF8",
        "DateStyle": "ISO, MDY",
        "TimeZone": "UTC",
    }
    asked = ", ".join(f"current_setting('{name}') AS \"{name}\"" for name in needed)
    found = [database.rows(f"SELECT {asked}")[0]]
    with database.connect() as connection, connection.cursor() as cursor:
        found.append(dict(zip(needed, cursor.execute(f"SELECT {asked}".encode()).fetchone() or (), strict=True)))
    with database.retrying() as retrying:
        found += retrying.rows("Asking", sql.SQL(f"SELECT {asked}"))  # type: ignore[arg-type]  # not a literal
    assert found == [needed] * 3


def test_all_stages_work_behind_a_transaction_pooler(judged: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction may be on another session, which the pooler has reset."""
    monkeypatch.setattr(ConnectionPool, "_return", lambda *_: False)
    once = RetryingConnection._once

    def on_another_session(self: RetryingConnection, work: Callable[[Transaction], Any]) -> Any:
        self._connection.execute("DISCARD ALL")
        return once(self, work)

    monkeypatch.setattr(RetryingConnection, "_once", on_another_session)
    run_all_stages(judged, HOUR)
    assert judged.convert(HOUR).unchanged
    assert judged.refine(HOUR).calls == 0


@pytest.mark.parametrize(
    "conflict",
    [psycopg.errors.SerializationFailure("could not serialize"), psycopg.errors.DeadlockDetected("deadlock")],
)
def test_conflicts_are_repeated_and_nothing_is_paid_again(
    judged: Pipeline, monkeypatch: pytest.MonkeyPatch, conflict: psycopg.Error
) -> None:
    monkeypatch.setattr(retrying_connection, "_CONFLICT_PAUSES_SECONDS", (0.0, 0.0))
    judged.capture(HOUR)
    once = RetryingConnection._once
    attempts: Counter[Callable[[Transaction], Any]] = Counter()

    def conflicts_at_first(self: RetryingConnection, work: Callable[[Transaction], Any]) -> Any:
        attempts[work] += 1
        if attempts[work] <= 2:
            raise conflict
        return once(self, work)

    monkeypatch.setattr(RetryingConnection, "_once", conflicts_at_first)
    result = judged.refine(HOUR)
    assert result.statuses.total() == sample_partitions()[HOUR]
    monkeypatch.setattr(RetryingConnection, "_once", once)
    paid = judged.ask("SELECT count(*) AS n FROM trajectory.verdict_attempts")[0]["n"]
    assert paid == result.calls
    assert judged.refine(HOUR).calls == 0


def test_standby_is_refused_naming_the_primary() -> None:
    for said in (
        "cannot execute INSERT in a read-only transaction",
        "cannot set transaction read-write mode during recovery",
    ):
        text = str(database_error("postgresql://host/db", "Writing", psycopg.errors.ReadOnlySqlTransaction(said)))
        assert "must name the primary" in text


# ---- encodings -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_encoded(postgres_server: EmbeddedServer, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A function that makes an empty database in an encoding, and returns its URL."""

    def make(encoding: str) -> str:
        name = f"encoded_{encoding.lower()}_{next(_NUMBERS)}"
        drop_database(postgres_server, name)
        with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
            connection.execute(
                f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE_PROVIDER libc"
                " LOCALE 'C'".encode()
            )
        request.addfinalizer(lambda: drop_database(postgres_server, name))
        return postgres_server.url(name)

    return make


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP", "WIN1252", "LATIN9"])
def test_sink_in_another_encoding_is_refused(make_encoded: Callable[[str], str], encoding: str) -> None:
    url = make_encoded(encoding)
    for attempt in (lambda: migrate(url), lambda: TrajectoryDatabase(url).now()):
        with pytest.raises(SinkError, match=rf"has the encoding {encoding}.*ENCODING 'UTF8' TEMPLATE template0"):
            attempt()


@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "SQL_ASCII"])
def test_source_in_another_encoding_is_read_right_or_refused(
    make_encoded: Callable[[str], str], letta_database: str, encoding: str
) -> None:
    url = make_encoded(encoding)
    with psycopg.connect(letta_database) as source, psycopg.connect(url, client_encoding="UTF8") as copy:
        tables = [row[0] for row in source.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        for table in tables:
            columns = source.execute(
                "SELECT string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)"
                " FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
                " AND NOT attisdropped AND atttypid < 16384",
                [f'public."{table}"'],
            ).fetchone()
            assert columns is not None
            if columns[0]:
                copy.execute(f'CREATE TABLE public."{table}" ({columns[0]})'.encode())
        now = "'2026-11-20 12:30'"
        copy.execute(
            "INSERT INTO runs (id, status, agent_id, created_at, completed_at, metadata_)"
            f" VALUES ('run-1', 'completed', 'agent-é', {now}, {now}, '{{\"name\": \"café\"}}')".encode()
        )
    if encoding == "SQL_ASCII":
        with pytest.raises(SourceError, match=r"SQL_ASCII"), LettaSource(url).snapshot():
            pass
        return
    (rows,) = [batch.to_pylist() for batch in all_batches(url)]
    assert "agent-é" in str(rows)
    assert "café" in str(rows)
