"""Servers without some feature of OpenAI: each call falls back to the next simpler format once, and is recorded.

Each is the simulated judge with the refusals of a real server: statuses and messages are those of vLLM, Ollama,
LiteLLM, OpenRouter and OpenAI's reasoning models.
"""

import asyncio
import json
from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, SimulatedJudge
from trajectory_pipeline.judge.client.errors import classify_error
from trajectory_pipeline.judge.client.response_format import RequestOptions, schema_instructions
from trajectory_pipeline.judge.client.session import open_session
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.judge.judge_client import (
    PROMPT,
    CallLog,
    ask,
    ask_provider,
    error_classes,
    judge_at,
    purposes,
)
from trajectory_pipeline_tests.judge.provider import ANSWER, Provider, completion

NO_SCHEMA = {"fault": "unsupported_response_format"}
NO_TOOLS = {"fault": "no_tool_support"}
NO_TOOL_ENDPOINT = {"fault": "no_tool_endpoint"}
NO_TEMPERATURE = {"fault": "unsupported_temperature"}
OLD_LIMIT = {"fault": "unknown_field"}

SERVERS: list[tuple[list[dict[str, Any]], str, float | None, int]] = [
    ([], "json_schema", 0.0, 1),
    ([NO_TEMPERATURE], "json_schema", None, 2),
    ([OLD_LIMIT], "json_schema", 0.0, 2),
    ([NO_SCHEMA], "tool_call", 0.0, 2),
    ([NO_SCHEMA, {"fault": "tool_ignored"}], "tool_call", 0.0, 2),
    ([NO_SCHEMA, NO_TOOLS], "prompt", 0.0, 3),
    ([NO_SCHEMA, NO_TOOL_ENDPOINT], "prompt", 0.0, 3),
    ([NO_SCHEMA, NO_TOOLS, {"fault": "fenced_whole"}], "prompt", 0.0, 3),
    ([NO_SCHEMA, NO_TOOLS, {"fault": "thinking"}], "prompt", 0.0, 3),
    ([OLD_LIMIT, NO_TEMPERATURE, NO_SCHEMA, NO_TOOLS], "prompt", None, 5),
]


@pytest.mark.parametrize(("refusals", "response_format", "temperature", "calls"), SERVERS)
def test_fallback_ends_with_a_format_that_the_server_accepts(
    judge: SimulatedJudge, refusals: list[dict[str, Any]], response_format: str, temperature: float | None, calls: int
) -> None:
    judge.plan_faults(refusals)
    result = ask(judge.base_url, model=JUDGE_MODEL)
    assert result.answer is not None
    assert error_classes(result) == [("error", "unsupported")] * (calls - 1) + [("answered", None)]
    assert purposes(result) == ["first", *["fallback"] * (calls - 1)]
    last = result.calls[-1]
    assert (last.response_format, last.temperature) == (response_format, temperature)
    assert judge.calls()["received"] == calls


def test_fallback_of_one_call_applies_to_the_whole_session(judge: SimulatedJudge) -> None:
    judge.plan_faults([NO_TEMPERATURE, NO_SCHEMA, NO_TOOLS])
    log = CallLog()

    async def work() -> None:
        async with open_session(judge_at(judge.base_url, model=JUDGE_MODEL)) as session:
            await session.ask(PROMPT, JudgeResponse, log.on_begin, log.on_end)
            await asyncio.gather(*(session.ask(PROMPT, JudgeResponse, log.on_begin, log.on_end) for _ in range(5)))

    asyncio.run(work())
    assert [attempt.error_class for attempt in log.ended] == ["unsupported"] * 3 + [None] * 6
    assert judge.calls()["received"] == 9


def test_calls_refused_together_fall_back_by_one_step(judge: SimulatedJudge) -> None:
    judge.plan_faults([NO_SCHEMA])
    log = CallLog()

    async def work() -> None:
        async with open_session(judge_at(judge.base_url, model=JUDGE_MODEL)) as session:
            await asyncio.gather(*(session.ask(PROMPT, JudgeResponse, log.on_begin, log.on_end) for _ in range(5)))

    asyncio.run(work())
    assert {attempt.response_format for attempt in log.ended if attempt.error_class is None} == {"tool_call"}
    assert len(log.ended) <= 10


