"""A call: whatever its end, it is recorded with error class and cost, and no answer is invented.

``Retry-After`` is obeyed. A call without a known end is ``lost``. Our key is in no message, repr or log.
"""

import json
import logging
import socket
import time
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.budget.prices import CallUsage, load_prices, price_usd
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE, SimulatedJudge
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline_tests.judge.judge_client import KEY, PROMPT, CallLog, ask, ask_provider, error_classes
from trajectory_pipeline_tests.judge.provider import ANSWER, Provider, completion

OPENAI = "https://api.openai.com/v1"


def test_answered_call_is_recorded_with_all_that_is_known(judge: SimulatedJudge) -> None:
    log = CallLog()
    result = ask(judge.base_url, log, model=JUDGE_MODEL)
    (attempt,) = result.calls
    assert result.answer is not None
    assert (attempt.result, attempt.error_class, attempt.http_status) == ("answered", None, 200)
    assert attempt.response_model == JUDGE_MODEL
    assert attempt.finish_reason == "stop"
    assert (attempt.request_id or "").startswith("req_")
    assert attempt.prompt_characters == sum(len(message["content"]) for message in PROMPT)
    cost = load_prices(PRICE_TABLE).cost(attempt.model, attempt.response_model, attempt.usage, attempt.base_url)
    assert cost == Decimal(judge.calls()["cost_usd"])
    assert (attempt.duration_ns or 0) > 0
    (began,) = log.began
    assert (began.attempt_id, began.result, began.duration_ns) == (attempt.attempt_id, "lost", None)
    assert log.ended == [attempt]


def test_request_has_a_strict_schema_and_is_sent_once() -> None:
    with Provider(lambda _: (500, {"error": {"message": "no"}}, {})) as provider:
        result = ask(provider.url, max_attempts=1)
        assert len(provider.requests) == len(result.calls) == 1
        (request,) = provider.requests
    assert (request["model"], request["temperature"], request["messages"]) == ("some-model", 0.0, PROMPT)
    schema = request["response_format"]["json_schema"]
    assert (request["response_format"]["type"], schema["strict"]) == ("json_schema", True)
    assert "minLength" not in json.dumps(schema)
    assert schema["schema"]["required"] == list(schema["schema"]["properties"])


def test_call_has_an_upper_bound_of_tokens_before_it_is_sent(judge: SimulatedJudge) -> None:
    log = CallLog()
    ask(judge.base_url, log, model=JUDGE_MODEL, max_response_tokens=3000)
    (began,), (ended,) = log.began, log.ended
    assert ended.usage is not None
    assert began.estimated_prompt_tokens >= ended.usage.input_tokens > 0
    assert began.max_response_tokens == 3000 >= ended.usage.output_tokens
    with Provider(lambda _: (500, {"error": {"message": "no"}}, {})) as provider:
        ask(provider.url, max_attempts=1, max_response_tokens=3000)
    assert provider.requests[0]["max_completion_tokens"] == 3000


def test_call_refused_before_it_begins_is_not_sent() -> None:
    async def refuse(_: CallRecord) -> None:
        raise LookupError("no headroom in the budget")

    log = CallLog()
    log.on_begin = refuse  # type: ignore[method-assign]  # a fault injected
    with Provider(lambda _: (500, {}, {})) as provider:
        with pytest.raises(LookupError, match="no headroom in the budget"):
            ask(provider.url, log)
        assert provider.requests == []
    assert log.ended == []


