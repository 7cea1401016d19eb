"""Judging partitions: each verdict is stored as soon as it is known, and no call is paid for twice.

Whatever fails meanwhile (a sink, our own code, the whole process), paid verdicts stay.
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.defs.metadata import refined_outcomes_metadata
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import PipelineError, ProviderDownError, SinkError
from trajectory_pipeline.judge import judge_trajectory
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.transcript.context import parsed
from trajectory_pipeline.judge.transcript.rendering import Rendering
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline import judge_worker, renderer
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.judge.documents import document, message, text, turn
from trajectory_pipeline_tests.judge.provider import ANSWER, Provider, completion
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row, only, program_that_judges

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
RUNS = sample_partitions()[HOUR]


@pytest.fixture
def pipeline(pipeline: Pipeline, judge: SimulatedJudge) -> Pipeline:
    pipeline.judge_url = judge.base_url
    return pipeline


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    pipeline.capture(HOUR)
    return pipeline


def verdicts(pipeline: Pipeline) -> dict[str, Row]:
    return {row["run_id"]: row for row in pipeline.ask("SELECT * FROM trajectory.verdicts")}


def attempts(pipeline: Pipeline) -> list[Row]:
    return pipeline.ask("SELECT * FROM trajectory.verdict_attempts ORDER BY started_at")


def eligible(pipeline: Pipeline) -> int:
    return int(only(pipeline.ask("SELECT count(*) AS n FROM trajectory.trajectories WHERE message_count > 0"))["n"])


def test_judge_partition_reports_calls_cost_and_outcomes(captured: Pipeline, judge: SimulatedJudge) -> None:
    result = captured.refine(HOUR)
    assert sum(result.statuses.values()) == RUNS
    assert result.judged == result.calls == eligible(captured) == judge.calls()["received"]
    assert result.cost_usd == Decimal(judge.calls()["cost_usd"])
    assert (result.models, result.unpriced_calls, result.reused) == ({"simulated-judge"}, 0, 0)
    assert sum(result.outcomes.values()) == result.statuses["judged"]
    assert result.written is not None
    assert result.written.rows == RUNS


def test_transcript_that_takes_too_long_to_render_fails_alone_and_off_the_loop(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = only(captured.ask("SELECT min(run_id) AS id FROM trajectory.trajectories WHERE message_count > 0"))["id"]

    working: dict[str, set[int]] = {"loop": set(), "rendering": set(), "grading": set()}
    grade, finish = judge_trajectory.grade_response, judge_worker.JudgeWorker._finish
    render = Rendering.render

    def rendering(this: Rendering) -> Any:
        working["rendering"].add(threading.get_ident())
        assert this.seconds == judge_trajectory.RENDERING_SECONDS == 60
        shown = parsed(this.documents[-1])["run_id"] == slow
        return render(replace(this, seconds=-1) if shown else this)

    def grading(*given: Any) -> Any:
        working["grading"].add(threading.get_ident())
        return grade(*given)

    async def finishing(worker: Any, candidate: Any) -> None:
        working["loop"].add(threading.get_ident())
        await finish(worker, candidate)

    monkeypatch.setattr(Rendering, "render", rendering)
    monkeypatch.setattr(judge_trajectory, "grade_response", grading)
    monkeypatch.setattr(judge_worker.JudgeWorker, "_finish", finishing)
    captured.refine(HOUR)
    # The loop times calls: what untrusted text can make long has threads of its own.
    assert all(working.values())
    assert not working["loop"] & (working["rendering"] | working["grading"])
    failed = {run_id: row for run_id, row in verdicts(captured).items() if row["verdict_status"] == "failed"}
    assert set(failed) == {slow}
    assert (failed[slow]["error_class"], failed[slow]["attempts"]) == ("rendering_timeout", 0)
    assert "took longer than 60 seconds" in failed[slow]["error_message"]
    assert judge.calls()["received"] == eligible(captured) - 1


def test_verdicts_are_the_same_where_another_process_renders(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured.refine(HOUR)
    shown = {run_id: (row["shown_sha256"], row["outcome"]) for run_id, row in verdicts(captured).items()}
    with captured.database.connect() as connection:
        connection.execute("DELETE FROM trajectory.verdicts")
    monkeypatch.setattr(renderer, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    captured.refine(HOUR)
    assert {run_id: (row["shown_sha256"], row["outcome"]) for run_id, row in verdicts(captured).items()} == shown


def test_loop_stays_responsive_while_hostile_text_is_rendered() -> None:
    hostile = "eyJaaaaaaaaaaa." * 100_000
    run = document("run-1", turn("step-1", message("message-a", "user", text(hostile))))

    async def turns_of_the_loop() -> int:
        rendering = asyncio.create_task(
            asyncio.to_thread(judge_trajectory.build_judge_request, [run], RefinementPolicy("m"))
        )
        turns = 0
        while not rendering.done():
            await asyncio.sleep(0.01)
            turns += 1
        await rendering
        return turns

    # A text that were searched in one piece would hold the interpreter's lock until the end: one turn or two.
    assert asyncio.run(turns_of_the_loop()) > 10


def test_judge_run_without_messages_is_not_eligible(captured: Pipeline) -> None:
    silent = "run-silent"
    columns = "agent_id, organization_id, background, metadata_, is_deleted, created_at, updated_at"
    captured.change_source(
        f"INSERT INTO runs (id, status, completed_at, {columns})"
        f" SELECT '{silent}', 'failed', completed_at, {columns} FROM runs"
        f" WHERE date_trunc('hour', completed_at) = '{HOUR:%Y-%m-%d %H}:00' LIMIT 1"
    )
    captured.capture(HOUR)
    captured.refine(HOUR)
    verdict = verdicts(captured)[silent]
    assert (verdict["verdict_status"], verdict["error_class"]) == ("not_eligible", "no_messages")
    assert (verdict["attempts"], verdict["cost_usd"], verdict["model"], verdict["simulated"]) == (0, None, None, False)
    assert silent not in {attempt["run_id"] for attempt in attempts(captured)}


def test_judge_deleted_run_gets_no_verdict(captured: Pipeline) -> None:
    run_id = min(captured.run_ids(HOUR))
    captured.change_source(f"DELETE FROM run_metrics WHERE id = '{run_id}'", f"DELETE FROM runs WHERE id = '{run_id}'")
    captured.capture(HOUR)
    captured.refine(HOUR)
    assert run_id not in verdicts(captured)
    assert len(verdicts(captured)) == RUNS - 1


def test_judge_changed_content_adds_a_second_verdict(captured: Pipeline) -> None:
    captured.refine(HOUR)
    run_id = captured.ask(
        "SELECT run_id FROM trajectory.verdicts WHERE verdict_status = 'judged'"
        " AND run_id NOT IN (SELECT continues_run_id FROM trajectory.trajectories WHERE continues_run_id IS NOT NULL)"
        " ORDER BY 1 LIMIT 1"
    )[0]["run_id"]
    captured.change_source(
        f"UPDATE messages SET text = 'x', content = '[]' WHERE run_id = '{run_id}' AND role = 'user'"
    )
    captured.capture(HOUR)
    result = captured.refine(HOUR)
    assert (result.calls, result.reused) == (1, RUNS - 1)
    rows = captured.ask("SELECT * FROM trajectory.verdicts WHERE run_id = %s", run_id)
    assert len({row["verdict_key"] for row in rows}) == len(rows) == 2
    assert len(captured.ask("SELECT 1 AS x FROM trajectory.outcomes WHERE run_id = %s", run_id)) == 1


def test_judge_other_policy_leaves_former_verdicts(captured: Pipeline) -> None:
    captured.refine(HOUR)
    before = verdicts(captured)
    captured.max_prompt_tokens = 90_000
    assert captured.refine(HOUR).calls == eligible(captured)
    former = captured.ask("SELECT * FROM trajectory.verdicts WHERE policy_id <> %s", captured.policy.policy_id)
    assert {row["run_id"]: row for row in former} == before
    captured.max_prompt_tokens = 100_000
    assert captured.refine(HOUR).calls == 0
    assert only(captured.ask("SELECT policy_id FROM trajectory.policies WHERE is_current")) == {
        "policy_id": captured.policy.policy_id
    }


def test_judge_long_transcript_uses_windows(captured: Pipeline, judge: SimulatedJudge) -> None:
    captured.max_prompt_tokens = 2_450
    result = captured.refine(HOUR)
    assert set(result.statuses) <= {"judged", "insufficient_evidence", "not_eligible"}
    rows = [row for row in verdicts(captured).values() if row["verdict_status"] != "not_eligible"]
    assert max(row["windows"] for row in rows) > 1
    # One call for each window, and one over what they found.
    assert all(row["attempts"] == row["windows"] + (row["windows"] > 1) for row in rows)
    assert judge.calls()["received"] == sum(row["attempts"] for row in rows)
    assert all(0 < row["coverage"] <= 1 for row in rows)


def test_judge_inside_a_running_event_loop_works(captured: Pipeline) -> None:
    async def cell() -> Any:
        return captured.refine(HOUR)

    assert sum(asyncio.run(cell()).statuses.values()) == RUNS


# ---- chains -------------------------------------------------------------------------------------------------------


@pytest.fixture
def chained(pipeline: Pipeline) -> tuple[Pipeline, str, str]:
    """Two captured runs, of which the second continues the first: pipeline, first, second."""
    sources = Pipeline("", pipeline.letta_url, pipeline.folder)
    pair = sources.ask(
        "SELECT s.run_id AS first, m.run_id AS second FROM messages m JOIN steps s ON s.id = m.step_id"
        " JOIN runs a ON a.id = s.run_id JOIN runs b ON b.id = m.run_id WHERE s.run_id <> m.run_id"
        " AND a.status = 'completed' AND b.status = 'completed' ORDER BY 1, 2 LIMIT 1"
    )[0]
    pipeline.capture(*{pipeline.hour_of_run(pair["first"]): None, pipeline.hour_of_run(pair["second"]): None})
    return pipeline, pair["first"], pair["second"]


def sent(pipeline: Pipeline, run_id: str) -> int:
    return int(max(row["prompt_characters"] for row in attempts(pipeline) if row["run_id"] == run_id))


def test_judge_earlier_run_without_jsonb_is_read_from_parquet(
    chained: tuple[Pipeline, str, str],
) -> None:
    pipeline, first, second = chained
    hour = pipeline.hour_of_run(second)
    pipeline.refine(hour)
    with_document = sent(pipeline, second)
    pipeline.do(f"UPDATE trajectory.trajectories SET data = NULL WHERE run_id = '{first}'")
    pipeline.max_prompt_tokens = 90_000
    pipeline.refine(hour)
    assert sent(pipeline, second) == with_document
    assert {row["verdict_status"] for row in verdicts(pipeline).values()} <= {
        "judged",
        "insufficient_evidence",
        "not_eligible",
    }


def test_judge_earlier_run_that_arrives_later_is_judged_again(
    chained: tuple[Pipeline, str, str],
) -> None:
    pipeline, first, second = chained
    hour = pipeline.hour_of_run(second)
    pipeline.do(f"DELETE FROM trajectory.trajectories WHERE run_id = '{first}'")
    pipeline.refine(hour)
    alone = sent(pipeline, second)
    pipeline.convert(pipeline.hour_of_run(first))
    assert pipeline.refine(hour).calls > 0
    assert sent(pipeline, second) > alone
    assert len(pipeline.ask("SELECT 1 AS x FROM trajectory.verdicts WHERE run_id = %s", second)) == 2


def test_judge_earlier_run_in_no_sink_fails_with_its_name(
    chained: tuple[Pipeline, str, str],
) -> None:
    pipeline, first, second = chained
    first_hour, hour = pipeline.hour_of_run(first), pipeline.hour_of_run(second)
    pipeline.do(
        f"UPDATE trajectory.trajectories SET data = NULL, partition_key = '2020-01-01-00:00' WHERE run_id = '{first}'"
    )
    pipeline.refine(hour)
    verdict = verdicts(pipeline)[second]
    assert (verdict["verdict_status"], verdict["error_class"], verdict["attempts"]) == (
        "failed",
        "earlier_run_missing",
        0,
    )
    assert first in verdict["error_message"]
    pipeline.convert(first_hour)
    pipeline.refine(hour)
    assert verdicts(pipeline)[second]["verdict_status"] != "failed"


# ---- failures ------------------------------------------------------------------------------------------------------


def test_judge_storing_fails_raises_and_keeps_paid_verdicts(captured: Pipeline, judge: SimulatedJudge) -> None:
    """Postgres refuses one row: the others of the same batch, and those in flight, are stored all the same."""
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.1}}])
    captured.do(
        "CREATE FUNCTION trajectory.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF (SELECT count(*) FROM trajectory.verdicts) >= 5 AND NOT EXISTS (SELECT FROM trajectory.refused) THEN"
        " RAISE EXCEPTION 'No space left on device'; END IF; RETURN NEW; END $$",
        "CREATE TABLE trajectory.refused AS SELECT 1 AS x LIMIT 0",
        "CREATE TRIGGER refuse BEFORE INSERT ON trajectory.verdicts FOR EACH ROW EXECUTE FUNCTION trajectory.refuse()",
    )
    captured.concurrency = 4
    with pytest.raises(SinkError, match="the server's disk is full"):
        captured.refine(HOUR)
    known, paid = verdicts(captured), judge.calls()["received"]
    # What was under way was waited for: nothing is lost, and nothing new was begun: four calls, and one being stored.
    assert len(known) == 5
    assert 1 <= paid - sum(row["attempts"] for row in known.values()) <= 4 + 1
    assert all(attempt["result"] == "answered" for attempt in attempts(captured))
    assert captured.ask("SELECT * FROM trajectory.verdict_locks") == []
    captured.do("INSERT INTO trajectory.refused VALUES (1)")
    result = captured.refine(HOUR)
    assert result.reused == len(known)
    assert judge.calls()["received"] == paid + result.calls
    assert sum(result.statuses.values()) == RUNS
    # Answers that could not be stored were asked for again: that is seen and added up.
    twice = [row for row in verdicts(captured).values() if row["attempts"] == 2]
    assert len(twice) == paid - sum(row["attempts"] for row in known.values())
    for row in twice:
        assert row["cost_usd"] == sum(one["cost_usd"] for one in attempts(captured) if one["run_id"] == row["run_id"])


def test_judge_lost_connection_loses_no_verdict(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.05}}])
    captured.concurrency = 2
    ended = []

    def end_connections(words: str) -> None:
        if not ended:
            ended.append(words)
            captured.do(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'trajectory-pipeline'"
            )

    monkeypatch.setattr(judge_worker, "REPORT_SECONDS", 0.2)
    result = captured.refine(HOUR, concurrency=2, progress=end_connections)
    assert ended
    assert sum(result.statuses.values()) == RUNS
    assert len(attempts(captured)) == judge.calls()["received"] == eligible(captured)


def test_judge_internal_error_affects_one_verdict_only(
    captured: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    grade, calls = judge_trajectory.grade_response, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("of ours")
        return grade(*arguments)

    monkeypatch.setattr(judge_trajectory, "grade_response", failing)
    result = captured.refine(HOUR)
    assert result.errors == {"internal_error": 1}
    (verdict,) = [row for row in verdicts(captured).values() if row["verdict_status"] == "failed"]
    assert verdict["error_message"] == "a defect of trajectory-pipeline: ZeroDivisionError: of ours"
    # Its cost is known all the same, and the next materialization repairs it like any other.
    assert (verdict["attempts"], verdict["outcome"]) == (1, None)
    assert verdict["cost_usd"] > 0
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    again = captured.refine(HOUR)
    assert (again.calls, again.errors) == (1, {})


@pytest.mark.heavy
def test_judge_killed_process_leaves_only_the_rest_to_ask(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.3}}])
    with subprocess.Popen([sys.executable, "-c", program_that_judges(captured, HOUR, concurrency=2)]) as process:
        deadline = time.monotonic() + 60
        while len(verdicts(captured)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    # What it had sent to Postgres may still be carried out there.
    connections = (
        "SELECT 1 AS x FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'trajectory-pipeline'"
    )
    while captured.ask(connections) and time.monotonic() < deadline:
        time.sleep(0.05)
    stored = verdicts(captured)
    assert 4 <= len(stored) < RUNS
    judge.clear_faults()
    # Its claims end by themselves: here the clock is moved on instead.
    captured.do("UPDATE trajectory.verdict_locks SET expires_at = now()")
    result = captured.refine(HOUR)
    assert result.reused == len(stored)
    after = verdicts(captured)
    assert len(after) == RUNS
    assert {run_id: after[run_id] for run_id in stored} == stored
    known = attempts(captured)
    lost = [row for row in known if row["result"] == "lost"]
    repeated = [run_id for run_id, row in after.items() if row["attempts"] == 2]
    assert {row["run_id"] for row in lost} <= set(repeated)
    assert len(repeated) <= 2
    # At most the calls in flight are made twice, and all of them are known, before they are sent.
    assert len(lost) <= 2
    assert len(known) == eligible(captured) + len(repeated)
    assert len(known) - len(lost) <= judge.calls()["received"] <= len(known)
    # A lost one counts at what it may have cost, in its verdict and against the caps.
    assert all(row["cost_usd"] == row["reserved_usd"] > 0 for row in lost)
    assert sum(row["cost_usd"] for row in known) == sum(row["cost_usd"] or 0 for row in after.values())
    (day,) = captured.ask("SELECT * FROM trajectory.spend_totals WHERE scope = 'day'")
    assert day["spent_usd"] + day["reserved_usd"] == sum(row["cost_usd"] for row in known)


def test_judge_concurrent_workers_pay_once(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.05}}])

    async def both() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(captured.refine, HOUR) for _ in range(3)))

    results = asyncio.run(both())
    assert judge.calls()["received"] == len(attempts(captured)) == eligible(captured)
    assert sum(result.calls for result in results) == eligible(captured)
    # Each of them ends with the whole partition, whoever reached its verdicts.
    assert [sum(result.statuses.values()) for result in results] == [RUNS] * 3
    assert all(result.reused + result.judged >= eligible(captured) for result in results)


# ---- logs and metadata --------------------------------------------------------------------------------------------


def test_judge_logs_and_metadata_hold_no_key_or_transcript(
    captured: Pipeline, judge: SimulatedJudge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lines: list[str] = []
    result = captured.refine(HOUR, progress=lines.append)
    key = captured.judge.api_key
    shown = " ".join([repr(result), repr(refined_outcomes_metadata(result)), caplog.text, *lines, repr(captured.judge)])
    assert key not in shown
    texts = [
        message["assistant_text"]
        for row in captured.parquet(TRAJECTORIES, HOUR)
        for turn in row["turns"]
        for message in turn["messages"]
        if message["assistant_text"] and len(message["assistant_text"]) > 20
    ]
    assert texts
    assert not [text for text in texts if text in shown]
    assert lines[-1].startswith(f"{RUNS} of {RUNS} trajectories judged, ")


# ---- concurrent calls ---------------------------------------------------------------------------------------------


def test_judge_calls_in_flight_reach_and_respect_concurrency(captured: Pipeline) -> None:
    """The server answers no call until all calls are in flight."""
    concurrency, in_flight, most = 4, 0, 0
    changed = threading.Condition()

    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        nonlocal in_flight, most
        with changed:
            in_flight += 1
            most = max(most, in_flight)
            changed.notify_all()
            if number <= concurrency:
                changed.wait_for(lambda: most >= concurrency, timeout=30)
            in_flight -= 1
        return 200, completion(json.dumps(ANSWER)), {}

    eligible_runs = eligible(captured)
    with Provider(respond) as provider:
        captured.judge_url, captured.model, captured.budget = provider.url, "some-model", {"allow_unpriced": True}
        result = captured.refine(HOUR, concurrency=concurrency)
    assert (most, result.calls) == (concurrency, eligible_runs)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_judge_unstored_answers_are_bounded(captured: Pipeline, judge: SimulatedJudge, concurrency: int) -> None:
    """Calls without a stored verdict are what a killed process may have paid for in vain."""
    captured.do(
        "CREATE TABLE trajectory.seen (open int)",
        "CREATE FUNCTION trajectory.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO trajectory.seen"
        " SELECT count(*) FROM trajectory.verdict_attempts a WHERE NOT EXISTS"
        " (SELECT FROM trajectory.verdicts v WHERE v.run_id = a.run_id); RETURN NULL; END $$",
        "CREATE TRIGGER look AFTER INSERT ON trajectory.verdict_attempts FOR EACH STATEMENT"
        " EXECUTE FUNCTION trajectory.look()",
    )
    captured.refine(HOUR, concurrency=concurrency)
    most = only(captured.ask("SELECT max(open) AS n FROM trajectory.seen"))["n"]
    assert concurrency <= most <= concurrency + 1


def test_judge_range_judges_together_and_publishes_each(pipeline: Pipeline) -> None:
    """The server answers no call until the calls of both partitions are in flight."""
    hours = sorted(sample_partitions(), key=lambda hour: sample_partitions()[hour])[-3:-1]
    missing = HOUR
    pipeline.capture(*hours)
    wanted, in_flight = eligible(pipeline), 0
    changed = threading.Condition()

    def respond(_: int) -> tuple[int, Any, dict[str, str]]:
        nonlocal in_flight
        with changed:
            in_flight += 1
            changed.notify_all()
            together = changed.wait_for(lambda: in_flight == wanted, timeout=30)
        return 200 if together else 500, completion(json.dumps(ANSWER)), {}

    with Provider(respond) as provider:
        pipeline.judge_url, pipeline.model, pipeline.budget = provider.url, "some-model", {"allow_unpriced": True}
        pipeline.concurrency = wanted
        run = pipeline.refine_range([*hours, missing])
    results = [run.publish(hour) for hour in hours]
    assert in_flight == wanted == sum(result.calls for result in results)
    for hour, result in zip(hours, results, strict=True):
        assert (
            sum(result.statuses.values()) == len(pipeline.parquet(REFINED_OUTCOMES, hour)) == sample_partitions()[hour]
        )
        assert result.errors == {}
    with pytest.raises(PipelineError, match="There are no trajectories of"):
        run.publish(missing)


def test_publish_partition_judged_before_outage_succeeds(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    newer, older = max(sample_partitions()), HOUR
    assert newer > older
    pipeline.capture(newer, older)
    pipeline.concurrency = 1
    pipeline.judge_settings = {"first_pause_seconds": 0.01, "breaker_after": 2, "max_attempts": 1}
    first = only(
        pipeline.ask(
            "SELECT count(*) AS n FROM trajectory.trajectories WHERE partition_key = %s AND message_count > 0",
            partition_key(newer),
        )
    )["n"]
    judge.plan_faults([{"fault": "slow", "times": first, "params": {"seconds": 0.0}}, {"fault": "server_error"}])
    run = pipeline.refine_range([older, newer])
    assert run.publish(newer).errors == {}
    with pytest.raises(ProviderDownError):
        run.publish(older)


def test_outcomes_view_shows_calls_repairs_and_format(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "wrong_enum", "times": 1}])
    captured.refine(HOUR, concurrency=1)
    repaired = only(captured.ask("SELECT * FROM trajectory.outcomes WHERE judge_repairs > 0"))
    assert (repaired["judge_calls"], repaired["judge_repairs"]) == (2, 1)
    for row in captured.ask("SELECT * FROM trajectory.outcomes WHERE verdict_status = 'judged'"):
        assert (row["windows"], row["response_format"], row["shown_run_ids"][-1]) == (1, "json_schema", row["run_id"])
        assert 1 <= row["tool_use"] <= 5
        assert (row["judge_fallbacks"], row["judge_calls_lost"], row["failures"]) == (0, 0, 0)
    silent = captured.ask("SELECT * FROM trajectory.outcomes WHERE verdict_status = 'not_eligible'")
    assert all(row["judge_calls"] == row["judge_repairs"] == 0 and row["windows"] is None for row in silent)
