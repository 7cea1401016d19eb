"""The contract of a connection that is cut, or a statement that is ended by the server: one clear sentence, both sinks
as they were, and one ordinary run afterwards makes all true."""

import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime

import psycopg
import pytest

from trajectory_pipeline.errors import PipelineError, SinkError, SourceError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline_tests.crashes.expected import assert_complete
from trajectory_pipeline_tests.crashes.processes import locks_and_sessions, wait_until
from trajectory_pipeline_tests.crashes.wire import Wire
from trajectory_pipeline_tests.crashes.worker import mark
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row

pytestmark = pytest.mark.heavy


def state(pipeline: Pipeline) -> tuple[dict[str, bytes], list[Row], list[Row]]:
    tables = [pipeline.ask(f"SELECT * FROM trajectory.{name} ORDER BY 1, 2") for name in ("trajectories", "partitions")]
    return pipeline.files(), tables[0], tables[1]


@pytest.fixture
def captured(pipeline: Pipeline, hours: list[datetime]) -> Pipeline:
    """All of it captured once, and changed at the source since."""
    pipeline.capture(*hours)
    mark(pipeline, "changed", hours)
    return pipeline


def refuses(work: Callable[[], object], kind: type[PipelineError], words: str, *urls: str) -> None:
    with pytest.raises(kind, match=words) as refusal:
        work()
    assert "\n" not in str(refusal.value)
    for url in urls:
        assert psycopg.conninfo.conninfo_to_dict(url)["password"] not in str(refusal.value)


def _after_100_kb(piece: bytes, passed: int) -> bool:
    """Whether the driver is still asking for the server's types."""
    return passed + len(piece) > 100_000


def _steps(piece: bytes, passed: int) -> bool:
    return b"step-" in piece


def _messages(piece: bytes, passed: int) -> bool:
    return b"message-" in piece


@pytest.mark.parametrize("cut_at", [_after_100_kb, _steps, _messages])
def test_source_connection_cut_during_read_changes_nothing(
    captured: Pipeline, hours: list[datetime], cut_at: Callable[[bytes, int], bool]
) -> None:
    before = state(captured)
    with closing(Wire(captured.letta_url)) as cut:
        cut.from_server = cut_at
        beyond = Pipeline(cut.url, captured.database_url, captured.folder)
        refuses(
            lambda: beyond.capture(*hours),
            SourceError,
            r" failed at the source 127\.0\.0\.1:.* the connection was lost: materialize the partition again\.$",
            captured.letta_url,
        )
        assert cut.cuts
    assert state(captured) == before
    assert_complete(captured, hours)


def _in_copy(piece: bytes, passed: int) -> bool:
    """Whether a client is sending rows by COPY."""
    return piece[:1] == b"d"


def _commits(piece: bytes, passed: int) -> bool:
    return b"COMMIT" in piece


@pytest.mark.parametrize(("where", "cut_at"), [("in the middle of a COPY", _in_copy), ("at the commit", _commits)])
def test_sink_connection_cut_during_write_changes_nothing(
    captured: Pipeline, hours: list[datetime], where: str, cut_at: Callable[[bytes, int], bool]
) -> None:
    captured.read(hours[0])
    rows = state(captured)[1:]
    with closing(Wire(captured.database_url)) as cut:
        beyond = Pipeline(captured.letta_url, cut.url, captured.folder)
        cut.from_client = cut_at
        refuses(
            lambda: beyond.convert(hours[0]),
            SinkError,
            r" failed in the database 127\.0\.0\.1:.* the connection was lost: what was not committed is not there",
            captured.database_url,
        )
        assert cut.cuts
    wait_until(lambda: locks_and_sessions(captured.database_url) == (0, 0), "the server to notice")
    assert state(captured)[1:] == rows
    assert_complete(captured, hours)


def test_commit_with_a_lost_reply_is_found_done(captured: Pipeline, hours: list[datetime]) -> None:
    captured.read(hours[0])
    with closing(Wire(captured.database_url)) as cut:
        seen = threading.Event()

        def sees(piece: bytes, passed: int) -> bool:
            if b"COMMIT" in piece:
                seen.set()
            return False

        cut.from_client = sees
        cut.from_server = lambda piece, passed: seen.is_set()
        with pytest.raises(SinkError, match="the connection was lost"):
            Pipeline(captured.letta_url, cut.url, captured.folder).convert(hours[0])
    assert_complete(captured, hours)


def test_slow_source_ends_by_its_timeout(captured: Pipeline, hours: list[datetime]) -> None:
    before = state(captured)
    with psycopg.connect(captured.letta_url) as upgrading:
        upgrading.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        refuses(
            lambda: materialize_terminal_runs(
                hours[0], LettaSource(captured.letta_url, timeout_seconds=1), captured.storage
            ),
            SourceError,
            r"canceling statement due to statement timeout — the query took longer than TRAJECTORY_SOURCE_TIMEOUT",
        )
    assert state(captured) == before
    assert_complete(captured, hours)


def test_convert_waits_for_a_row_whatever_the_default_isolation(captured: Pipeline, hours: list[datetime]) -> None:
    """A sink whose transactions are SERIALIZABLE by default, as an administrator may set it."""
    captured.read(hours[0])
    rows = captured.ask("SELECT run_id FROM trajectory.trajectories WHERE partition_key = %s", partition_key(hours[0]))
    strict = f"{captured.database_url}?options=-c%20default_transaction_isolation%3Dserializable"
    with psycopg.connect(captured.database_url) as other:
        other.execute(
            "UPDATE trajectory.trajectories SET updated_at = updated_at WHERE run_id = %s", [rows[0]["run_id"]]
        )
        worker = threading.Thread(target=Pipeline(captured.letta_url, strict, captured.folder).convert, args=[hours[0]])
        worker.start()
        wait_until(lambda: _waits_for_a_row(captured), "the row that the other one holds")
    worker.join()
    assert_complete(captured, hours)


def test_deadlock_raises_and_can_be_repeated(captured: Pipeline, hours: list[datetime]) -> None:
    """Somebody's statement takes the same rows in another order."""
    captured.read(hours[-1])
    rows = captured.ask(
        "SELECT run_id FROM trajectory.trajectories WHERE partition_key = %s ORDER BY 1", partition_key(hours[-1])
    )
    assert len(rows) > 1
    before = state(captured)
    with psycopg.connect(captured.database_url) as other:
        # The other one has waited for so long by then that it is ours that Postgres ends.
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("SELECT FROM trajectory.trajectories WHERE run_id = %s FOR UPDATE", [rows[-1]["run_id"]])
        said: list[BaseException] = []

        def work() -> None:
            try:
                captured.convert(hours[-1])
            except PipelineError as error:
                said.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        wait_until(lambda: _waits_for_a_row(captured), "the row that the other one holds")
        other.execute("SELECT FROM trajectory.trajectories WHERE run_id = %s FOR UPDATE", [rows[0]["run_id"]])
        worker.join()
    (error,) = said
    assert "deadlock detected — another materialization moved the same runs: materialize again." in str(error)
    assert state(captured) == before
    assert_complete(captured, hours)


def _waits_for_a_row(pipeline: Pipeline) -> bool:
    rows = pipeline.ask(
        "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'"
    )
    return bool(rows[0]["n"])