# ---- waiting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "shortest", "longest"),
    [
        ({"retry-after": "0.4"}, 0.4, 2.0),
        ({"retry-after-ms": "300", "retry-after": "50"}, 0.3, 2.0),
        ({"retry-after": "Thu, 01 Jan 2015 00:00:00 GMT"}, 0.0, 0.3),
        ({"retry-after": "soon"}, 0.0, 0.3),
        ({"retry-after-ms": "nan"}, 0.0, 0.3),
        ({}, 0.0, 0.3),
    ],
)
def test_retry_waits_as_long_as_the_provider_asks(headers: dict[str, str], shortest: float, longest: float) -> None:
    times: list[float] = []

    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        times.append(time.monotonic())
        limited = (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, headers)
        return limited if number == 1 else (200, completion(json.dumps(ANSWER)), {})

    with Provider(respond) as provider:
        result = ask(provider.url)
    assert result.answer is not None
    assert error_classes(result) == [("error", "rate_limited"), ("answered", None)]
    assert shortest <= times[1] - times[0] <= longest


def test_requested_wait_of_over_a_minute_is_not_retried() -> None:
    began = time.monotonic()
    result = ask_provider((429, {"error": {"message": "tomorrow"}}, {"retry-after": "86400"}))
    assert error_classes(result) == [("error", "rate_limited")]
    assert result.answer is None
    assert time.monotonic() - began < 5


def test_failing_calls_end_at_max_attempts() -> None:
    for allowed in (1, 2, 5):
        result = ask_provider((503, {"error": {"message": "overloaded"}}, {}), max_attempts=allowed)
        assert error_classes(result) == [("error", "server_error")] * allowed


# ---- no answer ----------------------------------------------------------------------------------------------------


def test_unreachable_provider_is_a_connection_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = ask(f"http://127.0.0.1:{port}/v1", max_attempts=2)
    assert error_classes(result) == [("error", "connection")] * 2
    assert "could not be reached: Cannot connect to host 127.0.0.1" in (result.calls[0].error_message or "")
    result = ask("http://no-host.invalid/v1", max_attempts=1)
    assert error_classes(result) == [("error", "connection")]


def test_call_without_an_answer_in_time_is_lost(judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "hang"}])
    result = ask(judge.base_url, model=JUDGE_MODEL, timeout_seconds=0.3, max_attempts=2)
    assert error_classes(result) == [("lost", "timeout")] * 2
    assert result.calls[0].error_message == "no answer within 0.3 s (TRAJECTORY_JUDGE_TIMEOUT)"
    assert all(attempt.usage is None for attempt in result.calls)
    assert all((attempt.duration_ns or 0) >= 300_000_000 for attempt in result.calls)


