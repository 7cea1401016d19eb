"""The contract of stored verdicts: each is committed by itself, no policy overwrites another's, and what is due shows.

A connection that is lost amid judging is opened anew: what was paid for is stored.
"""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.sinks.database import TrajectoryDatabase
from trajectory_pipeline.sinks.verdicts import GIVE_UP_AFTER, Spent, VerdictStore, open_verdicts

from .rows import KEY, NEXT_KEY, Row, trajectory

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    return TrajectoryDatabase(trajectory_database)


@pytest.fixture
def verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    with open_verdicts(database) as store:
        yield store


def verdict(run_id: str, key: str = "key", **values: Any) -> Row:
    return {
        "run_id": run_id,
        "verdict_key": key,
        "policy_id": "policy",
        "partition_key": KEY,
        "content_digest": "text",
        "verdict_status": "judged",
        "simulated": True,
        "attempts": 1,
        "shown_run_ids": [run_id],
        "shown_digests": ["text"],
        "erased": False,
        **values,
    }


def attempt(attempt_id: str, run_id: str = "a", **values: Any) -> Row:
    return {
        "answer_format": "json_schema",
        "attempt_id": attempt_id,
        "run_id": run_id,
        "verdict_key": "key",
        "policy_id": "policy",
        "started_at": datetime.now(UTC),
        "model": "m",
        "base_url": "http://localhost/v1",
        "prompt_characters": 10,
        "result": "lost",
        **values,
    }


def capture(database: TrajectoryDatabase, *rows: Row, key: str = KEY) -> None:
    with database.partition("trajectories", key) as partition:
        with partition.staging() as staging:
            for row in rows:
                staging.add(row, f'{{"run_id": "{row["run_id"]}"}}', None)
        partition.merge()


def due(verdicts: VerdictStore, quiet_since: datetime = IN_AN_HOUR, ended_since: datetime = LONG_AGO) -> list[str]:
    return verdicts.partitions_without_verdicts("policy", quiet_since=quiet_since, ended_since=ended_since)


