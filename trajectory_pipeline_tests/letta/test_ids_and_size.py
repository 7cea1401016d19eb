"""Ids of any characters go to the source and come back; runs of any size are read with the same number of queries."""

from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.letta import snapshot as snapshots
from trajectory_pipeline.letta.fingerprint import fingerprints
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline_tests.letta.snapshots import FAR_AHEAD, LONG_AGO, all_runs, ask, do
from trajectory_pipeline_tests.letta_sample import sample_terminal_run_ids
from trajectory_pipeline_tests.server_databases import create_database, drop_database

ODD = {
    "quote": "run-'; DROP TABLE messages; --",
    "quotes": "''",
    "double quote": '"run"',
    "backslash": "run-\\",
    "backslash and quote": "\\'; DELETE FROM runs; --",
    "E string": "E'\\047'",
    "percent": "%s %(id)s %% {id} $1 :id ?",
    "newline": "run\n\r\t1",
    "array": '{a,"b",NULL}',
    "null": "NULL",
    "blank": " ",
    "empty": "",
    "unicode": "läuf-Ω-运行-🏃‍♀️-é-\u202e-\ufeff",
    "comment": "/* run */ -- $$ $a$",
    "control": "".join(map(chr, range(1, 32))) + "\x7f\u0085",
    "10 kB": "long-" * 2000,
}


def test_ids_of_any_characters_are_read(letta_database: str) -> None:
    with psycopg.connect(letta_database) as connection, connection.cursor() as cursor:
        agent_id, organization_id = connection.execute(
            "SELECT agent_id, organization_id FROM messages LIMIT 1"
        ).fetchone() or ("", "")
        for number, odd in enumerate(ODD.values()):
            cursor.execute(
                "INSERT INTO runs (id, status, completed_at, agent_id, organization_id)"
                " VALUES (%s, 'completed', '2030-01-01', %s, %s)",
                [odd, agent_id, organization_id],
            )
            cursor.execute("INSERT INTO steps (id, run_id) VALUES (%s, %s)", [f"{odd} step", odd])
            cursor.execute("INSERT INTO steps (id) VALUES (%s)", [f"{odd} foreign"])
            cursor.execute(
                "INSERT INTO step_metrics (id, agent_id, step_ns) VALUES (%s, %s, %s)",
                [f"{odd} step", agent_id, number],
            )
            cursor.executemany(
                "INSERT INTO messages (id, run_id, step_id, role, content, tool_calls, agent_id, organization_id)"
                " VALUES (%s, %s, %s, 'user', '[]', '[]', %s, %s)",
                [[f"{odd} {name}", odd, f"{odd} {name}", agent_id, organization_id] for name in ("step", "foreign")],
            )
    runs = all_runs(letta_database)
    assert len(runs) == 317 + len(ODD)
    for number, odd in enumerate(ODD.values()):
        run = runs[odd]
        assert [step["id"] for step in run["steps"]] == [f"{odd} step"]
        assert [step["id"] for step in run["foreign_steps"]] == [f"{odd} foreign"]
        assert [metrics["step_ns"] for metrics in run["step_metrics"]] == [number]
        assert [message["step_id"] for message in run["messages"]] == [f"{odd} step", f"{odd} foreign"]
    with LettaSource(letta_database).snapshot() as snapshot:
        assert {where.terminal for where in snapshot.run_locations(list(ODD.values())).values()} == {True}
    assert ask(letta_database, "SELECT count(*) FROM runs") == [(321 + len(ODD),)]


@pytest.fixture(scope="module")
def database_with_a_long_run(postgres_server: EmbeddedServer, untouched_sample: str) -> Iterator[str]:
    """The sample, and one run of 3,000 steps and 20,000 messages, with fresh statistics; it is only read."""
    name = f"long_run_{uuid4().hex[:12]}"
    create_database(postgres_server, name, urlsplit(untouched_sample).path.strip("/"))
    url = postgres_server.url(name)
    do(
        url,
        "INSERT INTO runs (id, status, completed_at, agent_id, organization_id)"
        " SELECT 'run-long', 'completed', '2030-01-01', id, organization_id FROM agents ORDER BY id LIMIT 1",
        "INSERT INTO steps (id, run_id, created_at)"
        " SELECT 'step-long-' || i, 'run-long', timestamptz '2030-01-01' + i * interval '1 s'"
        " FROM generate_series(1, 3000) i",
        "INSERT INTO step_metrics (id, agent_id) SELECT s.id, r.agent_id FROM steps s JOIN runs r ON r.id = s.run_id"
        " WHERE r.id = 'run-long'",
        "INSERT INTO messages (id, run_id, step_id, role, content, tool_calls, agent_id, organization_id)"
        " SELECT 'message-long-' || i, r.id, 'step-long-' || (i % 3000 + 1), 'assistant',"
        " json_build_array(json_build_object('type', 'text', 'text', 'word ' || i)), '[]', agent_id, organization_id"
        " FROM generate_series(1, 20000) i, runs r WHERE r.id = 'run-long'",
        "ANALYZE",
    )
    yield url
    drop_database(postgres_server, name)


