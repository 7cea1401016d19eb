"""The contract of a call: whatever comes back, or does not, is an attempt with class and cost, and no invented answer.

``Retry-After`` is obeyed; a call whose end nobody saw is ``lost``; our key stands in no message, repr or log.
"""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.refinement import ask as ask_module
from trajectory_pipeline.refinement.answer import JudgeAnswer
from trajectory_pipeline.refinement.ask import Asked, Attempt, Judge, without_credentials
from trajectory_pipeline.refinement.pricing import CallUsage, is_simulated, price_usd
from trajectory_pipeline.refinement.prompt import messages
from trajectory_pipeline.refinement.render import render
from trajectory_pipeline.simulated_judge import JUDGE_MODEL, SimulatedJudge

from .documents import ORDER
from .provider import ANSWER, Provider, completion

KEY = "sk-test-0123456789abcdef"
OPENAI = "https://api.openai.com/v1"
PROMPT = messages(render([ORDER], 100_000).text)

Answering = Callable[[int], tuple[int, Any, dict[str, str]]]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_module, "_pause", lambda _: 0.01)


class Told:
    """What ``began`` and ``ended`` were told."""

    def __init__(self) -> None:
        self.began: list[Attempt] = []
        self.ended: list[Attempt] = []

    async def on_begin(self, attempt: Attempt) -> None:
        self.began.append(attempt)

    async def on_end(self, attempt: Attempt) -> None:
        self.ended.append(attempt)


def ask(url: str, told: Told | None = None, **settings: Any) -> Asked[JudgeAnswer]:
    judge = Judge(**{"model": "some-model", "base_url": url, "api_key": KEY, "timeout_seconds": 5.0, **settings})
    told = told or Told()

    async def work() -> Asked[JudgeAnswer]:
        async with judge.session() as session:
            return await session.ask(PROMPT, JudgeAnswer, told.on_begin, told.on_end)

    return asyncio.run(work())


def ask_provider(*answers: Any, **settings: Any) -> Asked[JudgeAnswer]:
    """Ask a provider that gives these answers, the last of them again and again."""

    def answering(number: int) -> tuple[int, Any, dict[str, str]]:
        answer = answers[min(number, len(answers)) - 1]
        return answer if isinstance(answer, tuple) else (200, answer, {})

    with Provider(answering) as provider:
        return ask(provider.url, **settings)


def classes(asked: Asked[JudgeAnswer]) -> list[tuple[str, str | None]]:
    return [(attempt.result, attempt.error_class) for attempt in asked.attempts]


def test_a_usable_answer_comes_with_all_that_is_known_of_the_call(judge: SimulatedJudge) -> None:
    told = Told()
    asked = ask(judge.base_url, told, model=JUDGE_MODEL)
    (attempt,) = asked.attempts
    assert asked.answer is not None
    assert (attempt.result, attempt.error_class, attempt.http_status) == ("answered", None, 200)
    assert attempt.answered_model == JUDGE_MODEL
    assert attempt.finish_reason == "stop"
    assert (attempt.request_id or "").startswith("req_")
    assert attempt.prompt_characters == sum(len(message["content"]) for message in PROMPT)
    assert attempt.cost_usd == Decimal(judge.calls()["cost_usd"])
    assert (attempt.duration_ns or 0) > 0
    (began,) = told.began
    assert (began.attempt_id, began.result, began.duration_ns) == (attempt.attempt_id, "lost", None)
    assert told.ended == [attempt]


def test_what_is_sent_is_a_strict_schema_and_no_retry_of_the_librarys_own() -> None:
    with Provider(lambda _: (500, {"error": {"message": "no"}}, {})) as provider:
        asked = ask(provider.url, max_attempts=1)
        assert len(provider.requests) == len(asked.attempts) == 1
        (sent,) = provider.requests
    assert (sent["model"], sent["temperature"], sent["messages"]) == ("some-model", 0.0, PROMPT)
    schema = sent["response_format"]["json_schema"]
    assert (sent["response_format"]["type"], schema["strict"]) == ("json_schema", True)
    assert "minLength" not in json.dumps(schema)
    assert schema["schema"]["required"] == list(schema["schema"]["properties"])


def test_a_call_is_bounded_before_it_is_sent_by_what_it_may_take_at_most(judge: SimulatedJudge) -> None:
    told = Told()
    ask(judge.base_url, told, model=JUDGE_MODEL, max_answer_tokens=3000)
    (began,), (ended,) = told.began, told.ended
    assert ended.usage is not None
    assert began.estimated_prompt_tokens >= ended.usage.input_tokens > 0
    assert began.max_answer_tokens == 3000 >= ended.usage.output_tokens
    with Provider(lambda _: (500, {"error": {"message": "no"}}, {})) as provider:
        ask(provider.url, max_attempts=1, max_answer_tokens=3000)
    assert provider.requests[0]["max_completion_tokens"] == 3000


