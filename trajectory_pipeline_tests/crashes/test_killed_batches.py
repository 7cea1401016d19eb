"""The contract of ``kill -9`` in the mode ``batch``: between any two steps, nothing is sent twice and the books agree.

Real processes. Each kills itself before or after a named step; then ordinary polls and runs finish the work.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.judge.client.batch_api import BatchApi
from trajectory_pipeline.pipeline import batch_outbox, judge_worker, keep_batches
from trajectory_pipeline.pipeline.keep_batches import poll_batches
from trajectory_pipeline.schema.enums import JudgeMode
from trajectory_pipeline.storage.postgres.judge_batches import BatchStore
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, only

pytestmark = [pytest.mark.process, pytest.mark.heavy]

HOUR: datetime = next(hour for hour, runs in sorted(sample_partitions().items()) if 6 <= runs <= 12)
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload([__name__])

Step = tuple[type[Any], str, str, int]
SUBMITTING: list[Step] = [
    (BatchStore, "insert", "after", 1),
    (batch_outbox.BatchOutbox, "add", "after", 3),
    (VerdictStore, "save_verdicts", "after", 3),
    (BatchStore, "change", "before", 1),
    (BatchStore, "change", "after", 1),
    (BatchApi, "upload", "after", 1),
    (BatchStore, "change", "after", 2),
    (BatchApi, "create", "after", 1),
    (BatchStore, "change", "after", 3),
    (BatchStore, "unclaim", "after", 1),
]
COLLECTING: list[Step] = [
    (BatchStore, "claim", "after", 1),
    (BatchApi, "download", "after", 1),
    # All may be saved at once.
    (VerdictStore, "save_verdicts", "before", 1),
    (VerdictStore, "save_verdicts", "after", 1),
    (BatchStore, "release", "before", 1),
    (BatchStore, "release", "after", 1),
    (BatchStore, "change", "after", 2),
    (BatchApi, "delete", "after", 1),
    (BatchStore, "unclaim", "before", 1),
]


def name_of(step: Step) -> str:
    owner, method, when, number = step
    return f"{when}-{owner.__name__}.{method}-{number}"


def kill_at(owner: type[Any], method: str, when: str, number: int) -> None:
    """Let this process kill itself before or after the n-th call of a method."""
    original: Callable[..., Any] = getattr(owner, method)
    calls = [0]

    def reached(moment: str, call: int) -> None:
        if when == moment and call == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        call = calls[0]
        reached("before", call)
        result = original(*arguments, **options)
        if hasattr(result, "__await__"):

            async def waited() -> Any:
                value = await result
                reached("after", call)
                return value

            return waited()
        reached("after", call)
        return result

    setattr(owner, method, killing)


def work(pipeline: Pipeline, step: Step, *, collects: bool) -> None:
    kill_at(*step)
    pipeline.refine(HOUR, mode=JudgeMode.BATCH, collect_only=collects)


def run_and_die(pipeline: Pipeline, step: Step, *, collects: bool) -> None:
    process = _FORKED.Process(target=work, args=(pipeline, step), kwargs={"collects": collects})
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"{name_of(step)} was not reached: {process.exitcode}"
    # What would take two minutes.
    pipeline.do("UPDATE trajectory.verdict_locks SET expires_at = now() - interval '1 hour'")


@pytest.fixture
def captured(pipeline: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    pipeline.judge_url = judge.base_url
    pipeline.capture(HOUR)
    monkeypatch.setattr(keep_batches, "RECOVER_AFTER", timedelta(0))
    monkeypatch.setattr(judge_worker, "CLAIM_POLL_SECONDS", 0.01)
    return pipeline


def finish(pipeline: Pipeline) -> None:
    """Do what sensors and runs do, until nothing is left."""
    for _ in range(4):
        poll_batches(pipeline.storage, pipeline.judge)
        pipeline.refine(HOUR, mode=JudgeMode.BATCH)


def assert_complete(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    found = pipeline.ask("SELECT verdict_status FROM trajectory.verdicts")
    assert {row["verdict_status"] for row in found} <= {"judged", "insufficient_evidence", "not_eligible"}
    assert len(found) == sample_partitions()[HOUR]
    states = {row["state"] for row in pipeline.ask("SELECT state FROM trajectory.judge_batches")}
    assert states <= {"collected", "abandoned"}
    totals = only(pipeline.ask("SELECT * FROM trajectory.spend_totals WHERE scope = 'day'"))
    theirs, batches = judge.calls(), judge.batches()
    assert totals["spent_usd"] == Decimal(theirs["cost_usd"])
    assert totals["spent_tokens"] == theirs["total_tokens"]
    assert (totals["reserved_usd"], totals["reserved_tokens"]) == (0, 0)
    eligible = sum(row["verdict_status"] != "not_eligible" for row in found)
    # Each trajectory once: in a batch, or online as the first of a run that has no accepted form yet.
    assert theirs["received"] == theirs["answered"] == eligible
    assert batches["lines_worked_on_twice"] == 0
    assert batches["files"] == []
    assert pipeline.ask("SELECT * FROM trajectory.verdict_locks") == []


@pytest.mark.parametrize("step", SUBMITTING, ids=name_of)
def test_killed_while_submitting_sends_nothing_twice(captured: Pipeline, judge: SimulatedJudge, step: Step) -> None:
    run_and_die(captured, step, collects=False)
    finish(captured)
    assert_complete(captured, judge)


@pytest.mark.parametrize("step", COLLECTING, ids=name_of)
def test_killed_while_collecting_books_nothing_twice(captured: Pipeline, judge: SimulatedJudge, step: Step) -> None:
    captured.refine(HOUR, mode=JudgeMode.BATCH)
    run_and_die(captured, step, collects=True)
    finish(captured)
    assert_complete(captured, judge)
