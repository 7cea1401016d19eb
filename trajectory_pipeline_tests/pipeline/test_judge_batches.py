"""Judging in batches: sent once, and booked once at the batch rate, whatever the provider does."""

import asyncio
import errno
import io
import random
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import JudgeError, PipelineError, SinkError
from trajectory_pipeline.judge.client.batch_api import BatchApiError
from trajectory_pipeline.judge.config import Voter
from trajectory_pipeline.judge.prompt import built_in_prompt
from trajectory_pipeline.pipeline import batch_outbox, keep_batches
from trajectory_pipeline.pipeline.batch_outbox import BatchOutbox
from trajectory_pipeline.pipeline.judge import JudgingResult, JudgingRun
from trajectory_pipeline.pipeline.keep_batches import PolledBatch, cancel_batch, forget_batch, poll_batches
from trajectory_pipeline.schema.enums import BatchState, DeletedContent, JudgeMode
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.postgres.judge_batches import BatchStore
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, delete_run, only

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]


@pytest.fixture
def captured(pipeline: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    pipeline.judge_url = judge.base_url
    pipeline.capture(HOUR)
    monkeypatch.setattr(keep_batches, "RECOVER_AFTER", timedelta(0))
    return pipeline


def submit(pipeline: Pipeline) -> JudgingResult:
    return pipeline.refine(HOUR, mode=JudgeMode.BATCH)


def poll(pipeline: Pipeline) -> list[PolledBatch]:
    return poll_batches(pipeline.storage, pipeline.judge)


def collect(pipeline: Pipeline) -> JudgingResult:
    return pipeline.refine(HOUR, collect_only=True)


def batch(pipeline: Pipeline) -> Row:
    return only(pipeline.ask("SELECT * FROM trajectory.judge_batches"))


def statuses(pipeline: Pipeline) -> dict[str, int]:
    rows = pipeline.ask("SELECT verdict_status AS s, count(*) AS n FROM trajectory.verdicts GROUP BY 1")
    return {row["s"]: row["n"] for row in rows}


def lines(pipeline: Pipeline) -> list[Row]:
    return pipeline.ask("SELECT * FROM trajectory.verdict_attempts WHERE batch_id IS NOT NULL ORDER BY attempt_id")


def eligible(pipeline: Pipeline) -> int:
    return int(only(pipeline.ask("SELECT count(*) AS n FROM trajectory.trajectories WHERE message_count > 0"))["n"])


def day_totals(pipeline: Pipeline) -> Row:
    return only(pipeline.ask("SELECT * FROM trajectory.spend_totals WHERE scope = 'day'"))


def assert_books_agree(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    """Ours are the server's, nothing is reserved any more, and no line was worked on twice."""
    totals, theirs = day_totals(pipeline), judge.calls()
    assert totals["spent_usd"] == Decimal(theirs["cost_usd"])
    assert (totals["reserved_usd"], totals["reserved_tokens"]) == (0, 0)
    assert totals["spent_tokens"] == theirs["total_tokens"]
    assert judge.batches()["lines_worked_on_twice"] == 0


# ---- the course of a batch ----------------------------------------------------------------------------------------


def test_batch_is_submitted_polled_and_collected(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"seconds": 5.0})
    result = submit(captured)
    # One trajectory is judged online first: the call shows which form of a request the server accepts.
    assert result.submitted == eligible(captured) - 1
    assert result.calls == 1
    assert statuses(captured)["submitted"] == result.submitted
    row = batch(captured)
    assert (row["state"], row["lines"], row["provider_status"]) == ("submitted", result.submitted, "validating")
    assert row["reserved_usd"] == day_totals(captured)["reserved_usd"] > 0
    assert captured.ask("SELECT * FROM trajectory.verdict_locks") == []
    estimate = JudgingRun(captured.storage, captured.judge).estimate([HOUR], timedelta(days=7))
    assert (estimate.submitted, estimate.reused, estimate.judged.total()) == (result.submitted, 1, 0)
    assert f"{result.submitted} verdicts to come from a batch that runs." in estimate.sentences()
    # A materialization meanwhile asks nothing twice.
    assert captured.refine(HOUR).calls == submit(captured).calls == 0
    while not (polled := poll(captured))[0].partition_keys:
        assert "in_progress" in polled[0].seen
    result = collect(captured)
    assert result.calls == row["lines"] == judge.batches()["lines_worked_on"]
    assert result.simulated_models == result.models == {captured.model}
    assert set(statuses(captured)) <= {"judged", "insufficient_evidence", "not_eligible"}
    row = batch(captured)
    assert (row["state"], row["provider_status"]) == ("collected", "completed")
    assert row["booked_usd"] == sum(line["cost_usd"] for line in lines(captured))
    assert row["files_deleted_at"] is not None
    assert judge.batches()["files"] == []
    published = captured.parquet(REFINED_OUTCOMES, HOUR)
    assert {one["verdict_status"] for one in published} == set(statuses(captured))
    assert_books_agree(captured, judge)
    assert poll(captured) == []


def test_batch_costs_half_of_the_same_calls_online(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    collect(captured)
    in_batch = {line["run_id"]: line for line in lines(captured)}
    captured.do("DELETE FROM trajectory.verdicts", "DELETE FROM trajectory.verdict_attempts WHERE batch_id IS NULL")
    captured.refine(HOUR)
    for line in captured.ask("SELECT * FROM trajectory.verdict_attempts WHERE batch_id IS NULL"):
        if (former := in_batch.get(line["run_id"])) and line["cached_input_tokens"] == former["cached_input_tokens"]:
            assert former["cost_usd"] * 2 == line["cost_usd"]
            assert former["reserved_usd"] * 2 == line["reserved_usd"]


def test_second_batch_needs_no_call_online(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    collect(captured)
    captured.max_prompt_tokens = 90_000
    assert submit(captured).calls == 0
    assert statuses(captured)["submitted"] == eligible(captured)
    collect(captured)
    assert_books_agree(captured, judge)


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 0.7}, {"max_response_tokens": 9000}, {"response_format": "tool_call"}],
    ids=lambda changed: next(iter(changed)),
)
def test_batch_asks_as_the_policy_says_now(captured: Pipeline, judge: SimulatedJudge, changed: Row) -> None:
    submit(captured)
    collect(captured)
    captured.judge_settings = changed
    captured.max_prompt_tokens = 90_000
    # Whether the server takes it is not known: one call shows it.
    assert submit(captured).calls == 1
    newest = captured.ask("SELECT options FROM trajectory.judge_batches ORDER BY created_at DESC")[0]["options"]
    assert newest.items() >= changed.items()