@pytest.mark.parametrize(
    ("body", "error_class"),
    [
        (b"<html>Sign in</html>", "not_a_completion"),
        (b"[]", "not_a_completion"),
        (b'"text"', "not_a_completion"),
        (b"{}", "not_a_completion"),
        (b'{"choices": null}', "not_a_completion"),
        (b'{"choices": {"0": 1}}', "not_a_completion"),
        (b"{", "not_a_completion"),
        (b"", "not_a_completion"),
        (b"\xff\xfe\xff", "not_a_completion"),
        (b"[" * 100_000, "not_a_completion"),
        (b'{"choices": []}', "no_answer"),
        (b'{"choices": [null]}', "no_answer"),
        (b'{"choices": [{"message": null}]}', "no_answer"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_body_that_is_no_chat_completion_is_unusable(body: bytes, error_class: str, content_type: str) -> None:
    result = ask_provider((200, body, {"content-type": content_type}), max_attempts=1)
    assert error_classes(result) == [("unusable", error_class)]
    assert (result.answer, result.unusable) == (None, False)
    assert result.calls[0].http_status == 200


@pytest.mark.parametrize(
    ("body", "result", "error_class"),
    [
        ({"error": {"message": "upstream is down", "code": 502}}, "lost", "server_error"),
        ({"error": {"message": "upstream is down"}}, "lost", "server_error"),
        ({"error": "upstream is down"}, "lost", "server_error"),
        ({"error": {"message": "upstream is down: too busy", "code": "429"}}, "error", "rate_limited"),
        ({"error": {"message": "upstream is down: insufficient credits", "code": 402}}, "error", "quota_exceeded"),
        (
            {"choices": [{"finish_reason": "error", "error": {"message": "upstream is down", "code": 502}}]},
            "lost",
            "server_error",
        ),
    ],
)
def test_error_body_with_status_200_is_classified_by_its_code(body: Any, result: str, error_class: str) -> None:
    asked = ask_provider(body, max_attempts=1)
    assert error_classes(asked) == [(result, error_class)]
    assert "upstream is down" in (asked.calls[0].error_message or "")
    assert (asked.calls[0].http_status, asked.answer) == (200, None)


def test_answer_with_a_wrong_content_type_is_accepted() -> None:
    body = json.dumps(completion(json.dumps(ANSWER))).encode()
    result = ask_provider((200, body, {"content-type": "text/plain"}))
    assert result.answer is not None
    assert result.calls[0].usage == CallUsage(10, None, 5)


# ---- what it cost -------------------------------------------------------------------------------------------------


def usage_with_details(details: Any) -> dict[str, Any]:
    return {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": details}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, CallUsage(10, None, 5)),
        (usage_with_details({"cached_tokens": 4}), CallUsage(10, 4, 5)),
        (usage_with_details({"cached_tokens": 11}), CallUsage(21, None, 5)),
        (usage_with_details("none"), CallUsage(10, None, 5)),
        ({"prompt_tokens": 10}, None),
        ({"prompt_tokens": "10", "completion_tokens": 5}, None),
        ({"prompt_tokens": True, "completion_tokens": 5}, None),
        ({"prompt_tokens": -1, "completion_tokens": 5}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 5}, None),
        ({"prompt_tokens": 1.5, "completion_tokens": 5}, None),
        ("none", None),
        (None, None),
    ],
)
def test_usage_that_is_implausible_is_none(usage: Any, expected: CallUsage | None) -> None:
    result = ask_provider(completion(json.dumps(ANSWER), usage=usage))
    assert result.answer is not None
    assert result.calls[0].usage == expected


def test_price_usd_of_an_unknown_model_or_usage_is_none() -> None:
    usage = CallUsage(1_000_000, None, 0)
    assert price_usd("gpt-4o", usage, OPENAI) == Decimal("2.5")
    assert price_usd("gpt-4o", usage, "http://localhost:8000/v1") is None
    assert price_usd(JUDGE_MODEL, usage, "http://localhost") is None
    assert price_usd("a-model-of-tomorrow", usage, OPENAI) is None
    assert price_usd(None, usage, OPENAI) is None
    assert price_usd("gpt-4o", None, OPENAI) is None
    assert price_usd("gpt-4o", CallUsage(2**53, None, 2**53), OPENAI) is None  # more than the column holds


def test_call_is_simulated_where_the_server_says_so_by_header(judge: SimulatedJudge) -> None:
    assert ask(judge.base_url, model=JUDGE_MODEL).calls[0].simulated
    judge.plan_faults([{"fault": "unauthorized"}])
    assert ask(judge.base_url, model=JUDGE_MODEL).calls[0].simulated
    assert not ask_provider(completion("x"), model=JUDGE_MODEL).calls[0].simulated


# ---- secrets ------------------------------------------------------------------------------------------------------


def test_api_key_is_in_no_message_repr_or_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    message = f"Incorrect API key provided: {KEY}. You can find your key elsewhere."
    with Provider(lambda _: (401, {"error": {"message": message, "code": "invalid_api_key"}}, {})) as provider:
        result = ask(provider.url)
        assert provider.headers[0]["authorization"] == f"Bearer {KEY}"
    assert error_classes(result) == [("error", "authentication")]
    assert "Incorrect API key provided: [our key]." in (result.calls[0].error_message or "")
    judge = JudgeConfig("m", "https://user:geheim@host/v1?key=geheim", KEY)
    for text in (repr(result), repr(judge), caplog.text):
        assert KEY not in text
        assert "geheim" not in text