def test_what_may_not_begin_is_not_sent() -> None:
    async def refuse(_: Attempt) -> None:
        raise LookupError("no room in the budget")

    told = Told()
    told.on_begin = refuse  # type: ignore[method-assign]
    with Provider(lambda _: (500, {}, {})) as provider:
        with pytest.raises(LookupError, match="no room in the budget"):
            ask(provider.url, told)
        assert provider.requests == []
    assert told.ended == []


# ---- waiting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after": "0.4"}, 0.4, 2.0),
        ({"retry-after-ms": "300", "retry-after": "50"}, 0.3, 2.0),
        ({"retry-after": "Thu, 01 Jan 2015 00:00:00 GMT"}, 0.0, 0.3),
        ({"retry-after": "soon"}, 0.0, 0.3),
        ({"retry-after-ms": "nan"}, 0.0, 0.3),
        ({}, 0.0, 0.3),
    ],
)
def test_a_call_is_repeated_when_the_provider_says(headers: dict[str, str], least: float, most: float) -> None:
    times: list[float] = []

    def answering(number: int) -> tuple[int, Any, dict[str, str]]:
        times.append(time.monotonic())
        limited = (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, headers)
        return limited if number == 1 else (200, completion(json.dumps(ANSWER)), {})

    with Provider(answering) as provider:
        asked = ask(provider.url)
    assert asked.answer is not None
    assert classes(asked) == [("error", "rate_limited"), ("answered", None)]
    assert least <= times[1] - times[0] <= most


def test_who_asks_for_more_than_a_minute_is_left_in_peace() -> None:
    began = time.monotonic()
    asked = ask_provider((429, {"error": {"message": "tomorrow"}}, {"retry-after": "86400"}))
    assert classes(asked) == [("error", "rate_limited")]
    assert asked.answer is None
    assert time.monotonic() - began < 5


def test_no_more_calls_are_made_than_allowed() -> None:
    for allowed in (1, 2, 5):
        asked = ask_provider((503, {"error": {"message": "overloaded"}}, {}), max_attempts=allowed)
        assert classes(asked) == [("error", "server_error")] * allowed


# ---- no answer ----------------------------------------------------------------------------------------------------


def test_a_provider_that_cannot_be_reached_was_sent_nothing() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = ask(f"http://127.0.0.1:{port}/v1", max_attempts=2)
    assert classes(asked) == [("error", "connection")] * 2
    assert "could not be reached: Cannot connect to host 127.0.0.1" in (asked.attempts[0].error_message or "")
    asked = ask("http://no-host.invalid/v1", max_attempts=1)
    assert classes(asked) == [("error", "connection")]


def test_an_answer_that_does_not_come_in_time_is_lost(judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "hang"}])
    asked = ask(judge.base_url, model=JUDGE_MODEL, timeout_seconds=0.3, max_attempts=2)
    assert classes(asked) == [("lost", "timeout")] * 2
    assert asked.attempts[0].error_message == "no answer within 0.3 s (TRAJECTORY_JUDGE_TIMEOUT)"
    assert all(attempt.cost_usd is None for attempt in asked.attempts)
    assert all((attempt.duration_ns or 0) >= 300_000_000 for attempt in asked.attempts)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Sign in</html>",
        b"[]",
        b'"text"',
        b"{}",
        b'{"choices": null}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": {"0": 1}}',
        b"{",
        b"",
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_what_is_no_chat_completion_is_no_answer(body: bytes, content_type: str) -> None:
    asked = ask_provider((200, body, {"content-type": content_type}), max_attempts=1)
    assert classes(asked) == [("unusable", "no_answer")]
    assert (asked.answer, asked.unusable) == (None, False)
    assert asked.attempts[0].http_status == 200


def test_an_error_with_status_200_is_told_in_its_own_words() -> None:
    asked = ask_provider({"error": {"message": "upstream is down", "code": 502}}, max_attempts=1)
    assert classes(asked) == [("unusable", "no_answer")]
    assert "upstream is down" in (asked.attempts[0].error_message or "")


def test_the_right_answer_under_the_wrong_content_type_is_taken() -> None:
    body = json.dumps(completion(json.dumps(ANSWER))).encode()
    asked = ask_provider((200, body, {"content-type": "text/plain"}))
    assert asked.answer is not None
    assert asked.attempts[0].usage == CallUsage(10, None, 5)


