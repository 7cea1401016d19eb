"""The contract of claims: one worker is at a verdict, and one that was killed holds it up for a while only."""

from collections.abc import Iterator

import psycopg
import pytest

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdict_locks import AlreadyClaimed, live_locks, new_worker
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline_tests.storage.calls import begin_calls, beginning, booked
from trajectory_pipeline_tests.storage.postgres.test_verdicts import save, verdict


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    return TrajectoryDatabase(trajectory_database)


@pytest.fixture
def verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    with open_verdicts(database) as store:
        yield store


def begins(verdicts: VerdictStore, worker: str, key: str = "k") -> bool:
    (refusal,) = begin_calls(verdicts.connection, [], [beginning(verdict_key=key, worker=worker)])
    assert refusal in (None, AlreadyClaimed(key))
    return refusal is None


def pass_time(database: TrajectoryDatabase) -> None:
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.verdict_locks SET expires_at = now() - interval '1 second'")


def test_no_other_worker_may_call_while_one_is_at_a_verdict(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    assert begins(verdicts, "one")
    assert begins(verdicts, "one")
    assert not begins(verdicts, "two")
    assert begins(verdicts, "two", "another verdict")
    assert booked(database)["day"][0] == 3
    assert live_locks(verdicts.connection, ["k", "another verdict", "nobody's"]) == {"k", "another verdict"}


def test_a_claim_that_ended_is_taken_over_and_its_former_holder_stays_away(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    assert begins(verdicts, "one")
    pass_time(database)
    assert live_locks(verdicts.connection, ["k"]) == set()
    assert begins(verdicts, "two")
    assert not begins(verdicts, "one")


def test_a_claim_that_ended_and_that_nobody_took_is_renewed(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    assert begins(verdicts, "one")
    pass_time(database)
    assert begins(verdicts, "one")
    assert not begins(verdicts, "two")


def test_a_verdict_that_is_there_is_not_called_for_again(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    assert begins(verdicts, "one")
    verdicts.save_verdicts([verdict("run-k", "k", outcome="success")], "one")
    assert not begins(verdicts, "two")
    assert live_locks(verdicts.connection, ["k"]) == set()


def test_a_verdict_that_failed_gives_its_claim_back(verdicts: VerdictStore) -> None:
    assert begins(verdicts, "one")
    verdicts.save_verdicts([verdict("run-k", "k", verdict_status="failed", error_class="timeout")], "one")
    assert begins(verdicts, "two")


def test_storing_a_verdict_gives_back_no_claim_of_another(verdicts: VerdictStore) -> None:
    assert begins(verdicts, "two")
    save(verdicts, verdict("run-k", "k", verdict_status="failed"))
    assert not begins(verdicts, "one")
    verdicts.release_locks("one")
    assert not begins(verdicts, "one")
    verdicts.release_locks("two")
    assert begins(verdicts, "one")


def test_no_two_workers_have_the_same_name() -> None:
    assert len({new_worker() for _ in range(100)}) == 100
