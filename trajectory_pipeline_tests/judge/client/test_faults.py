"""A failing judge: each fault has its status and error class, no value is invented, and every call is recorded.

Each fault of the simulated judge applies to every call of a materialization. The rows in Postgres are then compared
with the table below and with the usage log of the server.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import count
from typing import Any

import pytest

from trajectory_pipeline.budget.prices import Prices
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.simulated_judge import FAULTS, FaultStage, SimulatedJudge
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import SCORES, Pipeline, Row, only
from trajectory_pipeline_tests.server_databases import create_database, drop_database


@dataclass(frozen=True)
class Expected:
    """The result of a fault with a fixed response format, two calls allowed and a timeout of 0.5 s."""

    status: str
    error_class: str | None = None
    result: str = "answered"
    calls: int = 1
    params: dict[str, Any] = field(default_factory=dict)
    priced: bool = True
    applies: bool = True


def refused(error_class: str, calls: int = 1, **params: Any) -> Expected:
    return Expected("failed", error_class, "error", calls, params, priced=False)


def lost(error_class: str, **params: Any) -> Expected:
    return Expected("failed", error_class, "lost", 2, params, priced=False)


def unusable(error_class: str) -> Expected:
    return Expected("quarantined", error_class, "unusable", 2)


EXPECTED: dict[str, Expected] = {
    "slow": Expected("judged", params={"seconds": 0.05}),
    "hang": lost("timeout"),
    "late_answer": lost("timeout", seconds=0.7),
    "rate_limit": refused("rate_limited", 2, retry_after=0.05),
    "rate_limit_date": refused("rate_limited", 2, retry_after=0.0),
    "rate_limit_ms": refused("rate_limited", 2, retry_after_ms=10),
    "rate_limit_bare": refused("rate_limited", 2),
    "insufficient_quota": refused("quota_exceeded"),
    "server_error": refused("server_error", 2),
    "bad_gateway": lost("server_error"),
    "unavailable": refused("server_error", 2),
    "gateway_timeout": lost("server_error"),
    "unauthorized": refused("authentication"),
    "echoed_key": refused("authentication"),
    "payment_required": refused("quota_exceeded"),
    "forbidden": refused("permission"),
    "context_length_exceeded": refused("context_too_long"),
    "content_filter_request": Expected("failed", "content_filter", "refused", priced=False),
    "unsupported_response_format": refused("unsupported"),
    "unsupported_parameter": refused("unsupported", param="response_format"),
    "unknown_field": refused("unsupported", param="response_format"),
    "no_tool_support": Expected("judged", applies=False),
    "no_tool_endpoint": Expected("judged", applies=False),
    "model_not_found": refused("model_not_found"),
    "connection_dropped": lost("connection"),
    "connection_dropped_mid_body": lost("connection"),
    "html_body": Expected("failed", "not_a_completion", "unusable", 2, priced=False),
    "slow_drip": lost("timeout"),
    "error_body": lost("server_error"),
    "limit_used_up": Expected("judged"),
    "provider": Expected("judged"),
    "wrong_content_type": Expected("judged"),
    "truncated": unusable("cut_off"),
    "content_filter_answer": Expected("failed", "content_filter", "refused"),
    "refusal": Expected("failed", "refused", "refused"),
    "empty_content": Expected("failed", "no_answer", "unusable", 2),
    "null_content": Expected("failed", "no_answer", "unusable", 2),
    "invalid_json": unusable("invalid_json"),
    "missing_field": unusable("schema_violation"),
    "wrong_enum": unusable("schema_violation"),
    "extra_field": unusable("schema_violation"),
    "nan_number": unusable("not_a_number"),
    "number_out_of_range": unusable("out_of_range"),
    "wrong_item_count": unusable("wrong_count"),
    "fenced_json": unusable("invalid_json"),
    "fenced_whole": unusable("invalid_json"),
    "thinking": unusable("invalid_json"),
    "fabricated_quote": Expected("insufficient_evidence"),
    "unknown_message": Expected("insufficient_evidence"),
    "usage_missing": Expected("judged", priced=False),
    "usage_null": Expected("judged", priced=False),
    "wrong_model_name": Expected("judged"),
    "duplicate_choices": Expected("judged"),
    "no_choices": Expected("failed", "no_answer", "unusable", 2),
    "tool_ignored": Expected("judged"),
}

FALLBACK_FAULTS = {"unsupported_temperature"}
"""Faults after which a call falls back, whatever the response format: see ``test_response_format``."""

FIXED_FORMAT = {"response_format": "json_schema"}

_NUMBERS = count()


@dataclass
class Captured:
    pipeline: Pipeline
    hour: datetime
    run_id: str


@pytest.fixture(scope="module")
def captured(
    postgres_server: EmbeddedServer,
    _templates: EmbeddedServer,
    running_judge: SimulatedJudge,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Captured]:
    """A partition of one run, which the simulated judge finds a success."""
    names = {"template_letta": "faults_letta", "template_trajectory": "faults_trajectory"}
    for template, name in names.items():
        create_database(postgres_server, name, template)
    letta, trajectory = (postgres_server.url(name) for name in names.values())
    pipeline = Pipeline(letta, trajectory, tmp_path_factory.mktemp("parquet"), running_judge.base_url)
    question = (
        "SELECT r.id AS run_id FROM runs r WHERE status = 'completed' AND stop_reason = 'end_turn' AND (SELECT count(*)"
        " FROM messages m WHERE m.run_id = r.id AND m.role = 'tool' AND m.tool_returns::text LIKE '%\"success\"%') = 1"
        " AND NOT EXISTS (SELECT FROM messages m WHERE m.run_id = r.id AND m.role = 'approval')"
        " AND (SELECT count(*) FROM messages m WHERE m.run_id = r.id) = 4 ORDER BY 1 LIMIT 1"
    )
    run_id = only(Pipeline("", letta, pipeline.folder).ask(question))["run_id"]
    pipeline.change_source(
        f"DELETE FROM run_metrics WHERE id <> '{run_id}'", f"DELETE FROM runs WHERE id <> '{run_id}'"
    )
    hour = pipeline.hour_of_run(run_id)
    pipeline.capture(hour)
    yield Captured(pipeline, hour, run_id)
    for name in names.values():
        drop_database(postgres_server, name)


def refined_with(
    captured: Captured, judge: SimulatedJudge, faults: list[dict[str, Any]], **overrides: Any
) -> tuple[Row, list[Row]]:
    """Judge under a policy of its own while faults apply; returns the verdict and its calls."""
    pipeline = captured.pipeline
    judge.clear_faults()
    judge.reset_calls()
    judge.plan_faults(faults)
    # Calls of earlier faults would make this one's first call a trial, which is not repeated.
    pipeline.do("DELETE FROM trajectory.verdict_attempts")
    pipeline.max_prompt_tokens = 100_000 + next(_NUMBERS)
    pipeline.judge_settings = {
        "timeout_seconds": 0.5,
        "max_attempts": 2,
        "first_pause_seconds": 0.01,
        **FIXED_FORMAT,
        **overrides,
    }
    pipeline.refine(captured.hour)
    return stored(captured)


def stored(captured: Captured) -> tuple[Row, list[Row]]:
    policy = captured.pipeline.policy.policy_id
    verdict = only(captured.pipeline.ask("SELECT * FROM trajectory.verdicts WHERE policy_id = %s", policy))
    attempts = captured.pipeline.ask(
        "SELECT * FROM trajectory.verdict_attempts WHERE policy_id = %s ORDER BY started_at", policy
    )
    return verdict, attempts


def test_expected_results_cover_every_fault() -> None:
    of_chat = {name for name, fault in FAULTS.items() if fault.stage not in (FaultStage.DECISION, FaultStage.EMBEDDING)}
    assert set(EXPECTED) | FALLBACK_FAULTS == of_chat


@pytest.mark.parametrize("fault", EXPECTED)
def test_fault_gives_the_expected_verdict_attempts_and_cost(
    captured: Captured, judge: SimulatedJudge, fault: str
) -> None:
    expected = EXPECTED[fault]
    verdict, attempts = refined_with(captured, judge, [{"fault": fault, "params": expected.params}])
    assert (verdict["verdict_status"], verdict["error_class"]) == (expected.status, expected.error_class)
    assert [attempt["result"] for attempt in attempts] == [expected.result] * expected.calls
    assert {attempt["error_class"] for attempt in attempts} == {expected.error_class}

    # No value is invented.
    judged = verdict["verdict_status"] == "judged"
    for name in SCORES:
        assert (verdict[name] is not None) == judged, name
    assert (verdict["error_message"] is None) == (expected.error_class is None)
    assert (verdict["raw_response"] is not None) == (
        expected.status == "quarantined" or fault == "content_filter_answer"
    )
    assert verdict["simulated"] is True

    # Our records and the usage log of the server have every call.
    usage_log = wait_until_idle(judge)
    assert usage_log["received"] == len(attempts) == verdict["attempts"]
    assert usage_log["by_fault"] == ({fault: len(attempts)} if expected.applies else {})
    if expected.priced:
        assert sum(attempt["cost_usd"] for attempt in attempts) == Decimal(usage_log["cost_usd"]) > 0
        assert verdict["cost_usd"] == Decimal(usage_log["cost_usd"])
        assert (
            sum(attempt["input_tokens"] for attempt in attempts)
            == usage_log["prompt_tokens"]
            == verdict["input_tokens"]
        )
        assert sum(attempt["output_tokens"] for attempt in attempts) == usage_log["completion_tokens"]
    elif expected.result == "lost":
        # The cost is unknown: the call counts at what was reserved for it.
        assert all(attempt["cost_usd"] == attempt["reserved_usd"] > 0 for attempt in attempts)
        assert verdict["cost_usd"] == sum(attempt["cost_usd"] for attempt in attempts) >= Decimal(usage_log["cost_usd"])
    else:
        assert {attempt["cost_usd"] for attempt in attempts} == {None}
        assert verdict["cost_usd"] is None
    if FAULTS[fault].stage is FaultStage.REFUSED and expected.applies:
        assert {attempt["http_status"] for attempt in attempts} == {FAULTS[fault].status}
    for attempt in attempts:
        assert (attempt["http_status"] is None) == (expected.error_class in ("timeout", "connection"))
        assert attempt["duration_ns"] > 0


def wait_until_idle(judge: SimulatedJudge) -> dict[str, Any]:
    """The usage log once no call is in flight: the server notices late that its client has disconnected."""
    deadline = time.monotonic() + 5
    while (usage_log := judge.calls(0))["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.02)
    return usage_log


def test_verdict_of_unpriced_model_has_null_cost(
    captured: Captured, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured.pipeline, "budget", {"prices": Prices(), "allow_unpriced": True})
    verdict, (attempt,) = refined_with(captured, judge, [{"fault": "wrong_model_name"}])
    assert (verdict["model"], verdict["cost_usd"]) == ("some-other-model-2024-01-01", None)
    assert (attempt["response_model"], attempt["cost_usd"], attempt["input_tokens"] > 0) == (
        verdict["model"],
        None,
        True,
    )
    # The server calls itself a simulation, whatever name it gives the model.
    assert verdict["simulated"] is True


FAILED = [name for name, expected in EXPECTED.items() if expected.status == "failed"]
QUARANTINED = [name for name, expected in EXPECTED.items() if expected.status == "quarantined"]


@pytest.mark.parametrize("fault", some_heavy(FAILED, *FAILED[:3]))
def test_failed_verdict_is_judged_after_the_judge_recovers(
    captured: Captured, judge: SimulatedJudge, fault: str
) -> None:
    """The verdict then adds up the attempts and the cost of both runs."""
    faults = [{"fault": fault, "params": EXPECTED[fault].params}]
    failed, before = refined_with(captured, judge, faults, timeout_seconds=0.2)
    judge.clear_faults()
    captured.pipeline.judge_settings = {}
    result = captured.pipeline.refine(captured.hour)
    verdict, attempts = stored(captured)
    assert (verdict["verdict_status"], verdict["error_class"], verdict["outcome"]) == ("judged", None, "success")
    assert (verdict["attempts"], result.calls) == (len(before) + 1, 1)
    assert len(attempts) == len(before) + 1
    assert verdict["cost_usd"] == sum(attempt["cost_usd"] or 0 for attempt in attempts)
    assert verdict["created_at"] == failed["created_at"]
    assert captured.pipeline.refine(captured.hour).calls == 0


@pytest.mark.parametrize("fault", some_heavy(QUARANTINED, *QUARANTINED[:3]))
def test_quarantined_verdict_is_not_paid_for_again(captured: Captured, judge: SimulatedJudge, fault: str) -> None:
    verdict, _ = refined_with(captured, judge, [{"fault": fault}])
    judge.clear_faults()
    result = captured.pipeline.refine(captured.hour)
    assert (result.calls, result.reused, result.errors) == (0, 1, {verdict["error_class"]: 1})
    assert stored(captured)[0] == verdict


def test_verdict_after_one_failed_call_has_two_attempts(captured: Captured, judge: SimulatedJudge) -> None:
    verdict, attempts = refined_with(captured, judge, [{"fault": "empty_content", "times": 1}])
    assert verdict["verdict_status"] == "judged"
    assert [attempt["result"] for attempt in attempts] == ["unusable", "answered"]
    assert verdict["cost_usd"] == sum(attempt["cost_usd"] for attempt in attempts) == Decimal(judge.calls()["cost_usd"])
