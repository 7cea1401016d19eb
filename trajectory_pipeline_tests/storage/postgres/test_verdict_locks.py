"""The contract of claims: one worker is at a verdict, and one that was killed holds it up for a while only."""

from collections.abc import Iterator

import psycopg
import pytest

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdict_locks import AlreadyClaimed, live_locks, new_worker
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline_tests.storage.calls import begin_calls, reservation, totals_by_scope
from trajectory_pipeline_tests.storage.postgres.test_verdicts import save, verdict


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    return TrajectoryDatabase(trajectory_database)


@pytest.fixture
def verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    with open_verdicts(database) as store:
        yield store


def begins(verdicts: VerdictStore, worker: str, key: str = "k") -> bool:
    (refusal,) = begin_calls(verdicts.connection, [], [reservation(verdict_key=key, worker=worker)])
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
    assert live_locks(verdicts.connection, ["k", "another verdict", "nobody's"]) == {"k", "another verdict"}


def test_expired_claim_is_taken_over_for_good(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    """The former holder cannot renew it."""
    assert begins(verdicts, "one")
    expire_claims(database)
    assert live_locks(verdicts.connection, ["k"]) == set()
    assert begins(verdicts, "two")
    assert not begins(verdicts, "one")


def test_expired_claim_is_renewed_by_its_holder(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    assert begins(verdicts, "one")
    expire_claims(database)
    assert begins(verdicts, "one")
    assert not begins(verdicts, "two")


def test_final_verdict_cannot_be_claimed(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    assert begins(verdicts, "one")
    verdicts.save_verdicts([verdict("run-k", "k", outcome="success")], "one")
    assert not begins(verdicts, "two")
    assert live_locks(verdicts.connection, ["k"]) == set()


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
