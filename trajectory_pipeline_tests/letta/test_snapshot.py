"""One partition is read as of one moment, bounded in time, and nothing is ever written, whatever others do."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.letta import snapshot as snapshots
from trajectory_pipeline.letta.run_counts import find_stuck_runs
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline_tests.letta.snapshots import (
    FAR_AHEAD,
    LONG_AGO,
    all_runs,
    ask,
    by_id,
    changed,
    do,
)

ABOUT_US = (
    "SELECT application_name, state, current_setting('application_name') FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def test_snapshot_does_not_see_later_commits(letta_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", 20)
    before = all_runs(letta_database)
    last = max(before)
    with LettaSource(letta_database).snapshot() as snapshot:
        batches = snapshot.terminal_runs(LONG_AGO, FAR_AHEAD)
        read = [next(batches)]
        do(
            letta_database,
            "UPDATE runs SET status = 'failed', metadata_ = '{}' WHERE completed_at IS NOT NULL",
            "UPDATE messages SET content = '[]', is_deleted = true",
            f"DELETE FROM messages WHERE run_id = '{last}'",
            f"DELETE FROM runs WHERE id = '{last}'",
            "INSERT INTO runs (id, status, completed_at, agent_id, organization_id)"
            " SELECT 'run-zzz', 'completed', completed_at, agent_id, organization_id FROM runs"
            " WHERE completed_at IS NOT NULL LIMIT 1",
            "DELETE FROM agents_tags",
        )
        read.extend(batches)
        assert snapshot.run_locations([last, "run-zzz"])[last].exists
        assert not snapshot.run_locations(["run-zzz"])["run-zzz"].exists
    assert by_id(read) == before
    after = all_runs(letta_database)
    assert after.keys() == before.keys() - {last} | {"run-zzz"}


def test_write_through_the_snapshot_is_refused(untouched_sample: str) -> None:
    for statement in (
        "INSERT INTO public.agents_tags (agent_id, tag) SELECT id, 'ours' FROM public.agents",
        "UPDATE public.runs SET status = 'failed'",
        "DELETE FROM public.messages",
        "CREATE TABLE public.ours (id text)",
        "SELECT nextval('public.message_seq_id')",
        "SELECT * FROM public.runs FOR UPDATE",
    ):
        with (
            LettaSource(untouched_sample).snapshot() as snapshot,
            pytest.raises(SourceError, match="read-only transaction"),
        ):
            snapshot.read("Writing", statement)


def test_reading_leaves_the_source_as_it_was(untouched_sample: str) -> None:
    marks = "SELECT tableoid::regclass::text, ctid::text, xmin::text FROM {} ORDER BY 1, 2"
    tables = ("runs", "steps", "messages", "agents", "run_metrics", "step_metrics")
    before = [ask(untouched_sample, marks.format(table)) for table in tables]
    all_runs(untouched_sample)
    assert [ask(untouched_sample, marks.format(table)) for table in tables] == before


def test_connection_has_our_application_name(untouched_sample: str) -> None:
    with LettaSource(untouched_sample).snapshot():
        (row,) = ask(untouched_sample, ABOUT_US)
        assert row[:2] == ("trajectory-pipeline", "idle in transaction")


@pytest.mark.parametrize("name", ["nightly-capture", "50%25%20off"])
def test_application_name_in_the_url_is_used(untouched_sample: str, name: str) -> None:
    with LettaSource(changed(untouched_sample, query=f"application_name={name}")).snapshot():
        (row,) = ask(untouched_sample, ABOUT_US)
        assert row[0] == name.replace("%25", "%").replace("%20", " ")


def test_session_has_timeouts_and_reads_utc(untouched_sample: str) -> None:
    with LettaSource(untouched_sample, timeout_seconds=77).snapshot() as snapshot:
        for name, value in (
            ("statement_timeout", "77s"),
            ("idle_in_transaction_session_timeout", "77s"),
            ("TimeZone", "UTC"),
            ("transaction_isolation", "repeatable read"),
            ("transaction_read_only", "on"),
        ):
            assert snapshot.read("Asking", f"SELECT current_setting('{name}') AS v")["v"].to_pylist() == [value]


def test_timeout_beyond_postgres_is_the_longest_it_holds(untouched_sample: str) -> None:
    with LettaSource(untouched_sample, timeout_seconds=10**9).snapshot() as snapshot:
        assert len(snapshot.run_ids(LONG_AGO, FAR_AHEAD)) == 317


def test_settings_end_with_the_transaction(untouched_sample: str) -> None:
    """A pooler gives the session to another client afterwards: its settings must be unchanged."""
    with LettaSource(untouched_sample).snapshot() as snapshot, snapshot.connection.cursor() as cursor:
        cursor.execute("ROLLBACK")
        for name in ("default_transaction_read_only", "statement_timeout", "idle_in_transaction_session_timeout"):
            cursor.execute(f"SELECT current_setting('{name}')")
            assert cursor.fetchone() in (("off",), ("0",))


def test_snapshot_leaves_no_connection_open(untouched_sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", 20)
    with LettaSource(untouched_sample).snapshot() as snapshot:
        next(snapshot.terminal_runs(LONG_AGO, FAR_AHEAD))
    with pytest.raises(RuntimeError, match="of the reader's user"), LettaSource(untouched_sample).snapshot():
        raise RuntimeError("of the reader's user")
    with psycopg.connect(untouched_sample) as connection:
        for _ in range(50):
            left = connection.execute(ABOUT_US.encode()).fetchall()
            connection.rollback()
            if not left:
                return
            connection.execute("SELECT pg_sleep(0.1)")
    raise AssertionError(left)


def test_snapshot_time_is_the_sources_and_not_too_late(untouched_sample: str) -> None:
    earlier = datetime.now(UTC)
    with LettaSource(untouched_sample).snapshot() as snapshot:
        assert snapshot.taken_at.utcoffset() == timedelta(0)
        assert timedelta(seconds=-60) < snapshot.taken_at - earlier < timedelta(seconds=60)
        (now,) = ask(untouched_sample, "SELECT clock_timestamp()")
        assert snapshot.taken_at <= now[0]


def test_repr_of_source_and_snapshot_hides_the_password(untouched_sample: str) -> None:
    assert "geheim" not in repr(LettaSource("postgresql://me:geheim@host/letta"))
    with LettaSource(untouched_sample).snapshot() as snapshot:
        assert untouched_sample not in repr(snapshot)


def test_prefetched_rows_equal_those_read_in_turn(letta_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", 20)
    with LettaSource(letta_database).snapshot() as snapshot:
        plainly = list(snapshot.terminal_runs(LONG_AGO, FAR_AHEAD))
        with snapshot.prefetch_terminal_runs(LONG_AGO, FAR_AHEAD) as batches:
            assert list(batches) == plainly
    assert len(plainly) > 3


def test_snapshot_can_be_used_after_an_abandoned_prefetch(letta_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "RUNS_PER_BATCH", 20)
    with LettaSource(letta_database).snapshot() as snapshot:
        with snapshot.prefetch_terminal_runs(LONG_AGO, FAR_AHEAD) as batches:
            next(batches)
        asked = snapshot.queries
        assert snapshot.run_ids(LONG_AGO, FAR_AHEAD)
        assert snapshot.queries == asked + 1


def test_run_without_a_status_counts_as_stuck(letta_database: str) -> None:
    do(letta_database, "ALTER TABLE runs ALTER status DROP NOT NULL", "UPDATE runs SET status = NULL")
    with LettaSource(letta_database).snapshot() as snapshot:
        assert {run.status for run in find_stuck_runs(snapshot, timedelta(0))} == {"null"}