def test_read_of_twenty_thousand_messages_keeps_all_in_order(database_with_a_long_run: str) -> None:
    run = all_runs(database_with_a_long_run)["run-long"]
    assert (len(run["messages"]), len(run["steps"]), len(run["step_metrics"])) == (20_000, 3_000, 3_000)
    assert run["foreign_steps"] == []
    expected = [row[0] for row in ask(database_with_a_long_run, "SELECT id FROM messages ORDER BY sequence_id")]
    assert [message["id"] for message in run["messages"]] == [each for each in expected if "long" in each]


def test_query_count_does_not_grow_with_runs(untouched_sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = {}
    for size in (20, 100, 317):
        monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", size)
        with LettaSource(untouched_sample).snapshot() as snapshot:
            batches = snapshot.terminal_runs(LONG_AGO, FAR_AHEAD)
            next(batches)
            # One finds the runs of the partition, the others are the batch's.
            queries[size] = snapshot.queries - 1
    assert len(set(queries.values())) == 1
    assert queries[20] <= 12


def test_read_of_an_hour_without_runs_takes_one_query(untouched_sample: str) -> None:
    with LettaSource(untouched_sample).snapshot() as snapshot:
        assert list(snapshot.terminal_runs(FAR_AHEAD, FAR_AHEAD.replace(hour=1))) == []
        assert snapshot.queries == 1


def test_rows_of_a_batch_are_read_by_index(database_with_a_long_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[str] = []
    read = Snapshot.read

    def listening(self: Snapshot, doing: str, query: str) -> object:
        queries.append(query)
        return read(self, doing, query)

    monkeypatch.setattr(Snapshot, "read", listening)
    monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", 20)
    with LettaSource(database_with_a_long_run).snapshot() as snapshot:
        next(snapshot.terminal_runs(LONG_AGO, FAR_AHEAD))
    of_table = {"messages": "ix_messages_run_sequence", "steps": "ix_steps_run_id", "step_metrics": "step_metrics_pkey"}
    seen: Counter[str] = Counter()
    for query in queries:
        for table, index in of_table.items():
            key = "id" if table == "step_metrics" else "run_id"
            if f'"{table}" ' in query and f'"{key}" = ANY' in query:
                plan = "\n".join(row[0] for row in ask(database_with_a_long_run, f"EXPLAIN {query}"))
                assert index in plan, plan
                assert f"Seq Scan on {table}" not in plan
                seen[table] += 1
    # Messages are measured first, and then read.
    assert seen == {"messages": 2, "steps": 1, "step_metrics": 1}


def test_foreign_steps_are_looked_up_by_key(untouched_sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[str] = []
    read = Snapshot.read
    monkeypatch.setattr(Snapshot, "read", lambda self, doing, query: queries.append(query) or read(self, doing, query))
    with LettaSource(untouched_sample).snapshot() as snapshot:
        fingerprints(snapshot, LONG_AGO, FAR_AHEAD)
    with psycopg.connect(untouched_sample) as connection:
        # Where it expects many rows, it would rather read all steps and join them; in a small table, all is cheap.
        connection.execute("SET enable_nestloop = off; SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {queries[0]}".encode()))
    assert "Index Scan using pk_steps_id on steps n" in plan
    assert "Index Cond: ((id)::text = (m.step_id)::text)" in plan


def test_memory_is_bounded_by_what_runs_hold(database_with_a_long_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "BYTES_PER_BATCH", 100_000)
    with LettaSource(database_with_a_long_run).snapshot() as snapshot:
        batches = list(snapshot.terminal_runs(LONG_AGO, FAR_AHEAD))
    alone = next(batch for batch in batches if "run-long" in batch["run_id"].to_pylist())
    assert alone["run_id"].to_pylist() == ["run-long"]
    ids = [run_id for batch in batches for run_id in batch["run_id"].to_pylist()]
    assert ids == sorted({"run-long", *sample_terminal_run_ids()})
