"""Responses of gateways and clouds that have no family in the provider corpus."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from trajectory_pipeline.judge.client import errors
from trajectory_pipeline.judge.client.answer_text import find_answer, unwrapped
from trajectory_pipeline.judge.client.backoff import requested_wait
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.error_text import read_error
from trajectory_pipeline.judge.client.errors import classify_error, error_result
from trajectory_pipeline.judge.client.http_call import _read_response
from trajectory_pipeline.judge.client.usage import read_usage
from trajectory_pipeline.schema.enums import ErrorClass, ResponseFormat
from trajectory_pipeline_tests.judge.judge_client import ask
from trajectory_pipeline_tests.judge.provider import Provider

ANSWER = '{"a":1}'
CHOICES = [{"message": {"content": ANSWER}, "finish_reason": "stop"}]
REFUSALS = [
    (429, {"message": "Too many tokens, please wait before trying again."}, "rate_limited"),
    (429, {"message": "Tokens per minute limit exceeded - too many tokens processed."}, "rate_limited"),
    (
        429,
        {"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded, try again later."},
        "rate_limited",
    ),
    (400, {"message": "The provided model identifier is invalid."}, "model_not_found"),
    (400, {"message": "Invocation of model ID a.b with on-demand throughput isn’t supported."}, "model_not_found"),
    (400, {"errors": [{"code": 7003, "message": "No route for that URI"}]}, "model_not_found"),
    (404, {"title": "Not Found", "detail": "Function id 'x': Not found for account 'y'"}, "model_not_found"),
    (403, {"message": "The security token included in the request is expired"}, "authentication"),
    (429, {"message": "A Trial key is limited to 1000 API calls / month."}, "quota_exceeded"),
    (429, {"errors": [{"message": "you have used up your daily free allocation"}]}, "quota_exceeded"),
    (412, {"message": "Portkey Error: Usage limit exceeded. Error Code: 05"}, "quota_exceeded"),
    (400, {"error": {"message": "You have reached your specified API usage limits."}}, "quota_exceeded"),
    (400, {"error": {"message": "Budget has been exceeded! Max budget: 10.0"}}, "quota_exceeded"),
    (401, {"error": {"message": "Authentication Error, ExceededTokenBudget: 7.2"}}, "quota_exceeded"),
    (400, {"error": {"code": "Arrearage", "message": "Access denied."}}, "quota_exceeded"),
    (403, {"error": {"message": "The free tier of the model has been exhausted."}}, "quota_exceeded"),
    (403, {"message": "Out of call volume quota. Quota will be replenished in 00:23:11."}, "quota_exceeded"),
    (446, {"error": {"message": "The guardrail checks failed.", "type": "hooks_failed"}}, "content_filter"),
    (413, "<html><h1>413 Request Entity Too Large</h1><hr>nginx</html>", "context_too_long"),
]


def read(body: Any, response_format: ResponseFormat = ResponseFormat.JSON_SCHEMA) -> Any:
    content = body if isinstance(body, str) else json.dumps(body)
    request = httpx2.Request("POST", "http://localhost/v1/chat/completions")
    call = CallRecord(
        "m", "http://localhost/v1", prompt_characters=1, estimated_prompt_tokens=1000, max_response_tokens=100,
        response_format=response_format,
    )  # fmt: skip
    return _read_response(call, httpx2.Response(200, content=content.encode(), request=request))


@pytest.mark.parametrize(("status", "body", "expected"), REFUSALS)
def test_classify_error_of_other_gateways(status: int, body: Any, expected: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    assert classify_error(status, read_error(content.encode()).words) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"result": {"choices": CHOICES}, "success": True},
        {"result": {"response": ANSWER}, "success": True},
        {"code": 0, "data": {"choices": CHOICES}},
        {"statusCode": 200, "body": json.dumps({"choices": CHOICES})},
        {"output": {"choices": CHOICES}, "usage": {"input_tokens": 5, "output_tokens": 2}},
        {"output": {"message": {"content": [{"text": ANSWER}]}}, "stopReason": "end_turn"},
        {"choices": CHOICES[0]},
        ": PROCESSING\n\n: PROCESSING\n\n" + json.dumps({"choices": CHOICES}),
    ],
)
def test_answer_in_another_wrapping_is_found(body: Any) -> None:
    reply = read(body)
    assert reply.call.error_class is None
    assert reply.text == ANSWER


@pytest.mark.parametrize(
    ("body", "tier"),
    [
        ({"service_tier": "priority"}, "priority"),
        ({"usage": {"prompt_tokens": 10, "completion_tokens": 5, "service_tier": "Priority"}}, "priority"),
        ({"service_tier": None}, None),
        ({"service_tier": 7}, None),
    ],
)
def test_tier_of_an_answer_is_read_for_its_price(body: Any, tier: str | None) -> None:
    usage = read({"choices": CHOICES, "usage": {"prompt_tokens": 900, "completion_tokens": 7}, **body}).call.usage
    assert usage.service_tier == tier


def test_wrapped_usage_is_counted() -> None:
    usage = {"prompt_tokens": 900, "completion_tokens": 7, "total_tokens": 907}
    assert read({"result": {"choices": CHOICES, "usage": usage}}).call.usage.output_tokens == 7


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": ANSWER}, "cut_off"),
        ({"output": {"message": {"content": [{"text": "{"}]}}, "stopReason": "max_tokens"}, "cut_off"),
        ({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]}, "refused"),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, "content_filter"),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": None}, "quota_exceeded"),
        ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "rate_limited"),
    ],
)
def test_end_that_stands_elsewhere_is_read(body: Any, expected: str) -> None:
    assert read(body).call.error_class == expected


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "a", "arguments": json.dumps(ANSWER)}},
        {"type": "custom", "custom": {"name": "a", "input": ANSWER}},
    ],
)
def test_arguments_in_another_coding_are_found(call: dict[str, Any]) -> None:
    found = find_answer({"choices": [{"message": {"tool_calls": [call]}}]}, ResponseFormat.TOOL_CALL)
    assert found
    assert found.text == ANSWER


def test_unwrapped_leaves_a_completion_as_it_is() -> None:
    completion = {"choices": CHOICES, "data": {"choices": []}}
    assert unwrapped(completion) is completion


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-ms-retry-after-ms": "15000"}, 15),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": "7, 7"}, 7),
        ({"ratelimit": '"default";r=0;t=30'}, 30),
        ({"ratelimit": "limit=10, remaining=0, reset=30"}, 30),
        ({"x-rate-limit-remaining": "0", "x-rate-limit-reset": "30"}, 30),
        ({"ratelimit": '"default";r=5;t=30'}, None),
        ({"retry-after": f"{datetime.now(UTC) + timedelta(seconds=3600):%a, %d %b %Y %H:%M:%S}"}, 3600),
    ],
)
def test_requested_wait_in_other_headers(headers: dict[str, str], expected: float | None) -> None:
    wait = requested_wait(headers)
    assert wait == (None if expected is None else pytest.approx(expected, abs=expected / 2))


@pytest.mark.parametrize(
    ("usage", "prompt"),
    [
        ({"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokenCount": 90}, 100),
        (
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "cache_creation": {"ephemeral_5m_input_tokens": 80, "ephemeral_1h_input_tokens": 10},
            },
            100,
        ),
        (
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "cache_creation_input_tokens": 90,
                "cache_creation": {"ephemeral_5m_input_tokens": 90},
            },
            100,
        ),
        ({"promptTokenCount": 60, "candidatesTokenCount": 5, "toolUsePromptTokenCount": 40}, 100),
    ],
)
def test_read_usage_counts_prompt_tokens_that_stand_apart(usage: dict[str, Any], prompt: int) -> None:
    read_tokens = read_usage(usage, 5_000, 800, has_text=True)
    assert read_tokens
    assert read_tokens.input_tokens == prompt


@pytest.mark.parametrize(
    ("status", "seconds", "result"),
    [
        (500, 0.1, "error"),
        (503, 0.1, "error"),
        (529, 0.1, "error"),
        (500, 30.0, "lost"),
        (503, 30.0, "lost"),
        (529, 30.0, "lost"),
        *((status, 0.1, "lost") for status in (408, 424, 444, 460, 499, 502, 504, 520, 522, 524, 598)),
        (409, 30.0, "error"),
        (429, 30.0, "error"),
        (401, 30.0, "error"),
    ],
)
def test_server_error_is_free_only_at_once_and_from_the_provider_itself(
    status: int, seconds: float, result: str
) -> None:
    """Anything else may stand for an answer that was written, and billed."""
    assert error_result(status, classify_error(status, ""), seconds) == result


def test_server_error_that_comes_late_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_AT_ONCE_SECONDS", 0.2)

    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        time.sleep(0.4 if number == 1 else 0.0)
        return 500, {"error": "internal"}, {}

    with Provider(respond) as provider:
        calls = ask(provider.url, max_attempts=2, first_pause_seconds=0.01).calls
    assert [call.result for call in calls] == ["lost", "error"]


def test_error_class_names_are_those_of_the_schema() -> None:
    assert {expected for _, _, expected in REFUSALS} <= set(ErrorClass)
