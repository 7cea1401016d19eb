"""The file of ``refined_outcomes`` holds the stored verdicts, wherever a worker was killed and whatever moved."""

import os
import signal
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline import call_budget, judge_worker
from trajectory_pipeline.pipeline import judge as judging
from trajectory_pipeline.pipeline.judge import JudgingRun
from trajectory_pipeline.pipeline.pending_verdicts import PendingVerdicts, find_pending_verdicts
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.parquet.store import StagedFile
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, delete_run

HOURS = sorted(sample_partitions())[:3]
KEYS = [partition_key(hour) for hour in HOURS]
UNPUBLISHED = "the file of refined_outcomes does not hold the verdicts that are stored"


@pytest.fixture
def captured(pipeline: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    # What a killed process claimed is free again soon.
    for module in (call_budget, judge_worker):
        monkeypatch.setattr(module, "CLAIM_EXTRA_SECONDS", 3.0)
    pipeline.judge_settings = {"timeout_seconds": 5.0}
    pipeline.judge_url = judge.base_url
    pipeline.capture(*HOURS)
    return pipeline


def pending(pipeline: Pipeline, hours: list[datetime] = HOURS) -> PendingVerdicts:
    """What the sensor finds."""
    now = pipeline.database.now() + timedelta(minutes=1)
    return find_pending_verdicts(
        pipeline.database,
        pipeline.judge,
        now=now,
        settle_for=timedelta(0),
        lookback=timedelta(days=10_000),
        give_up_after=10,
        compared=[partition_key(hour) for hour in hours],
    )


def differences(pipeline: Pipeline) -> list[str]:
    scope = CompletenessScope(HOURS[0], timedelta(days=1))
    found = check_completeness(LettaSource(pipeline.letta_url), pipeline.storage, scope).differences
    return [words for words in found if any(words.startswith(partition_key(hour)) for hour in HOURS)]


def publish(pipeline: Pipeline, hours: list[datetime] = HOURS) -> None:
    """What a run that the sensor requests does: no judge is asked."""
    JudgingRun(pipeline.storage, pipeline.judge, publish_only=True).judge_partitions(hours)


def shown_alone(pipeline: Pipeline) -> str:
    """A run that is no context of another one, whose verdict would change with it."""
    rows = pipeline.ask(
        "SELECT t.run_id FROM trajectory.trajectories t WHERE partition_key = %s AND NOT EXISTS (SELECT FROM"
        " trajectory.verdicts v WHERE t.run_id = ANY(v.shown_run_ids) AND v.run_id <> t.run_id) ORDER BY 1 LIMIT 1",
        KEYS[0],
    )
    return str(rows[0]["run_id"])


def assert_healed(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    """The next tick writes the files without a call; then they hold what the view of outcomes shows."""
    calls = judge.calls()["received"]
    found = pending(pipeline)
    assert found.partition_keys == []
    publish(pipeline, [hour for hour in HOURS if partition_key(hour) in found.unpublished])
    assert judge.calls()["received"] == calls
    assert pending(pipeline).unpublished == []
    assert differences(pipeline) == []
    for hour in HOURS:
        stored = pipeline.ask(
            "SELECT run_id FROM trajectory.outcomes WHERE partition_key = %s AND verdict_status IS NOT NULL",
            partition_key(hour),
        )
        assert {row["run_id"] for row in pipeline.parquet(REFINED_OUTCOMES, hour)} == {row["run_id"] for row in stored}


KILLED_AT: dict[str, tuple[Any, str, bool]] = {
    "before the file": (JudgingRun, "_publish", False),
    "before the ledger": (PartitionTransaction, "record", False),
    "before the rename": (StagedFile, "publish", False),
    "before the commit": (StagedFile, "publish", True),
}


@pytest.mark.process
@pytest.mark.parametrize("number", some_heavy([1, 3], 1))
@pytest.mark.parametrize("where", some_heavy(KILLED_AT, "before the ledger", "before the commit"))
def test_publication_after_a_kill_heals_at_the_next_tick(
    captured: Pipeline, judge: SimulatedJudge, where: str, number: int
) -> None:
    hours = HOURS[:number]
    assert fork(lambda: captured.refine_range(hours), where) == -signal.SIGKILL
    if number == 1:
        assert pending(captured).partition_keys == KEYS[1:]
        assert pending(captured, hours).unpublished == KEYS[:1]
        assert differences(captured)[0] == f"{KEYS[0]}: {UNPUBLISHED}: materialize refined_outcomes"
    captured.refine_range(HOURS)
    assert_healed(captured, judge)


@pytest.mark.process
@pytest.mark.parametrize("where", ["before the rename", "before the commit"])
def test_publication_of_a_deleted_run_after_a_kill_heals(captured: Pipeline, judge: SimulatedJudge, where: str) -> None:
    """The ledger agrees with the verdicts again, and the file holds one more."""
    run_ids = sorted(captured.run_ids(HOURS[0]))
    JudgingRun(captured.storage, captured.judge, publish_only=True).judge_partitions(HOURS[:1])
    assert fork(lambda: captured.refine(HOURS[0]), where) == -signal.SIGKILL
    for run_id in run_ids:
        delete_run(captured, run_id)
    captured.read(HOURS[0], accept_deletions=True)
    captured.convert(HOURS[0])
    captured.refine_range(HOURS[1:])
    assert pending(captured).unpublished == KEYS[:1]
    assert_healed(captured, judge)
    assert captured.parquet(REFINED_OUTCOMES, HOURS[0]) == []


def fork(work: Callable[[], object], where: str) -> int:
    """Do work in a child process that is killed at a point; returns how it ended."""
    pid = os.fork()
    if pid == 0:
        owner, name, afterwards = KILLED_AT[where]
        original = getattr(owner, name)

        def killed(*arguments: Any) -> None:
            if afterwards:
                original(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, killed)
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def test_range_publishes_each_partition_at_its_last_verdict(
    captured: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured.concurrency = 1
    published: dict[str, int] = {}
    record = PartitionTransaction.record

    def recording(partition: PartitionTransaction, entry: Any) -> None:
        assert entry.partition_key not in published
        published[entry.partition_key] = captured.ask("SELECT count(*) AS n FROM trajectory.verdicts")[0]["n"]
        record(partition, entry)

    monkeypatch.setattr(PartitionTransaction, "record", recording)
    run = captured.refine_range(HOURS)
    runs = [sample_partitions()[hour] for hour in HOURS]
    assert list(published) == KEYS[::-1]
    assert published[KEYS[2]] < published[KEYS[1]] <= published[KEYS[0]] == sum(runs)
    assert [run.publish(hour).written.rows for hour in HOURS] == runs


def test_publication_that_fails_early_is_tried_again(captured: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    real = judging.stored_verdicts
    with monkeypatch.context() as patched:
        patched.setattr(judging, "stored_verdicts", lambda *_: 1 / 0)
        run = captured.refine_range(HOURS[:1])
    assert judging.stored_verdicts is real
    result = run.publish(HOURS[0])
    assert result.statuses.total() == sample_partitions()[HOURS[0]] == result.written.rows


def test_publication_follows_a_judged_run_to_another_hour(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine_range(HOURS)
    run_id = shown_alone(captured)
    captured.change_source(f"UPDATE runs SET completed_at = '{HOURS[1]:%Y-%m-%d %H}:30' WHERE id = '{run_id}'")
    captured.capture(HOURS[1], HOURS[0])
    assert pending(captured).unpublished == KEYS[:2]
    assert len(differences(captured)) == 2
    assert_healed(captured, judge)
    assert run_id in {row["run_id"] for row in captured.parquet(REFINED_OUTCOMES, HOURS[1])}


def test_publication_drops_a_run_deleted_at_the_source(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine_range(HOURS)
    delete_run(captured, shown_alone(captured))
    captured.capture(HOURS[0])
    assert pending(captured).unpublished == KEYS[:1]
    assert_healed(captured, judge)


def test_publication_keeps_a_verdict_until_it_is_renewed(captured: Pipeline) -> None:
    """What comes before a run changed: it is judged again, and until then file and view show the same verdict."""
    captured.refine_range(HOURS)
    first, second = sorted(captured.run_ids(HOURS[0]))[:2]
    captured.do(f"UPDATE trajectory.trajectories SET continues_run_id = '{first}' WHERE run_id = '{second}'")
    assert pending(captured).partition_keys == KEYS[:1]
    publish(captured)
    held = {row["run_id"]: row["verdict_key"] for row in captured.parquet(REFINED_OUTCOMES, HOURS[0])}
    shown = captured.ask("SELECT run_id, verdict_key FROM trajectory.outcomes WHERE partition_key = %s", KEYS[0])
    assert held == {row["run_id"]: row["verdict_key"] for row in shown}
    assert second in held


def test_publication_of_another_policy_waits_for_its_verdicts(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine_range(HOURS)
    assert pending(captured).unpublished == []
    captured.max_prompt_tokens = 90_000
    found = pending(captured)
    assert (found.partition_keys, found.unpublished) == (KEYS, [])
    assert differences(captured) == []
    assert fork(lambda: captured.refine_range(HOURS), "before the file") == -signal.SIGKILL
    captured.refine_range(HOURS)
    assert_healed(captured, judge)


def test_publication_survives_a_restored_ledger(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine_range(HOURS)
    captured.do("DELETE FROM trajectory.partitions WHERE asset = 'refined_outcomes'")
    assert pending(captured).unpublished == KEYS
    assert_healed(captured, judge)


def test_publication_drops_a_deleted_run_without_a_ledger(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.refine_range(HOURS)
    for run_id in captured.run_ids(HOURS[0]):
        delete_run(captured, run_id)
    captured.read(HOURS[0], accept_deletions=True)
    captured.convert(HOURS[0])
    captured.do("DELETE FROM trajectory.partitions WHERE asset = 'refined_outcomes'")
    assert pending(captured).unpublished == KEYS
    assert_healed(captured, judge)


def test_estimate_counts_partitions_to_publish(captured: Pipeline) -> None:
    run = captured.refine_range(HOURS)
    assert run.estimate(HOURS, timedelta(days=1)).unpublished == 0
    captured.do("DELETE FROM trajectory.partitions WHERE asset = 'refined_outcomes'")
    estimate = run.estimate(HOURS, timedelta(days=1))
    assert estimate.unpublished == 3
    assert "3 partitions would be written again without a call" in " ".join(estimate.sentences())


@pytest.mark.parametrize("table", [TERMINAL_RUNS, TRAJECTORIES, REFINED_OUTCOMES], ids=lambda table: table.name)
def test_check_names_each_file_that_differs_from_the_ledger(captured: Pipeline, table: Table) -> None:
    captured.refine_range(HOURS)
    assert differences(captured) == []
    captured.store.write(table, HOURS[0], ())
    rows = sample_partitions()[HOURS[0]]
    (found,) = differences(captured)
    assert found == f"{KEYS[0]}: {rows} rows of {table.name} by the ledger, 0 rows in Parquet"
    captured.store.filesystem(table, HOURS[0])[0].rm(captured.store.target(table, HOURS[0]))
    (found,) = differences(captured)
    assert found == f"{KEYS[0]}: {rows} rows of {table.name} by the ledger, no file in Parquet"


def test_check_names_a_file_that_the_ledger_does_not_know(captured: Pipeline) -> None:
    captured.refine_range(HOURS)
    captured.do("DELETE FROM trajectory.partitions WHERE asset = 'refined_outcomes'", "DELETE FROM trajectory.verdicts")
    rows = sample_partitions()[HOURS[0]]
    assert f"{KEYS[0]}: nothing of refined_outcomes by the ledger, {rows} rows in Parquet" in differences(captured)