# ---- unusable answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error_class"),
    [
        ("no JSON", "invalid_json"),
        ('{"requirements": NaN}', "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("1" * 10_000, "invalid_json"),
        ("null", "schema_violation"),
        ("{}", "schema_violation"),
        (json.dumps({**ANSWER, "outcome": "success"}), "schema_violation"),
        (json.dumps({**ANSWER, "tags": ["only", "two"]}), "schema_violation"),
        (json.dumps({**ANSWER, "summary": ""}), "schema_violation"),
        (json.dumps({**ANSWER, "summary": "half \ud83d"}), "schema_violation"),
        (json.dumps({**ANSWER, "learning": {**ANSWER["learning"], "tool_use": 6}}), "schema_violation"),
        (json.dumps({**ANSWER, "learning": {**ANSWER["learning"], "tool_use": 1.5}}), "schema_violation"),
        (json.dumps({**ANSWER, "learning": {**ANSWER["learning"], "tool_use": "3"}}), "schema_violation"),
        (json.dumps({**ANSWER, "learning": {**ANSWER["learning"], "tool_use": 10**400}}), "schema_violation"),
    ],
)
def test_an_answer_that_is_not_as_asked_is_unusable_and_kept_as_it_came(content: str, error_class: str) -> None:
    asked = ask_provider(completion(content), max_attempts=3)
    assert classes(asked) == [("unusable", error_class)]
    assert (asked.answer, asked.raw_answer, asked.unusable) == (None, content, True)
    assert asked.attempts[0].usage == CallUsage(10, None, 5)


def test_an_answer_that_says_nothing_is_asked_for_again() -> None:
    for content in (None, "", [{"type": "text", "text": "x"}], 5):
        asked = ask_provider(completion(content), completion(json.dumps(ANSWER)))
        assert classes(asked) == [("unusable", "no_answer"), ("answered", None)]


# ---- what it cost -------------------------------------------------------------------------------------------------


def usage_with_details(details: Any) -> dict[str, Any]:
    return {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": details}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, CallUsage(10, None, 5)),
        (usage_with_details({"cached_tokens": 4}), CallUsage(10, 4, 5)),
        (usage_with_details({"cached_tokens": 11}), CallUsage(10, None, 5)),
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
def test_usage_is_what_was_told_or_nothing(usage: Any, expected: CallUsage | None) -> None:
    asked = ask_provider(completion(json.dumps(ANSWER), usage=usage))
    assert asked.answer is not None
    assert asked.attempts[0].usage == expected
    assert asked.attempts[0].cost_usd is None  # of a model that nobody has a price for


def test_a_price_is_that_of_the_model_at_its_endpoint_or_not_known() -> None:
    usage = CallUsage(1_000_000, None, 0)
    assert price_usd("gpt-4o", usage, OPENAI) == Decimal("2.5")
    assert price_usd("gpt-4o", usage, "http://localhost:8000/v1") is None
    assert price_usd("a-model-of-tomorrow", usage, OPENAI) is None
    assert price_usd(None, usage, OPENAI) is None
    assert price_usd("gpt-4o", None, OPENAI) is None
    assert price_usd(JUDGE_MODEL, usage, "http://localhost") == Decimal("0.5")
    assert price_usd(JUDGE_MODEL, CallUsage(1_000_000, 1_000_000, 0), "http://localhost") == Decimal("0.05")
    assert price_usd("simulated-judge-of-tomorrow", usage, "http://localhost") is None
    assert price_usd("gpt-4o", CallUsage(2**53, None, 2**53), OPENAI) is None  # more than the column holds


def test_the_simulated_models_are_known_by_name() -> None:
    assert is_simulated(JUDGE_MODEL)
    assert is_simulated("simulated-judge-obedient:refusal")
    assert not is_simulated("gpt-4o")
    assert not is_simulated(None)


# ---- secrets ------------------------------------------------------------------------------------------------------


def test_our_key_stands_in_no_message_repr_or_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    words = f"Incorrect API key provided: {KEY}. You can find your key elsewhere."
    with Provider(lambda _: (401, {"error": {"message": words, "code": "invalid_api_key"}}, {})) as provider:
        asked = ask(provider.url)
        assert provider.headers[0]["authorization"] == f"Bearer {KEY}"
    assert classes(asked) == [("error", "authentication")]
    assert "Incorrect API key provided: [our key]." in (asked.attempts[0].error_message or "")
    judge = Judge("m", "https://user:geheim@host/v1?key=geheim", KEY)
    for text in (repr(asked), repr(judge), caplog.text):
        assert KEY not in text
        assert "geheim" not in text


def test_an_endpoint_is_stored_without_credentials() -> None:
    assert without_credentials("https://user:pw@host:8443/v1?key=x#y") == "https://host:8443/v1"
    asked = ask("http://me:geheim@127.0.0.1:1/v1?key=geheim", max_attempts=1)
    assert asked.attempts[0].base_url == "http://127.0.0.1:1/v1"
    assert classes(asked) == [("error", "connection")]
    assert "geheim" not in repr(asked)
