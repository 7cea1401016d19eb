"""The contract of claims: one worker is at a verdict, and one that was killed holds it up for a while only."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdict_locks import (
    TAKEOVER_POLLS,
    AlreadyClaimed,
    ClaimHolder,
    ExpiredClaims,
    claim_holders,
    new_worker,
    renew_locks,
)
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline_tests.server_databases import wait_for_lock
from trajectory_pipeline_tests.storage.calls import begin_calls, reservation, totals_by_scope
from trajectory_pipeline_tests.storage.postgres.test_verdicts import save, verdict


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    return TrajectoryDatabase(trajectory_database)


@pytest.fixture
def verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    with open_verdicts(database) as store:
        yield store


def begins(verdicts: VerdictStore, worker: str, key: str = "k", former: str | None = None) -> bool:
    call = reservation(verdict_key=key, worker=worker, former=former)
    (refusal,) = begin_calls(verdicts.connection, [], [call])
    assert refusal in (None, AlreadyClaimed(key))
    return refusal is None


def expire_claims(database: TrajectoryDatabase) -> None:
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.verdict_locks SET expires_at = now() - interval '1 second'")


def test_claimed_verdict_refuses_other_workers(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    assert begins(verdicts, "one")
    assert begins(verdicts, "one")
    assert not begins(verdicts, "two")
    assert begins(verdicts, "two", "another verdict")
    assert totals_by_scope(database)["day"][0] == 3
    assert claim_holders(verdicts.connection, ["k", "another verdict", "nobody's"]) == {
        "k": ClaimHolder("one", expired=False),
        "another verdict": ClaimHolder("two", expired=False),
    }


def test_expired_claim_is_taken_over_for_good(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    """The former holder cannot renew it."""
    assert begins(verdicts, "one")
    expire_claims(database)
    assert claim_holders(verdicts.connection, ["k"]) == {"k": ClaimHolder("one", expired=True)}
    assert not begins(verdicts, "two")
    assert begins(verdicts, "two", former="one")
    assert not begins(verdicts, "one")


def test_expired_claim_is_renewed_by_its_holder(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    assert begins(verdicts, "one")
    expire_claims(database)
    assert begins(verdicts, "one")
    assert not begins(verdicts, "two")


def test_renewed_claim_cannot_be_taken_over(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    """Another worker saw it expired; then its holder was heard of again."""
    assert begins(verdicts, "one")
    expire_claims(database)
    renew_locks(verdicts.connection, "one", 60.0)
    renew_locks(verdicts.connection, "two", 60.0)
    assert not begins(verdicts, "two", former="one")
    assert begins(verdicts, "one")


def test_holder_counts_as_dead_only_after_many_answers_in_a_row() -> None:
    expired, alive = {"k": ClaimHolder("one", expired=True)}, {"k": ClaimHolder("one", expired=False)}
    claims = ExpiredClaims()
    assert [claims.dead_holders(expired) for _ in range(TAKEOVER_POLLS - 1)] == [{}] * (TAKEOVER_POLLS - 1)
    assert claims.dead_holders(alive) == {}
    assert [claims.dead_holders(expired) for _ in range(TAKEOVER_POLLS - 1)] == [{}] * (TAKEOVER_POLLS - 1)
    assert claims.dead_holders({"k": ClaimHolder("another", expired=True)}) == {}
    assert [claims.dead_holders(expired) for _ in range(TAKEOVER_POLLS)][-1] == {"k": "one"}


def test_verdict_stored_while_totals_were_locked_is_not_paid_again(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    """A worker waits for the totals, and the verdict that it wants to ask for is stored meanwhile."""
    assert begins(verdicts, "one")
    verdicts.release_locks("one")
    with psycopg.connect(database.url) as holder, ThreadPoolExecutor() as threads, open_verdicts(database) as other:
        holder.execute("SELECT FROM trajectory.spend_totals FOR UPDATE")
        waiting = threads.submit(begins, other, "two")
        wait_for_lock(database.url)
        verdicts.save_verdicts([verdict("run-k", "k", outcome="success")], "one")
        holder.rollback()
        assert not waiting.result(timeout=30)
    assert claim_holders(verdicts.connection, ["k"]) == {}
    assert totals_by_scope(database)["day"][0] == 1


def test_final_verdict_cannot_be_claimed(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    assert begins(verdicts, "one")
    verdicts.save_verdicts([verdict("run-k", "k", outcome="success")], "one")
    assert not begins(verdicts, "two")
    assert claim_holders(verdicts.connection, ["k"]) == {}


def test_failed_verdict_releases_its_claim(verdicts: VerdictStore) -> None:
    assert begins(verdicts, "one")
    verdicts.save_verdicts([verdict("run-k", "k", verdict_status="failed", error_class="timeout")], "one")
    assert begins(verdicts, "two")


def test_saving_a_verdict_releases_no_claim_of_others(verdicts: VerdictStore) -> None:
    assert begins(verdicts, "two")
    save(verdicts, verdict("run-k", "k", verdict_status="failed"))
    assert not begins(verdicts, "one")
    verdicts.release_locks("one")
    assert not begins(verdicts, "one")
    verdicts.release_locks("two")
    assert begins(verdicts, "one")


def test_worker_names_are_unique() -> None:
    assert len({new_worker() for _ in range(100)}) == 100