def test_shorter_answers_are_asked_for_and_reserved(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    collect(captured)
    captured.judge_settings = {"max_response_tokens": 900}
    assert submit(captured).calls == 0
    newest = captured.ask("SELECT options FROM trajectory.judge_batches ORDER BY created_at DESC")[0]["options"]
    assert newest["max_response_tokens"] == 900


def test_batch_within_budget_defers_the_rest(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.budget = {"daily_usd": Decimal("0.2")}
    result = submit(captured)
    assert 0 < result.submitted < eligible(captured) - 1
    assert result.deferred.total() == eligible(captured) - 1 - result.submitted
    totals = day_totals(captured)
    assert totals["spent_usd"] + totals["reserved_usd"] <= Decimal("0.2")
    collect(captured)
    assert_books_agree(captured, judge)


def test_batch_without_batch_price_is_refused(captured: Pipeline) -> None:
    prices = captured.judge.budget.prices
    table = tuple(row.model_copy(update={"batch": None}) for row in prices.table)
    captured.budget = {"prices": type(prices)(table)}
    with pytest.raises(JudgeError, match=r"No batch price is known for the model simulated-judge .* `batch`"):
        submit(captured)
    assert captured.ask("SELECT * FROM trajectory.verdict_attempts") == []


def test_long_transcripts_are_judged_online_in_windows(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.max_prompt_tokens = built_in_prompt().overhead_tokens + 400
    result = submit(captured)
    assert result.submitted > 0
    collect(captured)
    windows = captured.ask("SELECT windows, attempts FROM trajectory.verdicts WHERE windows > 1")
    assert windows
    assert all(row["attempts"] == row["windows"] + 1 for row in windows)
    assert "submitted" not in statuses(captured)
    assert_books_agree(captured, judge)


def test_full_file_begins_another_batch(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BatchOutbox.__init__.__kwdefaults__, "max_lines", 10)
    submitted = submit(captured).submitted
    sizes = [row["lines"] for row in captured.ask("SELECT lines FROM trajectory.judge_batches ORDER BY created_at")]
    assert sizes == [*[10] * (submitted // 10), submitted % 10]
    collect(captured)
    assert "submitted" not in statuses(captured)
    assert_books_agree(captured, judge)


# ---- faults of the provider ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param({"end": "expired", "answered": 0.5}, marks=pytest.mark.heavy),
        {"end": "expired", "answered": 0.5, "lines": ["missing"]},
        pytest.param({"end": "expired", "answered": 0.0}, marks=pytest.mark.heavy),
        {"end": "failed"},
        {"lines": ["shuffled", "duplicate", "foreign", "malformed"]},
        {"wire": ["content_lost"]},
        {"wire": ["content_cut"]},
        pytest.param({"wire": ["no_metadata"]}, marks=pytest.mark.heavy),
    ],
    ids=lambda plan: "-".join(map(str, (*plan.get("lines", ()), *plan.get("wire", ()), plan.get("end", "")))),
)
def test_batch_with_fault_is_booked_and_completed(captured: Pipeline, judge: SimulatedJudge, plan: Row) -> None:
    judge.plan_batches(plan)
    submit(captured)
    number = batch(captured)["lines"]
    while "submitted" in statuses(captured):
        captured.refine(HOUR)  # collects, and asks online what came to nothing
    assert_books_agree(captured, judge)
    captured.do("UPDATE trajectory.verdicts SET next_attempt_at = now()")
    captured.refine(HOUR)
    assert set(statuses(captured)) <= {"judged", "insufficient_evidence", "not_eligible"}
    assert_books_agree(captured, judge)
    assert sum(captured.ask("SELECT counts FROM trajectory.judge_batches")[0]["counts"].values()) >= number


@pytest.mark.parametrize("seed", some_heavy(range(12), 0))
def test_random_faults_together_leave_the_books_right(captured: Pipeline, judge: SimulatedJudge, seed: int) -> None:
    chance = random.Random(seed)
    faults = ("missing", "duplicate", "foreign", "malformed", "shuffled", "lost", "no_output")
    chosen = chance.sample(faults, chance.randint(0, 4))
    end = chance.choice(("completed", "expired", "failed", "queue_full"))
    judge.plan_batches({"end": end, "answered": chance.random(), "lines": chosen})
    submit(captured)
    wrong = ("server_error", "refusal", "invalid_json", "null_content", "rate_limit_bare", "usage_missing")
    judge.plan_faults([{"fault": name, "times": 1} for name in chance.sample(wrong, chance.randint(0, 4))])
    collect(captured)
    assert "submitted" not in statuses(captured)
    judge.clear_faults()
    captured.do("UPDATE trajectory.verdicts SET next_attempt_at = now()")
    captured.refine(HOUR)
    assert set(statuses(captured)) <= {"judged", "insufficient_evidence", "not_eligible"}
    totals, theirs = day_totals(captured), judge.calls()
    assert (totals["reserved_usd"], totals["reserved_tokens"]) == (0, 0)
    assert judge.batches()["lines_worked_on_twice"] == 0
    # What may have been billed counts what was reserved: never less than the server's own books.
    assert totals["spent_usd"] >= Decimal(theirs["cost_usd"])
    uncounted = [line for line in lines(captured) if line["result"] == "lost" or line["cost_usd"] is None]
    if not any(line["result"] != "error" for line in uncounted):
        assert totals["spent_usd"] == Decimal(theirs["cost_usd"])


def test_expired_batch_makes_verdicts_pending_at_once(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"end": "expired", "answered": 0.25})
    submit(captured)
    collect(captured)
    waiting = captured.ask("SELECT * FROM trajectory.verdicts WHERE verdict_status = 'failed'")
    assert waiting
    assert {(row["error_class"], row["failures"]) for row in waiting} == {("batch_ended", 0)}
    assert all("batch" in row["error_message"] for row in waiting)
    assert only(
        captured.ask(
            "SELECT bool_and(next_attempt_at <= now()) AS due FROM trajectory.verdicts WHERE verdict_status = 'failed'"
        )
    )["due"]
    assert submit(captured).submitted == len(waiting)


@pytest.mark.parametrize("fault", ["lost", "no_output"])
def test_answers_in_no_file_are_booked_as_lost(captured: Pipeline, judge: SimulatedJudge, fault: str) -> None:
    judge.plan_batches({"lines": [fault]})
    submit(captured)
    collect(captured)
    lost = [line for line in lines(captured) if line["result"] == "lost"]
    assert len(lost) == (1 if fault == "lost" else len(lines(captured)))
    assert all(line["cost_usd"] == line["reserved_usd"] for line in lost)
    totals = day_totals(captured)
    assert totals["spent_usd"] >= Decimal(judge.calls()["cost_usd"])
    assert totals["reserved_usd"] == 0


@pytest.mark.parametrize(
    ("fault", "error_class"),
    some_heavy(
        [
            ("rate_limit_bare", "rate_limited"),
            ("server_error", "server_error"),
            ("refusal", "refused"),
            ("content_filter_request", "content_filter"),
            ("null_content", "no_answer"),
        ],
        ("rate_limit_bare", "rate_limited"),
        ("refusal", "refused"),
    ),
)
def test_line_with_error_has_the_class_of_a_call(
    captured: Pipeline, judge: SimulatedJudge, fault: str, error_class: str
) -> None:
    submit(captured)
    judge.plan_faults([{"fault": fault, "times": 2}])
    collect(captured)
    failed = captured.ask("SELECT * FROM trajectory.verdicts WHERE verdict_status = 'failed'")
    assert {row["error_class"] for row in failed} == {error_class}
    assert (len(failed), {row["attempts"] for row in failed}) == (2, {1})
    if error_class == "content_filter":
        # As online: a prompt that a filter read may be billed.
        assert day_totals(captured)["spent_usd"] > Decimal(judge.calls()["cost_usd"])
    else:
        assert_books_agree(captured, judge)


def test_invalid_answer_is_repaired_by_a_call(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    judge.plan_faults([{"fault": "invalid_json", "times": 1}])
    collect(captured)
    assert set(statuses(captured)) <= {"judged", "insufficient_evidence", "not_eligible"}
    repaired = only(captured.ask("SELECT * FROM trajectory.verdict_attempts WHERE purpose = 'repair'"))
    assert repaired["batch_id"] is None
    assert_books_agree(captured, judge)


def test_exhausted_cap_defers_repairs_and_keeps_paid_answers(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    judge.plan_faults([{"fault": "invalid_json", "times": 3}])
    captured.budget = {"daily_usd": Decimal("0.02")}
    collect(captured)
    assert statuses(captured)["deferred_budget"] == 3
    assert set(statuses(captured)) <= {"judged", "insufficient_evidence", "not_eligible", "deferred_budget"}
    assert_books_agree(captured, judge)


def test_full_queue_makes_the_next_batch_smaller(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"end": "queue_full", "token_limit": 20_000})
    submit(captured)
    collect(captured)
    waiting = captured.ask("SELECT * FROM trajectory.verdicts WHERE verdict_status = 'failed'")
    assert {(row["error_class"], row["failures"]) for row in waiting} == {("batch_queue_full", 0)}
    assert batch(captured)["token_limit"] == 20_000
    captured.do("UPDATE trajectory.verdicts SET next_attempt_at = now()")
    submit(captured)
    newest = captured.ask("SELECT * FROM trajectory.judge_batches ORDER BY created_at DESC")[0]
    assert 0 < newest["prompt_tokens"] <= 20_000
    collect(captured)
    assert_books_agree(captured, judge)


def test_full_queue_never_keeps_a_prompt_from_being_sent(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    collect(captured)
    captured.max_prompt_tokens = 90_000
    judge.plan_batches({"end": "queue_full"})
    run = JudgingRun(captured.storage, captured.judge, mode=JudgeMode.BATCH, limit=1)
    run.judge_partitions([HOUR])
    collect(captured)
    captured.do("UPDATE trajectory.verdicts SET next_attempt_at = now()")
    # Half of one prompt would hold none, and no other limit would ever be learnt.
    assert submit(captured).submitted == eligible(captured)


def test_prompt_that_no_batch_can_hold_is_judged_online(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"end": "queue_full", "token_limit": 1000})
    submit(captured)
    collect(captured)
    captured.do("UPDATE trajectory.verdicts SET next_attempt_at = now()")
    result = submit(captured)
    assert (result.submitted, result.calls) == (0, eligible(captured) - 1)
    # A day later it may take more.
    captured.do("UPDATE trajectory.judge_batches SET ended_at = ended_at - interval '25 hours'")
    captured.max_prompt_tokens = 90_000
    assert submit(captured).submitted == eligible(captured) - 1


def test_answers_without_a_file_yet_are_waited_for(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"wire": ["output_late", "output_late"]})
    submit(captured)
    assert "without a file of answers so far" in poll(captured)[0].seen
    collect(captured)
    assert batch(captured)["state"] == "submitted"
    collect(captured)
    assert set(statuses(captured)) <= {"judged", "insufficient_evidence", "not_eligible"}
    assert_books_agree(captured, judge)


def test_file_that_ends_early_is_downloaded_again(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"wire": ["content_short"]})
    submit(captured)
    collect(captured)
    assert {line["result"] for line in lines(captured)} == {"answered"}
    assert_books_agree(captured, judge)


class _FullDisk(io.BytesIO):
    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("opened", [_FullDisk, None], ids=["full", "read-only"])
def test_disk_without_room_ends_the_run_and_sends_nothing(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch, opened: type[_FullDisk] | None
) -> None:
    def open_file() -> _FullDisk:
        if opened is None:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened()

    with monkeypatch.context() as patched:
        patched.setattr(batch_outbox.tempfile, "TemporaryFile", open_file)
        with pytest.raises(PipelineError, match="another folder in TMPDIR"):
            submit(captured)
    assert judge.batches()["files"] == []
    assert captured.ask("SELECT 1 FROM trajectory.verdicts WHERE error_class = 'internal_error'") == []
    submit(captured)
    collect(captured)
    assert set(statuses(captured)) <= {"judged", "insufficient_evidence", "not_eligible"}
    assert_books_agree(captured, judge)


def test_refused_batch_is_undone_and_raised(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"wire": ["create_refused"]})
    with pytest.raises(BatchApiError, match=r"Creating a batch at .* failed: HTTP 429"):
        submit(captured)
    assert batch(captured)["state"] == "abandoned"
    assert "submitted" not in statuses(captured)
    assert judge.batches()["files"] == []
    assert_books_agree(captured, judge)


