"""A range of partitions reuses connections, reopens lost ones, and asks little about an empty hour."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.letta import connection as source_connection
from trajectory_pipeline.letta.range_snapshot import RangeSnapshot
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.pipeline import convert_range
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.pipeline.convert_range import RangeConversion
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres import pool
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

BUSY = list(sample_partitions())[:6]
BUSY_HOURS = sorted(sample_partitions())
CONSECUTIVE = [BUSY_HOURS[0] + number * HOUR for number in range(24)]
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
    monkeypatch.setattr(source_connection, "open_connection", counting("source", source_connection.open_connection))
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


def rows_of(pipeline: Pipeline, hours: Sequence[datetime]) -> list[list[dict[str, Any]]]:
    tables = (TERMINAL_RUNS, TRAJECTORIES)
    return [
        [row for batch in pipeline.store.read(table, hour) for row in batch.to_pylist()]
        for table in tables
        for hour in hours
    ]


def rows_in_postgres(pipeline: Pipeline) -> list[dict[str, Any]]:
    own_times = {"first_captured_at", "updated_at"}
    rows = pipeline.ask("SELECT * FROM trajectory.trajectories ORDER BY run_id")
    return [{name: value for name, value in row.items() if name not in own_times} for row in rows]


def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by what is asked of the source."""
    asked: list[str] = []
    real = Snapshot.read
    monkeypatch.setattr(Snapshot, "read", lambda self, doing, query: asked.append(doing) or real(self, doing, query))
    return asked


def test_range_shares_snapshots_and_conversions_and_gives_the_same(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, converted = queries(monkeypatch), []
    real = convert_range.convert_batch
    monkeypatch.setattr(
        convert_range, "convert_batch", lambda *given, **more: converted.append(1) or real(*given, **more)
    )
    pipeline.capture(*CONSECUTIVE)
    assert asked.count("Comparing fingerprints") == 1
    assert asked.count("Reading messages") < len(CONSECUTIVE) / 2
    assert 0 < len(converted) < len(CONSECUTIVE) / 2
    together, in_postgres = rows_of(pipeline, CONSECUTIVE), rows_in_postgres(pipeline)
    assert sum(map(len, together)) > 100
    apart = Pipeline(pipeline.letta_url, pipeline.database_url, tmp_path / "apart")
    for hour in CONSECUTIVE:
        apart.read(hour)
        apart.convert(hour)
    assert rows_of(apart, CONSECUTIVE) == together
    assert rows_in_postgres(apart) == in_postgres


def test_range_partition_that_fails_with_others_is_read_by_itself(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Snapshot.read

    def failing(self: Snapshot, doing: str, query: str) -> Any:
        if isinstance(self, RangeSnapshot) and doing == "Reading messages":
            return real(self, doing, "SELECT 1 / 0")
        return real(self, doing, query)

    monkeypatch.setattr(Snapshot, "read", failing)
    pipeline.capture(*CONSECUTIVE[:3])
    assert [pipeline.store.rows(TERMINAL_RUNS, hour) for hour in CONSECUTIVE[:3]] == [
        sample_partitions().get(hour, 0) for hour in CONSECUTIVE[:3]
    ]


def test_range_partition_that_somebody_captured_meanwhile_is_read_anew(pipeline: Pipeline) -> None:
    first, second = next(pair for pair in pairwise(CONSECUTIVE) if set(pair) <= set(BUSY_HOURS))
    with LettaSource(pipeline.letta_url).pooled_for([first, second]) as source:
        pipeline.read(first, source=source)
        with psycopg.connect(pipeline.letta_url) as connection:
            connection.execute(
                "UPDATE runs SET background = NOT coalesce(background, false)"
                " WHERE completed_at >= %s AND completed_at < %s",
                [moment.replace(tzinfo=None) for moment in (second, second + HOUR)],
            )
        pipeline.read(second)
        newer = rows_of(pipeline, [second])
        assert pipeline.read(second, source=source).unchanged
    assert rows_of(pipeline, [second]) == newer


def test_range_conversion_made_ahead_is_not_used_for_other_raw_rows(pipeline: Pipeline) -> None:
    hours = [hour for hour in CONSECUTIVE if hour in BUSY_HOURS][:6]
    for hour in hours:
        pipeline.read(hour)
    together = RangeConversion(hours, pipeline.store)
    pipeline.convert(hours[0], together)
    pipeline.convert(hours[1], together)
    with psycopg.connect(pipeline.letta_url) as connection:
        connection.execute(
            "UPDATE runs SET stop_reason = 'error' WHERE completed_at >= %s AND completed_at < %s",
            [moment.replace(tzinfo=None) for moment in (hours[2], hours[2] + HOUR)],
        )
    pipeline.read(hours[2])
    pipeline.convert(hours[2], together)
    found = {row["stop_reason"] for row in rows_of(pipeline, [hours[2]])[1]}
    assert found == {"error"}


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