def test_a_verdict_is_there_for_others_at_once(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    requirements = [{"statement": "s", "evidence": [{"quote": "q", "valid": True}]}]
    verdicts.save_verdict(verdict("a", requirements=requirements, cost_usd=Decimal("0.000000001"), tags=["x"]))
    (row,) = database.rows("SELECT * FROM trajectory.verdicts")
    assert (row["requirements"], row["cost_usd"], row["tags"]) == (requirements, Decimal("0.000000001"), ["x"])
    assert verdicts.verdicts([("a", "key"), ("a", "other"), ("b", "key")]) == {("a", "key"): row}


def test_a_verdict_moves_on_and_keeps_its_first_date(verdicts: VerdictStore) -> None:
    verdicts.save_verdict(verdict("a", verdict_status="failed", error_class="timeout"))
    (first,) = verdicts.verdicts([("a", "key")]).values()
    verdicts.save_verdict(verdict("a", outcome="success"))
    verdicts.save_verdict(verdict("a", "of another policy", policy_id="other"))
    (after,) = verdicts.verdicts([("a", "key")]).values()
    assert (after["verdict_status"], after["outcome"], after["error_class"]) == ("judged", "success", None)
    assert after["created_at"] == first["created_at"]
    assert after["updated_at"] > first["updated_at"]
    assert len(verdicts.verdicts([("a", "key"), ("a", "of another policy")])) == 2


def test_what_a_judge_may_say_and_postgres_cannot_hold_is_stored_visibly(verdicts: VerdictStore) -> None:
    hard = "nul \x00 and half a smile \ud83d"
    verdicts.save_verdict(
        verdict("a", summary=hard, tags=[hard], raw_answer=hard, requirements=[{hard: [hard]}], lesson="plain")
    )
    verdicts.save_attempt(attempt("1", error_message=hard, request_id=hard))
    (row,) = verdicts.verdicts([("a", "key")]).values()
    seen = "nul \\u0000 and half a smile \\ud83d"
    assert (row["summary"], row["tags"], row["raw_answer"]) == (seen, [seen], seen)
    assert (row["requirements"], row["lesson"]) == ([{seen: [seen]}], "plain")


def test_an_attempt_is_known_before_it_ends_and_then_as_it_ended(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    verdicts.save_attempt(attempt("1"))
    (row,) = database.rows("SELECT * FROM trajectory.verdict_attempts")
    assert (row["result"], row["cost_usd"], row["duration_ns"]) == ("lost", None, None)
    verdicts.save_attempt(attempt("1", result="answered", cost_usd=Decimal("0.25"), input_tokens=7, duration_ns=1))
    (row,) = database.rows("SELECT * FROM trajectory.verdict_attempts")
    assert (row["result"], row["cost_usd"], row["input_tokens"]) == ("answered", Decimal("0.25"), 7)


def test_what_was_spent_is_added_up_and_what_is_not_known_is_no_zero(verdicts: VerdictStore) -> None:
    verdicts.save_attempt(attempt("1", cost_usd=Decimal("0.25"), input_tokens=7, output_tokens=2))
    verdicts.save_attempt(attempt("2", cost_usd=Decimal("0.5"), input_tokens=7, output_tokens=2))
    verdicts.save_attempt(attempt("3"))
    verdicts.save_attempt(attempt("4", "b"))
    assert verdicts.spent([("a", "key"), ("b", "key"), ("c", "key")]) == {
        ("a", "key"): Spent(3, 14, None, 4, Decimal("0.75")),
        ("b", "key"): Spent(1),
    }
    now = datetime.now(UTC)
    assert verdicts.spent_since(now - timedelta(hours=1)) == Decimal("0.75")
    assert verdicts.spent_since(now + timedelta(hours=1)) == 0


def test_one_policy_is_the_current_one(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    for policy in ("one", "two", "two", "one"):
        verdicts.use_policy(policy, {"model": policy}, "m")
        assert database.rows("SELECT policy_id FROM trajectory.policies WHERE is_current") == [{"policy_id": policy}]
    assert len(database.rows("SELECT * FROM trajectory.policies")) == 2


def test_the_view_shows_each_trajectory_with_its_verdict_under_the_current_policy(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    gone = trajectory("gone", deleted_at=datetime(2026, 1, 1, tzinfo=UTC))
    capture(database, trajectory("a"), trajectory("b"), gone, trajectory("changed", content_digest="new"))
    verdicts.use_policy("policy", {}, "m")
    verdicts.save_verdict(verdict("a", outcome="success"))
    verdicts.save_verdict(verdict("a", "other", policy_id="other", outcome="failure"))
    verdicts.save_verdict(verdict("gone", outcome="success"))
    verdicts.save_verdict(verdict("changed", outcome="success"))
    rows = {row["run_id"]: row for row in database.rows("SELECT * FROM trajectory.outcomes")}
    assert {run_id: row["outcome"] for run_id, row in rows.items()} == {"a": "success", "b": None, "changed": None}
    assert rows["a"]["heuristic_outcome"] == "text"
    verdicts.use_policy("other", {}, "m")
    rows = {row["run_id"]: row for row in database.rows("SELECT * FROM trajectory.outcomes")}
    assert rows["a"]["outcome"] == "failure"


# ---- what is due --------------------------------------------------------------------------------------------------


def test_partitions_are_due_where_a_verdict_is_missing(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, trajectory("a", start_time=datetime(2026, 11, 20, tzinfo=UTC)))
    capture(database, trajectory("b", NEXT_KEY, end_time=datetime(2026, 11, 20, tzinfo=UTC)), key=NEXT_KEY)
    assert due(verdicts) == [KEY, NEXT_KEY]
    assert due(verdicts, quiet_since=LONG_AGO) == []
    assert due(verdicts, ended_since=datetime(2026, 11, 21, tzinfo=UTC)) == []
    for status in ("judged", "insufficient_evidence", "not_eligible", "quarantined"):
        verdicts.save_verdict(verdict("a", verdict_status=status))
        assert due(verdicts) == [NEXT_KEY]
    verdicts.save_verdict(verdict("b", policy_id="other"))
    assert due(verdicts) == [NEXT_KEY]


def test_a_verdict_on_former_content_counts_for_nothing(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, trajectory("a", end_time=datetime(2026, 11, 20, tzinfo=UTC), content_digest="new"))
    verdicts.save_verdict(verdict("a"))
    assert due(verdicts) == [KEY]


@pytest.mark.parametrize(
    ("attempts", "error_class", "minutes_ago", "expected"),
    [
        (1, "timeout", 14, False),
        (1, "timeout", 16, True),
        (3, "timeout", 59, False),
        (3, "timeout", 61, True),
        (GIVE_UP_AFTER, "timeout", 1_000_000, False),
        (0, "too_long", 1_000_000, False),
        (0, "earlier_run_missing", 16, True),
    ],
)
def test_a_failed_verdict_is_due_again_later_each_time_and_given_up_in_the_end(
    database: TrajectoryDatabase,
    verdicts: VerdictStore,
    attempts: int,
    error_class: str,
    minutes_ago: int,
    expected: bool,
) -> None:
    capture(database, trajectory("a", end_time=datetime(2026, 11, 20, tzinfo=UTC)))
    verdicts.save_verdict(verdict("a", verdict_status="failed", attempts=attempts, error_class=error_class))
    with psycopg.connect(database.url) as connection:
        connection.execute(
            "UPDATE trajectory.verdicts SET updated_at = now() - %s * interval '1 minute'", [minutes_ago]
        )
    assert due(verdicts) == ([KEY] if expected else [])


# ---- chains -------------------------------------------------------------------------------------------------------


def test_the_earlier_runs_of_a_chain_come_the_earliest_first(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    capture(
        database,
        trajectory("1"),
        trajectory("2", continues_run_id="1"),
        trajectory("3", continues_run_id="2", content_digest="d3"),
        trajectory("4", continues_run_id="3"),
        trajectory("orphan", continues_run_id="nowhere"),
    )
    assert [run["run_id"] for run in verdicts.earlier_runs("4")] == ["1", "2", "3"]
    assert verdicts.earlier_runs("4")[2] == {"run_id": "3", "content_digest": "d3", "partition_key": KEY}
    assert verdicts.earlier_runs("1") == verdicts.earlier_runs("orphan") == verdicts.earlier_runs("nowhere") == []
    assert verdicts.document("3") == {"run_id": "3"}
    assert verdicts.document("nowhere") is None


def test_a_chain_that_bites_its_own_tail_ends(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(
        database,
        trajectory("a", continues_run_id="b"),
        trajectory("b", continues_run_id="a"),
        trajectory("self", continues_run_id="self"),
    )
    assert [run["run_id"] for run in verdicts.earlier_runs("a")] == ["b"]
    assert [run["run_id"] for run in verdicts.earlier_runs("self")] in ([], ["self"])


# ---- one at a time, and through a lost connection -----------------------------------------------------------------


def test_a_partition_is_judged_by_one_at_a_time(database: TrajectoryDatabase) -> None:
    order: list[str] = []
    first_is_in = threading.Event()

    def first() -> None:
        with open_verdicts(database) as store, store.judging(KEY):
            first_is_in.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    first_is_in.wait()
    with open_verdicts(database) as store:
        with store.judging(NEXT_KEY):
            order.append("another partition")
        with store.judging(KEY):
            order.append("second")
    thread.join()
    assert order == ["another partition", "first", "second"]


def test_a_lost_connection_is_opened_anew_with_its_lock(database: TrajectoryDatabase) -> None:
    def connections(action: str) -> int:
        with psycopg.connect(database.url, application_name="other") as other:
            return len(
                other.execute(
                    f"SELECT {action} FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name = 'trajectory-pipeline'".encode()
                ).fetchall()
            )

    def locks() -> int:
        with psycopg.connect(database.url, application_name="other") as other:
            return len(
                other.execute(
                    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND database ="
                    " (SELECT oid FROM pg_database WHERE datname = current_database())"
                ).fetchall()
            )

    with open_verdicts(database) as store, store.judging(KEY):
        connections("pg_terminate_backend(pid)")
        store.save_verdict(verdict("a"))
        assert store.verdicts([("a", "key")])
        assert locks() == 1
    assert connections("1") == 0