@pytest.mark.parametrize("response_format", ["json_schema", "tool_call", "prompt"])
def test_configured_format_is_used(judge: SimulatedJudge, response_format: Any) -> None:
    result = ask(judge.base_url, model=JUDGE_MODEL, response_format=response_format)
    assert result.answer is not None
    assert [attempt.response_format for attempt in result.calls] == [response_format]


def test_configured_format_that_is_refused_does_not_fall_back(judge: SimulatedJudge) -> None:
    judge.plan_faults([NO_SCHEMA])
    result = ask(judge.base_url, model=JUDGE_MODEL, response_format="json_schema")
    assert error_classes(result) == [("error", "unsupported")]
    assert "response_format" in (result.calls[0].error_message or "")


def test_fallback_takes_each_step_once_and_then_fails() -> None:
    message = "temperature, max_completion_tokens, response_format and tools are not supported"
    result = ask_provider((400, {"error": {"message": message}}, {}))
    assert error_classes(result) == [("error", "unsupported")] * 5
    forms = [(attempt.response_format, attempt.temperature) for attempt in result.calls]
    assert forms == [("json_schema", 0.0)] * 2 + [("json_schema", None), ("tool_call", None), ("prompt", None)]


def test_fallback_to_max_tokens_changes_no_other_field() -> None:
    refused = {"detail": [{"loc": ["body", "max_completion_tokens"], "msg": "extra fields not permitted"}]}

    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        return (422, refused, {}) if number == 1 else (200, completion(json.dumps(ANSWER)), {})

    with Provider(respond) as provider:
        result = ask(provider.url, max_response_tokens=3000)
    first, second = provider.requests
    assert result.answer is not None
    assert first.pop("max_completion_tokens") == second.pop("max_tokens") == 3000
    assert first == second


def test_prompt_format_puts_the_schema_in_the_system_message() -> None:
    form = RequestOptions("prompt", 0.0, 100)
    sent = json.loads(form.body("m", PROMPT, JudgeResponse))
    system, user = sent["messages"]
    assert system["content"].startswith(PROMPT[0]["content"])
    assert system["content"].endswith(schema_instructions(JudgeResponse))
    assert "{requirements: Array<{statement: string, " in system["content"]
    assert user == PROMPT[1]
    assert "response_format" not in sent
    assert "tools" not in sent


def test_answer_with_two_tool_calls_is_a_schema_violation() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": json.dumps(ANSWER)}}] * 2
    answer = completion(None)
    answer["choices"][0]["message"]["tool_calls"] = calls
    result = ask_provider(answer, response_format="tool_call")
    assert error_classes(result) == [("unusable", "schema_violation")] * 2
    assert result.answer is None


# ---- classes of refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "error_class"),
    [
        (
            400,
            "'max_completion_tokens' is too large: 9000. This model's maximum context length is 8192",
            "context_too_long",
        ),
        (400, "This model's maximum context length is 8192 tokens. However, your request has 9000", "context_too_long"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum", "context_too_long"),
        (413, "Request too large", "bad_request"),
        (400, "litellm.UnsupportedParamsError: m does not support parameters: ['response_format']", "unsupported"),
        (400, '"auto" tool choice requires --enable-auto-tool-choice to be set', "unsupported"),
        (400, "Invalid schema for response_format 'x': 'minLength' is not permitted", "unsupported"),
        (400, "For 'array' type, property 'minItems' is not supported", "unsupported"),
        (400, "tools.0.custom.input: unknown keyword maxProperties", "unsupported"),
        (422, "Unexpected keyword: exclusiveMinimum", "unsupported"),
        (400, "For 'integer' type, properties maximum, minimum are not supported", "unsupported"),
        (500, "failed to load model vocabulary required for format", "server_error"),
        (501, "response_format is not implemented", "unsupported"),
        (404, "No endpoints found that can handle the requested parameters.", "unsupported"),
        (404, "model 'x' not found, try pulling it first", "model_not_found"),
        (403, "Input was flagged by moderation", "content_filter"),
        (403, "Forbidden", "permission"),
        (402, "This request requires more credits", "quota_exceeded"),
        (429, "You exceeded your current quota, please check your plan and billing details", "quota_exceeded"),
        (429, "Rate limit reached for requests", "rate_limited"),
        (408, "Request timed out", "server_error"),
        (418, "I am a teapot", "bad_request"),
    ],
)
def test_classify_error_uses_status_and_message(status: int, message: str, error_class: str) -> None:
    assert classify_error(status, message) == error_class
