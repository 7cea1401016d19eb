"""A range of partitions reuses connections, reopens lost ones, and asks little about an empty hour."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import psycopg
import pytest

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres import pool
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

BUSY = list(sample_partitions())[:6]
EMPTY = max(sample_partitions()) + timedelta(days=30)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each connection that is opened, to the sink or to the source."""
    opened: list[str] = []

    def counting(name: str, real: Any) -> Any:
        def connect(*given: Any, **more: Any) -> Any:
            opened.append(name)
            return real(*given, **more)

        return connect

    monkeypatch.setattr(psycopg, "connect", counting("sink", psycopg.connect))
    monkeypatch.setattr(adbc, "connect", counting("source", adbc.connect))
    return opened


@pytest.fixture
def pooled(pipeline: Pipeline) -> Iterator[tuple[LettaSource, TrajectoryDatabase]]:
    """The pipeline's source and database, as a range uses them."""
    with LettaSource(pipeline.letta_url).pooled() as source, pipeline.database.pooled() as database:
        yield source, database


Pooled = tuple[LettaSource, TrajectoryDatabase]


def capture(pipeline: Pipeline, through: Pooled, *hours: Any) -> None:
    source, database = through
    for hour in hours:
        materialize_terminal_runs(hour, source, Storage(pipeline.store, database))
        materialize_trajectories(hour, Storage(pipeline.store, database))
        assert reconcile_partition(hour, Storage(pipeline.store, database)).differences == ()


@pytest.mark.parametrize("partitions", [1, 6])
def test_range_opens_three_connections_for_any_length(
    pipeline: Pipeline, pooled: Pooled, connections: list[str], partitions: int
) -> None:
    capture(pipeline, pooled, *BUSY[:partitions])
    # A partition's transaction, and another connection for look-ups and invalidations.
    assert sorted(connections) == ["sink", "sink", "source"]


def test_range_over_pooled_connections_writes_the_same(pipeline: Pipeline, pooled: Pooled, tmp_path: Path) -> None:
    capture(pipeline, pooled, *BUSY)
    apart = Pipeline(pipeline.letta_url, pipeline.database_url, tmp_path / "apart")
    for hour in BUSY:
        apart.read(hour)
        assert [batch.to_pylist() for batch in apart.store.read(TERMINAL_RUNS, hour)] == [
            batch.to_pylist() for batch in pipeline.store.read(TERMINAL_RUNS, hour)
        ]


def test_range_leaves_no_session_state_behind(pipeline: Pipeline, pooled: Pooled) -> None:
    capture(pipeline, pooled, *BUSY)
    source, database = pooled
    settings = "SELECT name, setting FROM pg_settings WHERE source = 'session'"
    settings += " AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')"
    leftovers = (
        "SELECT (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_locks"
        " WHERE pid = pg_backend_pid() AND locktype = 'advisory'), to_regclass('pg_temp.staged')"
    )
    for autocommit in (True, False):
        with database.session(autocommit=autocommit) as connection:
            # What was stated for a transaction ended with it.
            connection.rollback()
            assert connection.execute(leftovers).fetchone() == (0, 0, None)
            assert connection.execute(settings).fetchall() == []
    with source.snapshot() as snapshot:
        pid = snapshot.read("Asking", "SELECT pg_backend_pid() AS pid")["pid"].to_pylist()[0]
    with source.snapshot() as snapshot:
        again = snapshot.read(
            "Asking",
            "SELECT pg_backend_pid() AS pid, reset_val AS timeout FROM pg_settings WHERE name = 'statement_timeout'",
        ).to_pylist()
    assert again == [{"pid": pid, "timeout": "0"}]


def lose_all_sessions(pipeline: Pipeline) -> None:
    for url in (pipeline.letta_url, pipeline.database_url):
        with psycopg.connect(url) as connection:
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'trajectory-pipeline'"
            ).fetchall()
            assert ended
            assert all(done for (done,) in ended)


def test_range_sessions_lost_between_partitions_are_reopened(
    pipeline: Pipeline, pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_FRESH_SECONDS", 0.0)
    capture(pipeline, pooled, BUSY[0])
    lose_all_sessions(pipeline)
    capture(pipeline, pooled, BUSY[1])


def test_range_sessions_lost_just_after_use_are_reopened(
    pipeline: Pipeline, pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_FRESH_SECONDS", 3600.0)
    capture(pipeline, pooled, BUSY[0])
    lose_all_sessions(pipeline)
    capture(pipeline, pooled, BUSY[1])
    lose_all_sessions(pipeline)
    capture(pipeline, pooled, BUSY[2])


def test_range_session_lost_in_a_partition_is_replaced(
    pipeline: Pipeline, pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(pipeline, pooled, BUSY[0])
    with monkeypatch.context() as patched:

        @contextmanager
        def lost(snapshot: Snapshot, *_: Any) -> Iterator[Iterator[Any]]:
            lose_all_sessions(pipeline)
            yield iter([snapshot.read("Reading runs", "SELECT 1 AS one")])

        patched.setattr(Snapshot, "prefetch_terminal_runs", lost)
        with pytest.raises(PipelineError, match="lost"):
            capture(pipeline, pooled, BUSY[1])
    assert list(pipeline.folder.rglob(".*")) == []
    capture(pipeline, pooled, BUSY[1], BUSY[2])


def test_range_empty_hour_is_one_query_and_no_invalidation(
    pipeline: Pipeline, pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Snapshot.read
    monkeypatch.setattr(Snapshot, "read", lambda self, doing, query: asked.append(doing) or real(self, doing, query))
    noted = "CREATE TABLE trajectory.noted AS SELECT * FROM trajectory.invalidations"
    rule = "CREATE RULE note AS ON INSERT TO trajectory.invalidations DO ALSO INSERT INTO trajectory.noted SELECT NEW.*"
    pipeline.do(noted, rule)
    capture(pipeline, pooled, EMPTY)
    assert asked == ["Comparing fingerprints"]
    assert pipeline.ask("SELECT * FROM trajectory.noted") == []
    for table in (TERMINAL_RUNS, TRAJECTORIES):
        assert pipeline.store.rows(table, EMPTY) == 0
    assert set(pipeline.database.ledger("trajectories")) == {partition_key(EMPTY)}
    capture(pipeline, pooled, BUSY[0])
    assert len(pipeline.ask("SELECT * FROM trajectory.noted")) == 2


def test_range_hour_whose_last_run_moved_is_empty_in_sinks(pipeline: Pipeline, pooled: Pooled) -> None:
    hour = BUSY[0]
    capture(pipeline, pooled, hour)
    held = pipeline.store.rows(TRAJECTORIES, hour)
    with psycopg.connect(pipeline.letta_url) as connection:
        connection.execute(
            "UPDATE runs SET completed_at = %s WHERE completed_at >= %s AND completed_at < %s",
            [moment.replace(tzinfo=None) for moment in (EMPTY, hour, hour + HOUR)],
        )
    capture(pipeline, pooled, EMPTY)
    capture(pipeline, pooled, hour)
    assert pipeline.store.rows(TRAJECTORIES, hour) == 0
    found = pipeline.ask("SELECT partition_key, count(*) FROM trajectory.trajectories GROUP BY 1")
    assert found == [{"partition_key": partition_key(EMPTY), "count": held}]