# ---- lost in between ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["upload_lost", "create_lost"])
def test_step_without_answer_is_found_again_or_undone(captured: Pipeline, judge: SimulatedJudge, wire: str) -> None:
    judge.plan_batches({"wire": [wire]})
    with pytest.raises(BatchApiError):
        submit(captured)
    (seen,) = poll(captured)
    if wire == "upload_lost":
        assert "undone" in seen.seen
        assert (judge.batches()["batches"], judge.batches()["files"]) == ([], [])
        submit(captured)
    else:
        assert "found again" in seen.seen
        assert len(judge.batches()["batches"]) == 1
        poll(captured)
    collect(captured)
    assert set(statuses(captured)) <= {"judged", "insufficient_evidence", "not_eligible"}
    assert_books_agree(captured, judge)


def test_batch_without_metadata_is_found_by_its_file(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"wire": ["create_lost", "no_metadata"]})
    with pytest.raises(BatchApiError):
        submit(captured)
    assert "found again" in only(map(vars_of, poll(captured)))["seen"]
    collect(captured)
    assert_books_agree(captured, judge)


def vars_of(polled: PolledBatch) -> Row:
    return {"seen": polled.seen}


# ---- cancelled, changed, erased -----------------------------------------------------------------------------------


def test_cancelled_batch_keeps_its_answers(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"seconds": 600, "answered": 0.5})
    submit(captured)
    assert "cancelling" in cancel_batch(captured.storage, captured.judge, batch(captured)["provider_batch_id"])
    assert poll(captured)[0].partition_keys
    collect(captured)
    assert statuses(captured)["failed"] == batch(captured)["lines"] // 2
    assert batch(captured)["provider_status"] == "cancelled"
    assert_books_agree(captured, judge)


