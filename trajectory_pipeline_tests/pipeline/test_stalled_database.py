"""A claim is not taken from a worker that lives, however long the database keeps its answer waiting.

Two workers on one partition and a real Postgres that stalls in several places while an answer waits to be stored.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline import call_budget, judge_worker
from trajectory_pipeline.storage.postgres.verdict_locks import TAKEOVER_POLLS, claim_holders
from trajectory_pipeline.storage.postgres.verdict_status import judging_candidates
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline_tests.crashes.wire import Wire
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

HOUR = sorted(sample_partitions())[0]
RUNS = sample_partitions()[HOUR]
STALL_SECONDS = 4.0


@pytest.fixture
def impatient(pipeline: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Workers whose claims last for a second, and whose calls end at once."""
    monkeypatch.setattr(call_budget, "CLAIM_EXTRA_SECONDS", 0.0)
    monkeypatch.setattr(judge_worker, "CLAIM_EXTRA_SECONDS", 1.0)
    monkeypatch.setattr(judge_worker, "CLAIM_RENEW_SECONDS", 0.2)
    monkeypatch.setattr(judge_worker, "CLAIM_POLL_SECONDS", 0.1)
    pipeline.judge_url = judge.base_url
    pipeline.judge_settings = {"timeout_seconds": 1.0}
    pipeline.capture(HOUR)
    return pipeline


STALLS = {
    "a slow insert of verdicts": "",
    "all of verdicts": "LOCK TABLE trajectory.verdicts IN SHARE MODE",
    "verdicts and claims": "LOCK TABLE trajectory.verdicts, trajectory.verdict_locks IN SHARE MODE",
    "everything": "LOCK TABLE trajectory.verdicts, trajectory.verdict_locks, trajectory.spend_totals,"
    " trajectory.verdict_attempts IN ACCESS EXCLUSIVE MODE",
}


@pytest.mark.parametrize("statement", STALLS.values(), ids=STALLS)
@pytest.mark.heavy
def test_two_workers_pay_once_while_the_database_stalls(
    impatient: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    stalled = threading.Event()
    save = judge_worker.JudgeWorker._save_verdicts
    if not statement:
        impatient.do(
            "CREATE FUNCTION trajectory.wait() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN PERFORM pg_sleep({STALL_SECONDS}); RETURN NEW; END $$",
            "CREATE TRIGGER wait BEFORE INSERT ON trajectory.verdicts FOR EACH STATEMENT"
            " EXECUTE FUNCTION trajectory.wait()",
        )

    def saving(worker: Any, rows: Any) -> Any:
        """The answer is paid for; the database stalls before it is stored."""
        if not stalled.is_set():
            stalled.set()
            if statement:
                locked.wait(timeout=30)
        return save(worker, rows)

    locked = threading.Event()
    monkeypatch.setattr(judge_worker.JudgeWorker, "_save_verdicts", saving)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(impatient.refine, HOUR)
        assert stalled.wait(timeout=60)
        with psycopg.connect(impatient.database_url) as holder:
            if statement:
                holder.execute(statement.encode())
            locked.set()
            second = threads.submit(impatient.refine, HOUR)
            time.sleep(STALL_SECONDS)
        assert [sum(one.result(timeout=60).statuses.values()) for one in (first, second)] == [RUNS, RUNS]
    assert_paid_once(impatient, judge)


@pytest.mark.heavy
def test_two_workers_pay_once_while_the_wire_stalls(
    impatient: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing passes between the workers and the database, though both are up."""
    held, stalled = threading.Event(), threading.Event()
    held.set()
    save = judge_worker.JudgeWorker._save_verdicts

    def saving(worker: Any, rows: Any) -> Any:
        if not stalled.is_set():
            held.clear()
            stalled.set()
        return save(worker, rows)

    def waiting(piece: bytes, before: int) -> bool:
        held.wait(timeout=60)
        return False

    monkeypatch.setattr(judge_worker.JudgeWorker, "_save_verdicts", saving)
    with closing(Wire(impatient.database_url)) as line, ThreadPoolExecutor() as threads:
        line.from_client = line.from_server = waiting
        distant = replace(impatient, database_url=line.url)
        first = threads.submit(distant.refine, HOUR)
        assert stalled.wait(timeout=60)
        second = threads.submit(distant.refine, HOUR)
        time.sleep(STALL_SECONDS)
        held.set()
        assert [sum(one.result(timeout=60).statuses.values()) for one in (first, second)] == [RUNS, RUNS]
    assert_paid_once(impatient, judge)


def assert_paid_once(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    calls = pipeline.ask("SELECT run_id FROM trajectory.verdict_attempts")
    assert len(calls) == len({row["run_id"] for row in calls}) == judge.calls()["received"]
    assert pipeline.ask("SELECT * FROM trajectory.verdict_locks") == []


def claim_all(pipeline: Pipeline, worker: str, expires_at: str) -> None:
    """Claim every run of the hour for a worker; ``expires_at`` is SQL."""
    with open_verdicts(pipeline.database) as store:
        found = judging_candidates(store.connection, pipeline.policy.policy_id, [partition_key(HOUR)], pipeline.order)
    for one in found:
        pipeline.do(
            "INSERT INTO trajectory.verdict_locks (verdict_key, worker, claimed_at, expires_at)"
            f" VALUES ('{one.verdict_key}', '{worker}', now(), {expires_at})"
        )


def test_claim_of_a_killed_worker_is_taken_over(impatient: Pipeline) -> None:
    """Nobody renews it: after some prompt answers that show it expired, another worker judges."""
    claim_all(impatient, "killed", "now() + interval '1 second'")
    assert impatient.refine(HOUR).statuses.total() == RUNS


def test_claim_that_is_renewed_late_is_not_taken_over(
    impatient: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner lives: the claims are seen expired in several answers of the database, and then renewed."""
    claim_all(impatient, "alive", "now() - interval '1 second'")
    polls: list[bool] = []
    late = TAKEOVER_POLLS - 1

    def looking(connection: Any, keys: Any) -> Any:
        holders = claim_holders(connection, keys)
        polls.append(all(holder.expired for holder in holders.values()))
        if len(polls) == late:
            impatient.do("UPDATE trajectory.verdict_locks SET expires_at = now() + interval '1 hour'")
        elif len(polls) == late + 2:
            impatient.do("UPDATE trajectory.verdict_locks SET expires_at = now() - interval '1 second'")
        elif len(polls) == 2 * late:
            assert judge.calls()["received"] == 0
            impatient.do("DELETE FROM trajectory.verdict_locks")
        return holders

    monkeypatch.setattr(judge_worker, "claim_holders", looking)
    assert impatient.refine(HOUR).statuses.total() == RUNS
    assert polls[:late] == [True] * late
    assert False in polls
    assert len(polls) >= 2 * late
    assert_paid_once(impatient, judge)
