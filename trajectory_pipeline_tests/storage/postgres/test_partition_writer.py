"""The contract of the trajectory database: a partition's rows in one transaction, and each run in one place.

Rows that did not change are left alone, so that ``updated_at`` says when content changed; nothing is seen before the
commit; two materializations of one partition come one after the other. What cannot be done is one sentence, without a
password in it.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from trajectory_pipeline.errors import PipelineError, SinkError
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry, MergeStats
from trajectory_pipeline_tests.storage.rows import KEY, NEXT_KEY, Row, quarantined, stage, trajectory

PASSWORD = "ge/he%im@é'"


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    return TrajectoryDatabase(trajectory_database)


def store(
    database: TrajectoryDatabase,
    rows: Sequence[Row],
    key: str = KEY,
    bad: Sequence[Row] = (),
    before_commit: Callable[[], None] = lambda: None,
) -> MergeStats:
    with database.partition("trajectories", key) as partition:
        with partition.staging() as staging:
            for row in rows:
                stage(staging, row, f'{{"run_id": "{row["run_id"]}"}}'.encode())
        merged = partition.merge()
        partition.set_quarantine(bad)
        partition.record(entry(key, len(rows)))
        before_commit()
    return merged


def entry(key: str, runs: int) -> LedgerEntry:
    return LedgerEntry("trajectories", key, "complete", {"trajectories": runs}, f"digest of {runs}", "1")


def rows_of(database: TrajectoryDatabase, table: str = "trajectories") -> dict[str, Row]:
    return {row["run_id"]: row for row in database.rows(f"SELECT * FROM trajectory.{table}")}


# ---- merging ------------------------------------------------------------------------------------------------------


def test_merge_of_new_rows_inserts_all_columns(database: TrajectoryDatabase) -> None:
    row = trajectory(
        "a",
        tags=["x", "ü"],
        error={"type": "E", "message": "m", "detail": None, "step_id": None},
        deleted_at=datetime(2026, 11, 21, tzinfo=UTC),
        escaped=["messages[m].content"],
    )
    assert store(database, [row]) == MergeStats(inserted=1, updated=0, unchanged=0, removed=0)
    found = database.trajectory("a")
    assert found is not None
    for name in set(row) - {"turns", "context"}:
        assert found[name] == row[name], name
    assert found["data"] == {"run_id": "a"}
    assert found["first_captured_at"] == found["updated_at"]


def test_merge_updates_changed_rows_and_removes_missing_ones(database: TrajectoryDatabase) -> None:
    store(database, [trajectory("same"), trajectory("changed"), trajectory("gone")])
    before = rows_of(database)
    merged = store(database, [trajectory("same"), trajectory("changed", status="failed"), trajectory("new")])
    assert merged == MergeStats(inserted=1, updated=1, unchanged=1, removed=1)
    after = rows_of(database)
    assert set(after) == {"same", "changed", "new"}
    assert after["same"] == before["same"]
    assert after["changed"]["status"] == "failed"
    assert after["changed"]["updated_at"] > before["changed"]["updated_at"]
    assert after["changed"]["first_captured_at"] == before["changed"]["first_captured_at"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttft_ns", 1),
        ("tags", ["new"]),
        ("signals", {"tool_calls": 9}),
        ("deleted_at", datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_merge_of_a_changed_column_moves_updated_at(database: TrajectoryDatabase, name: str, value: Any) -> None:
    store(database, [trajectory("a")])
    before = rows_of(database)["a"]["updated_at"]
    assert store(database, [trajectory("a", **{name: value})]).updated == 1
    assert rows_of(database)["a"]["updated_at"] > before
    # And a null in it is no change of its own.
    assert store(database, [trajectory("a", **{name: value})]).unchanged == 1


def test_moved_run_is_in_one_partition_with_its_first_date(
    database: TrajectoryDatabase,
) -> None:
    """The first capture of a run is remembered when it moves to another partition."""
    store(database, [trajectory("a"), trajectory("b")])
    before = rows_of(database)["a"]
    assert store(database, [trajectory("a", NEXT_KEY)], NEXT_KEY) == MergeStats(0, 1, 0, 0)
    assert store(database, [trajectory("b")]) == MergeStats(0, 0, 1, 0)
    after = rows_of(database)
    assert {run_id: row["partition_key"] for run_id, row in after.items()} == {"a": NEXT_KEY, "b": KEY}
    assert after["a"]["first_captured_at"] == before["first_captured_at"]


def test_empty_partition_removes_only_its_own_rows(database: TrajectoryDatabase) -> None:
    store(database, [trajectory("a")])
    store(database, [trajectory("b", NEXT_KEY)], NEXT_KEY)
    assert store(database, []).removed == 1
    assert set(rows_of(database)) == {"b"}


def test_document_beyond_jsonb_is_null_with_the_reason(database: TrajectoryDatabase) -> None:
    with database.partition("trajectories", KEY) as partition:
        with partition.staging() as staging:
            stage(staging, trajectory("a"), None, "the document holds a number")
        partition.merge()
    row = rows_of(database)["a"]
    assert (row["data"], row["data_omitted_reason"]) == (None, "the document holds a number")


def test_texts_are_read_back_unchanged(database: TrajectoryDatabase) -> None:
    hard = 'tab\tnewline\nback\\slash quote" comma, brace {} \\N \\. é 漢字 \u202e \x01 \x7f 👩‍👩‍👧'
    store(database, [trajectory("a", agent_name=hard, tags=[hard, "", "NULL"], stop_reason="")])
    row = rows_of(database)["a"]
    assert (row["agent_name"], row["tags"], row["stop_reason"]) == (hard, [hard, "", "NULL"], "")


# ---- quarantine ---------------------------------------------------------------------------------------------------


def test_quarantined_run_keeps_its_first_date_until_fixed(database: TrajectoryDatabase) -> None:
    store(database, [], bad=[quarantined("a"), quarantined("b")])
    first = rows_of(database, "quarantine")
    assert first["a"]["first_seen_at"] == first["a"]["last_seen_at"]
    store(database, [], bad=[quarantined("a", error="still wrong")])
    (again,) = rows_of(database, "quarantine").values()
    assert (again["run_id"], again["error"]) == ("a", "still wrong")
    assert again["first_seen_at"] == first["a"]["first_seen_at"]
    assert again["last_seen_at"] > first["a"]["last_seen_at"]
    assert database.quarantined("a") == again
    store(database, [trajectory("a")])
    assert rows_of(database, "quarantine") == {}
    assert database.quarantined("a") is None


def test_run_is_in_one_table_in_any_partition(database: TrajectoryDatabase) -> None:
    store(database, [trajectory("was good")], bad=[quarantined("was bad")])
    store(database, [trajectory("was bad", NEXT_KEY)], NEXT_KEY, bad=[quarantined("was good")])
    assert set(rows_of(database)) == {"was bad"}
    assert set(rows_of(database, "quarantine")) == {"was good"}


def test_quarantine_error_with_nul_is_stored_escaped(database: TrajectoryDatabase) -> None:
    store(database, [], bad=[quarantined("a", error="found \x00 and \ud83d", json_path="messages[\x00]")])
    row = rows_of(database, "quarantine")["a"]
    assert (row["error"], row["json_path"]) == ("found \\u0000 and \\ud83d", "messages[\\u0000]")


# ---- transactions -------------------------------------------------------------------------------------------------


def test_partition_is_invisible_before_the_commit(database: TrajectoryDatabase) -> None:
    store(database, [trajectory("a")])
    seen: list[Any] = []

    def look() -> None:
        with psycopg.connect(database.url) as other:
            seen.extend(other.execute("SELECT run_id FROM trajectory.trajectories").fetchall())
            seen.extend(other.execute("SELECT counts FROM trajectory.partitions").fetchall())

    store(database, [trajectory("b"), trajectory("c")], bad=[quarantined("d")], before_commit=look)
    assert seen == [("a",), ({"trajectories": 1},)]
    assert set(rows_of(database)) == {"b", "c"}


def test_failure_before_the_commit_changes_nothing(database: TrajectoryDatabase) -> None:
    store(database, [trajectory("a")], bad=[quarantined("q")])
    before = rows_of(database), rows_of(database, "quarantine"), database.ledger("trajectories")

    def fail() -> None:
        raise PipelineError("the file cannot be published")

    with pytest.raises(PipelineError, match=r"^the file cannot be published$"):
        store(database, [trajectory("b")], before_commit=fail)
    assert (rows_of(database), rows_of(database, "quarantine"), database.ledger("trajectories")) == before


def test_two_writers_of_a_partition_are_serialized(database: TrajectoryDatabase) -> None:
    order: list[str] = []
    first_is_in = threading.Event()

    def slowly() -> None:
        first_is_in.set()
        time.sleep(0.4)
        order.append("first")

    first = threading.Thread(target=store, args=(database, [trajectory("a")]), kwargs={"before_commit": slowly})
    first.start()
    first_is_in.wait()
    other = store(database, [trajectory("z", NEXT_KEY)], NEXT_KEY, before_commit=lambda: order.append("other"))
    second = store(database, [trajectory("a"), trajectory("b")], before_commit=lambda: order.append("second"))
    first.join()
    # Another partition does not wait.
    assert order == ["other", "first", "second"]
    assert (other.inserted, second) == (1, MergeStats(inserted=1, updated=0, unchanged=1, removed=0))


def test_many_writers_of_a_partition_leave_one_version(database: TrajectoryDatabase) -> None:
    together = threading.Barrier(6)

    def work(number: int) -> None:
        together.wait()
        store(database, [trajectory(f"r{n}", status=f"by {number}") for n in range(20)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = rows_of(database)
    assert len(rows) == 20
    assert len({row["status"] for row in rows.values()}) == 1


def test_ledger_has_the_last_entry_of_each_partition(database: TrajectoryDatabase) -> None:
    store(database, [trajectory("a")])
    store(database, [trajectory("a"), trajectory("b")])
    store(database, [], NEXT_KEY)
    ledger = database.ledger("trajectories")
    assert {key: entry.counts["trajectories"] for key, entry in ledger.items()} == {KEY: 2, NEXT_KEY: 0}
    assert set(database.ledger("trajectories", [NEXT_KEY])) == {NEXT_KEY}
    assert database.ledger("trajectories", []) == {}
    assert database.ledger("terminal_runs") == {}
    assert database.trajectory("none such") is None


# ---- bad input ----------------------------------------------------------------------------------------------------


def changed(url: str, *, user: str = "", password: str = "", place: str = "", database: str = "") -> str:
    parts = urlsplit(url)
    login, _, there = parts.netloc.rpartition("@")
    login = f"{user}:{quote(password, safe='')}" if user else login
    return f"postgresql://{login}@{place or there}/{database or parts.path.strip('/')}"


def refusal(url: str) -> str:
    with pytest.raises(SinkError) as caught:
        store(TrajectoryDatabase(url), [trajectory("a")])
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert "TRAJECTORY_DATABASE_URL" in text or "trajectory" in text
    for secret in (PASSWORD, quote(PASSWORD, safe=""), urlsplit(url).password or "geheim"):
        assert secret not in text
    return text


@pytest.fixture
def role(database: TrajectoryDatabase) -> Iterator[str]:
    """A user who may log in with ``PASSWORD``, and nothing else."""
    name = f"sink_{uuid4().hex[:12]}"
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'".encode())
        yield name
        connection.execute(f"DROP OWNED BY {name}".encode())
        connection.execute(f"DROP ROLE {name}".encode())


def test_connection_to_a_closed_port_names_the_setting() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = refusal(f"postgresql://me:geheim@127.0.0.1:{port}/trajectory")
    assert text == (
        f"Connecting failed in the database 127.0.0.1:{port}/trajectory: Connection refused — is the server running,"
        " and reachable from here? Check the host and port in TRAJECTORY_DATABASE_URL."
    )


def test_connection_to_an_unknown_host_names_the_setting() -> None:
    text = refusal("postgresql://me:geheim@no-host.invalid/trajectory")
    assert text.startswith("Connecting failed in the database no-host.invalid:5432/trajectory: ")
    assert "Check the host and port in TRAJECTORY_DATABASE_URL" in text


def test_connection_to_a_missing_database_says_create_it(database: TrajectoryDatabase) -> None:
    text = refusal(changed(database.url, database="nowhere"))
    assert 'database "nowhere" does not exist — create it (CREATE DATABASE)' in text


def test_connection_with_a_wrong_password_says_so(database: TrajectoryDatabase, role: str) -> None:
    text = refusal(changed(database.url, user=role, password="wrong" + PASSWORD))
    assert f'password authentication failed for user "{role}"' in text
    assert text.endswith("the password is wrong: check TRAJECTORY_DATABASE_URL.")


def test_user_without_rights_gets_the_needed_grants(database: TrajectoryDatabase, role: str) -> None:
    text = refusal(changed(database.url, user=role, password=PASSWORD))
    assert "permission denied for schema trajectory" in text
    assert "SELECT, INSERT, UPDATE, DELETE" in text


def test_user_with_the_named_rights_can_write(database: TrajectoryDatabase, role: str) -> None:
    with psycopg.connect(database.url) as connection:
        connection.execute(f"GRANT USAGE ON SCHEMA trajectory TO {role}".encode())
        connection.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA trajectory TO {role}".encode()
        )
    as_role = TrajectoryDatabase(changed(database.url, user=role, password=PASSWORD))
    assert store(as_role, [trajectory("a")], bad=[quarantined("q")]).inserted == 1


def test_read_only_user_leaves_no_partial_partition(database: TrajectoryDatabase, role: str) -> None:
    with psycopg.connect(database.url) as connection:
        connection.execute(f"GRANT USAGE ON SCHEMA trajectory TO {role}".encode())
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA trajectory TO {role}".encode())
    assert "permission denied for table trajectories" in refusal(changed(database.url, user=role, password=PASSWORD))
    assert rows_of(database) == {}


def test_lost_connection_says_that_nothing_was_committed(database: TrajectoryDatabase) -> None:
    def end_it() -> None:
        with psycopg.connect(database.url, row_factory=dict_row, application_name="other") as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'trajectory-pipeline'"
            )

    with pytest.raises(SinkError, match=r"the connection was lost: what was not committed is not there"):
        store(database, [trajectory("a")], before_commit=end_it)
    assert rows_of(database) == {}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:ge%zzheim@127.0.0.1:1/x",
        "postgresql://me:geheim@127.0.0.1:1/x?pool_size=5",
        "postgresql://me:1234/geheim@127.0.0.1:1/x",
    ],
)
def test_malformed_url_is_not_repeated_in_the_error(url: str) -> None:
    text = refusal(url)
    assert "geheim" not in text
    assert "zzheim" not in text


def test_invalid_query_raises_one_sentence(database: TrajectoryDatabase) -> None:
    with pytest.raises(
        SinkError, match=r"^Reading failed in the database .*: relation \"trajectory.nothing\" does not"
    ):
        database.rows("SELECT * FROM trajectory.nothing")


def test_database_repr_has_no_password(database: TrajectoryDatabase) -> None:
    assert str(urlsplit(database.url).password) not in repr(database)