def test_forgotten_batch_is_booked_as_lost(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    reserved = batch(captured)["reserved_usd"]
    judge.clear_batches()
    seen = poll(captured)[0].seen
    assert "No batch found" in seen
    assert f"`trajectory-pipeline batches --forget {batch(captured)['batch_id']}`" in seen
    forget_batch(captured.storage, captured.judge, batch(captured)["batch_id"])
    assert (batch(captured)["booked_usd"], day_totals(captured)["reserved_usd"]) == (reserved, 0)
    assert "submitted" not in statuses(captured)
    assert poll(captured) == []


def test_batch_that_a_worker_prepares_is_not_forgotten(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = BatchOutbox.send

    async def forget_and_send(outbox: BatchOutbox) -> None:
        with pytest.raises(PipelineError, match="is being prepared or collected by another process"):
            await asyncio.to_thread(forget_batch, captured.storage, captured.judge, batch(captured)["batch_id"])
        await send(outbox)

    monkeypatch.setattr(BatchOutbox, "send", forget_and_send)
    submit(captured)
    assert batch(captured)["state"] == "submitted"
    collect(captured)
    assert_books_agree(captured, judge)


def test_verdict_waits_for_its_newest_batch_alone(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.plan_batches({"end": "expired", "answered": 0.25})
    submit(captured)
    change = BatchStore.change

    def die(store: BatchStore, batch_id: str, expected: Any, **values: Any) -> bool:
        if values.get("state") == BatchState.COLLECTED:
            raise SinkError("gone")
        return change(store, batch_id, expected, **values)

    with monkeypatch.context() as patched:
        # What was not worked on is pending again; the batch itself is not marked as collected yet.
        patched.setattr(BatchStore, "change", die)
        with pytest.raises(SinkError):
            collect(captured)
        patched.setattr("trajectory_pipeline.pipeline.judge.collect_batches", lambda *_, **__: [])
        judge.plan_batches({"seconds": 600})
        again = submit(captured).submitted
    assert again > 0
    collect(captured)
    states = [row["state"] for row in captured.ask("SELECT state FROM trajectory.judge_batches ORDER BY created_at")]
    assert states == ["collected", "submitted"]
    assert statuses(captured)["submitted"] == again
    assert captured.refine(HOUR).calls == 0


def test_batch_of_pruned_verdicts_is_booked_by_the_poll(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    captured.do("DELETE FROM trajectory.verdicts", "DELETE FROM trajectory.trajectories")
    poll(captured)
    assert batch(captured)["state"] == "collected"
    assert captured.ask("SELECT * FROM trajectory.verdicts") == []
    assert_books_agree(captured, judge)


def test_policy_with_votes_is_not_judged_in_batches(captured: Pipeline) -> None:
    voting = replace(captured.judge, voters=(Voter(captured.judge, 2),))
    with pytest.raises(JudgeError, match="several votes cannot be judged in batches"):
        JudgingRun(captured.storage, voting, mode=JudgeMode.BATCH).judge_partitions([HOUR])


def other_run(pipeline: Pipeline) -> str:
    row = pipeline.ask(
        "SELECT v.run_id FROM trajectory.verdicts v JOIN trajectory.trajectories t USING (run_id)"
        " WHERE v.verdict_status = 'submitted' AND t.continues_run_id IS NULL AND v.run_id NOT IN ("
        "SELECT continues_run_id FROM trajectory.trajectories WHERE continues_run_id IS NOT NULL) ORDER BY 1 LIMIT 1"
    )[0]
    return str(row["run_id"])


def test_answer_on_changed_content_is_booked_only(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_batches({"seconds": 0.0})
    submit(captured)
    run_id = other_run(captured)
    captured.change_source(
        f"UPDATE messages SET content = '[]', text = 'x' WHERE run_id = '{run_id}' AND role = 'user'"
    )
    captured.capture(HOUR)
    collect(captured)
    row = only(captured.ask("SELECT * FROM trajectory.verdicts WHERE run_id = %s", run_id))
    assert (row["verdict_status"], row["error_class"], row["outcome"]) == ("failed", "superseded", None)
    line = only(one for one in lines(captured) if one["run_id"] == run_id)
    assert (line["result"], row["cost_usd"]) == ("answered", line["cost_usd"])
    assert_books_agree(captured, judge)
    assert captured.refine(HOUR).calls == 1


def test_answer_under_another_policy_is_booked_only(captured: Pipeline, judge: SimulatedJudge) -> None:
    submit(captured)
    captured.max_prompt_tokens = 90_000
    collect(captured)
    assert {
        row["error_class"]
        for row in captured.ask("SELECT error_class FROM trajectory.verdicts WHERE verdict_status = 'failed'")
    } == {"superseded"}
    assert batch(captured)["state"] == "collected"
    assert_books_agree(captured, judge)


def test_erased_run_cancels_its_batch_and_its_answer_never_lands(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.deleted = DeletedContent.ERASE
    judge.plan_batches({"seconds": 600, "answered": 0.99})
    submit(captured)
    run_id = other_run(captured)
    delete_run(captured, run_id)
    captured.read(HOUR, accept_deletions=True)
    captured.convert(HOUR)
    assert "erased" in poll(captured)[0].seen
    assert judge.batches()["files"] == []  # the requests
    poll(captured)
    collect(captured)
    row = only(captured.ask("SELECT * FROM trajectory.verdicts WHERE run_id = %s", run_id))
    texts: dict[str, Any] = {name: row[name] for name in ("summary", "lesson", "raw_response", "error_message")}
    assert (set(texts.values()), row["outcome"], row["erased"]) == ({None}, None, True)
    line = only(one for one in lines(captured) if one["run_id"] == run_id)
    assert line["error_message"] is None
    assert line["duration_ns"] is not None
    assert_books_agree(captured, judge)
