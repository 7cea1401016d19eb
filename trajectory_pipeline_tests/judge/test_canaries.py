"""Secrets end to end: planted in every text column of real rows, they are sent and stored nowhere.

A real server receives the prompts. It also repeats one in an error, and gives one answer that needs a repair turn.
"""

import json
import logging
from typing import Any

import pytest

from trajectory_pipeline.defs.metadata import refined_outcomes_metadata
from trajectory_pipeline_tests.judge.conftest import HOUR
from trajectory_pipeline_tests.judge.provider import ANSWER, Provider, completion
from trajectory_pipeline_tests.judge.secret_samples import JWT, KEYS, PRIVATE_KEY
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

PASSWORD = "c0rrect-h0rse-battery"
CANARIES = [*KEYS.values(), JWT, *PRIVATE_KEY.splitlines()[1:-1], PASSWORD]
PLANTED = "\n".join(
    [*KEYS.values(), JWT, PRIVATE_KEY, f"password={PASSWORD}", f"postgresql://ada:{PASSWORD}@db:5432/letta"]
)


def leaks(text: str) -> list[str]:
    plain = text.replace("\\\\n", "\n").replace("\\n", "\n")
    return [canary for canary in CANARIES if canary in plain or canary in text]


def plant(pipeline: Pipeline) -> None:
    parts = json.dumps([{"type": "text", "text": PLANTED}, {"type": "reasoning", "reasoning": PLANTED}])
    returns = [
        {"tool_call_id": "c", "status": status, "func_response": PLANTED, "stdout": [PLANTED], "stderr": [PLANTED]}
        for status in ("success", "error")
    ]
    arguments = json.dumps({"note": PLANTED, "nested": json.dumps({"again": PLANTED})})
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]

    def literal(value: Any) -> str:
        return "'" + (value if isinstance(value, str) else json.dumps(value)).replace("'", "''") + "'"

    metadata = {"error": {"type": "E", "message": PLANTED, "detail": PLANTED}, "note": PLANTED}
    pipeline.change_source(
        f"UPDATE messages SET content = {literal(parts)} WHERE role IN ('user', 'assistant', 'system')",
        f"UPDATE messages SET tool_calls = {literal(calls)} WHERE role = 'assistant'",
        f"UPDATE messages SET tool_returns = {literal(returns)} WHERE role = 'tool'",
        f"UPDATE runs SET metadata_ = {literal(metadata)}",
        f"UPDATE agents SET system = {literal(PLANTED)}, description = {literal(PLANTED)}",
    )


def test_secrets_are_in_no_prompt_error_log_or_verdict(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    """Repair turns, metadata and call records hold none either."""
    caplog.set_level(logging.DEBUG)
    plant(pipeline)
    pipeline.capture(HOUR)
    assert leaks(repr(pipeline.ask("SELECT data::text FROM trajectory.trajectories")))

    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        if number == 1:
            return 400, {"error": {"message": f"cannot read {provider.requests[-1]}"}}, {}
        if number == 2:
            return 200, completion(json.dumps({**ANSWER, "tags": []})), {}
        return 200, completion(json.dumps(ANSWER)), {}

    messages: list[str] = []
    with Provider(respond) as provider:
        pipeline.judge_url, pipeline.model, pipeline.budget = provider.url, "some-model", {"allow_unpriced": True}
        pipeline.concurrency = 1
        result = pipeline.refine(HOUR, progress=messages.append)
        assert len(provider.requests) > 10
        assert leaks(json.dumps(provider.requests, ensure_ascii=False)) == []
        assert "[secret:api_key:" in json.dumps(provider.requests)
        assert any(len(request["messages"]) > 2 for request in provider.requests), "no repair turn was made"
    stored = [
        pipeline.ask(f"SELECT * FROM trajectory.{table}") for table in ("verdicts", "verdict_attempts", "policies")
    ]
    assert leaks(repr([stored, refined_outcomes_metadata(result), messages, caplog.text])) == []


def test_secrets_are_in_no_window_and_no_window_summary(pipeline: Pipeline) -> None:
    plant(pipeline)
    pipeline.capture(HOUR)
    # Each window's answer repeats its prompt, so that it reaches the prompt that summarizes all windows.
    prompts: list[str] = []

    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        request = provider.requests[number - 1]
        if "part_findings" not in json.dumps(request):
            return 200, completion(json.dumps(ANSWER)), {}
        prompts.append(request["messages"][-1]["content"])
        return 200, completion(json.dumps({"findings": [], "account": prompts[-1][-500:]})), {}

    with Provider(respond) as provider:
        pipeline.judge_url, pipeline.model, pipeline.budget = provider.url, "some-model", {"allow_unpriced": True}
        pipeline.concurrency, pipeline.max_prompt_tokens = 1, 6_000
        pipeline.refine(HOUR)
        assert len(prompts) > 1, "no transcript was judged in windows"
        assert leaks(json.dumps(provider.requests, ensure_ascii=False)) == []
    stored = [pipeline.ask(f"SELECT * FROM trajectory.{table}") for table in ("verdicts", "verdict_attempts")]
    assert leaks(repr(stored)) == []


def test_secrets_without_redaction_are_found_in_prompts(pipeline: Pipeline) -> None:
    plant(pipeline)
    pipeline.capture(HOUR)
    with Provider(lambda _: (200, completion(json.dumps(ANSWER)), {})) as provider:
        pipeline.judge_url, pipeline.model, pipeline.budget = provider.url, "some-model", {"allow_unpriced": True}
        pipeline.redact = "off"
        pipeline.refine(HOUR)
        assert set(leaks(json.dumps(provider.requests, ensure_ascii=False))) >= {*KEYS.values(), JWT, PASSWORD}
