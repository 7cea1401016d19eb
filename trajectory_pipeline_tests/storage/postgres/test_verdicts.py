"""The contract of stored verdicts: each is committed by itself, no policy overwrites another's, and what is due shows.

A connection that is lost amid judging is opened anew: what was paid for is stored.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline_tests.storage.rows import KEY, Row, stage, trajectory

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
        "shown_run_ids": [run_id],
        "shown_digests": ["text"],
        "erased": False,
        **values,
    }


def capture(database: TrajectoryDatabase, *rows: Row, key: str = KEY) -> None:
    with database.partition("trajectories", key) as partition:
        with partition.staging() as staging:
            for row in rows:
                stage(staging, row, f'{{"run_id": "{row["run_id"]}"}}'.encode())
        partition.merge()


def save(verdicts: VerdictStore, *rows: Row) -> None:
    verdicts.save_verdicts(rows, "worker")


def test_saved_verdict_is_visible_at_once(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    requirements = [{"statement": "s", "evidence": [{"quote": "q", "valid": True}]}]
    save(verdicts, verdict("a", requirements=requirements, tags=["x"]))
    (row,) = database.rows("SELECT * FROM trajectory.verdicts")
    assert (row["requirements"], row["tags"], row["attempts"], row["cost_usd"]) == (requirements, ["x"], 0, None)
    assert verdicts.verdicts([("a", "key"), ("a", "other"), ("b", "key")]) == {("a", "key"): row}


def test_replaced_verdict_keeps_its_first_date(verdicts: VerdictStore) -> None:
    save(verdicts, verdict("a", verdict_status="failed", error_class="timeout"))
    (first,) = verdicts.verdicts([("a", "key")]).values()
    save(verdicts, verdict("a", outcome="success"))
    save(verdicts, verdict("a", "of another policy", policy_id="other"))
    (after,) = verdicts.verdicts([("a", "key")]).values()
    assert (after["verdict_status"], after["outcome"], after["error_class"]) == ("judged", "success", None)
    assert after["created_at"] == first["created_at"]
    assert after["updated_at"] > first["updated_at"]
    assert len(verdicts.verdicts([("a", "key"), ("a", "of another policy")])) == 2


def test_verdict_text_beyond_postgres_is_stored_escaped(verdicts: VerdictStore) -> None:
    """NUL and lone surrogates of a response become visible escapes."""
    hard = "nul \x00 and half a smile \ud83d"
    save(
        verdicts,
        verdict("a", summary=hard, tags=[hard], raw_response=hard, requirements=[{hard: [hard]}], lesson="plain"),
    )
    (row,) = verdicts.verdicts([("a", "key")]).values()
    seen = "nul \\u0000 and half a smile \\ud83d"
    assert (row["summary"], row["tags"], row["raw_response"]) == (seen, [seen], seen)
    assert (row["requirements"], row["lesson"]) == ([{seen: [seen]}], "plain")


def test_use_policy_leaves_one_current_policy(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    for policy in ("one", "two", "two", "one"):
        verdicts.use_policy(policy, {"model": policy}, "m")
        assert database.rows("SELECT policy_id FROM trajectory.policies WHERE is_current") == [{"policy_id": policy}]
    assert len(database.rows("SELECT * FROM trajectory.policies")) == 2


def test_outcomes_view_has_verdicts_of_the_current_policy(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    gone = trajectory("gone", deleted_at=datetime(2026, 1, 1, tzinfo=UTC))
    capture(database, trajectory("a"), trajectory("b"), gone, trajectory("changed", content_digest="new"))
    verdicts.use_policy("policy", {}, "m")
    save(verdicts, verdict("a", outcome="success"))
    save(verdicts, verdict("a", "other", policy_id="other", outcome="failure"))
    save(verdicts, verdict("gone", outcome="success"))
    save(verdicts, verdict("changed", outcome="success"))
    rows = {row["run_id"]: row for row in database.rows("SELECT * FROM trajectory.outcomes")}
    assert {run_id: row["outcome"] for run_id, row in rows.items()} == {"a": "success", "b": None, "changed": None}
    assert rows["a"]["heuristic_outcome"] == "text"
    verdicts.use_policy("other", {}, "m")
    rows = {row["run_id"]: row for row in database.rows("SELECT * FROM trajectory.outcomes")}
    assert rows["a"]["outcome"] == "failure"


# ---- what moves on, and what stays ----------------------------------------------------------------------------------


def test_final_verdict_is_not_replaced(verdicts: VerdictStore) -> None:
    """A worker that was held up longer than its claim held may come after the one that took it over."""
    save(verdicts, verdict("a", outcome="success"))
    before = verdicts.verdicts([("a", "key")])
    save(verdicts, verdict("a", verdict_status="failed", error_class="timeout"))
    save(verdicts, verdict("a", outcome="failure"))
    assert verdicts.verdicts([("a", "key")]) == before


def test_failed_verdict_backs_off_further_each_time(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    minutes = []
    for _ in range(10):
        save(verdicts, verdict("a", verdict_status="failed", error_class="timeout"))
        (row,) = verdicts.verdicts([("a", "key")]).values()
        minutes.append(round((row["next_attempt_at"] - row["updated_at"]) / timedelta(minutes=1)))
    assert minutes == [15, 30, 60, 120, 240, 480, 960, 1440, 1440, 1440]
    assert row["failures"] == 10
    save(verdicts, verdict("a", verdict_status="deferred_budget", deferred_usd=Decimal(1), deferred_tokens=5))
    (row,) = verdicts.verdicts([("a", "key")]).values()
    assert (row["failures"], row["next_attempt_at"], row["deferred_usd"]) == (10, None, 1)


def test_failure_without_retry_has_no_next_attempt(verdicts: VerdictStore) -> None:
    save(verdicts, verdict("a", verdict_status="failed", error_class="too_long"))
    (row,) = verdicts.verdicts([("a", "key")]).values()
    assert (row["failures"], row["next_attempt_at"]) == (1, None)


def test_documents_have_their_partition_key(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, trajectory("3"))
    assert verdicts.documents(["3", "nowhere"]) == {"3": ('{"run_id": "3"}', KEY)}


def test_verdict_store_reconnects_after_a_lost_connection(database: TrajectoryDatabase) -> None:
    def connections(action: str) -> int:
        with psycopg.connect(database.url, application_name="other") as other:
            return len(
                other.execute(
                    f"SELECT {action} FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name = 'trajectory-pipeline'".encode()
                ).fetchall()
            )

    with open_verdicts(database) as store:
        connections("pg_terminate_backend(pid)")
        save(store, verdict("a"))
        assert store.verdicts([("a", "key")])
    assert connections("1") == 0
