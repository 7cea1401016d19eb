"""A judge that refuses every question alike, or never answers usably, is not asked for every trajectory."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from trajectory_pipeline.budget.caps import BudgetExhausted, BudgetShortfall, Cap, Cost
from trajectory_pipeline.budget.token_estimate import share_read
from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.client.call_record import AskResult, CallRecord
from trajectory_pipeline.judge.client.session import open_session
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.judge.judge_client import PROMPT, CallLog, ask, error_classes, judge_at
from trajectory_pipeline_tests.judge.provider import ANSWER, Provider, completion

QUESTIONS = 40
Respond = Callable[[int], tuple[int, Any, dict[str, str]]]


def ask_many(respond: Respond, **settings: Any) -> tuple[int, list[str]]:
    """Ask one question after another; returns the calls made, and why the rest was not asked."""
    log = CallLog()

    async def work(url: str) -> list[str]:
        stopped = []
        async with open_session(judge_at(url, max_attempts=1, **settings)) as session:
            for _ in range(QUESTIONS):
                try:
                    await session.ask(PROMPT, JudgeResponse, log.on_begin, log.on_end)
                except ProviderDownError as error:
                    stopped.append(str(error))
        return stopped

    with Provider(respond) as provider:
        stopped = asyncio.run(work(provider.url))
        return len(provider.requests), stopped


@pytest.mark.parametrize(
    ("status", "body", "most"),
    [
        (400, {"error": {"message": "Incorrect API key provided: xa***."}}, 1),
        (400, {"error": "x/y is not a valid model ID"}, 1),
        (400, {"detail": "something is wrong with request 1234567"}, 8),
        (418, {"message": "I am a teapot"}, 8),
        (413, "<html>Request Entity Too Large</html>", 20),
        (422, [{"loc": ["body", "model_"], "msg": "extra"}], 8),
        (400, {"error": {"message": "The prompt triggered the content management policy."}}, 20),
        (301, "", 1),
    ],
)
def test_same_refusal_in_a_row_ends_the_asking(status: int, body: Any, most: int) -> None:
    calls, stopped = ask_many(
        lambda _: (status, body, {"location": "https://host.example/v1"} if status == 301 else {})
    )
    assert calls <= most
    assert len(stopped) >= QUESTIONS - most
    assert all("nothing more is asked of it now" in reason for reason in stopped)


def test_refusals_with_different_words_do_not_end_the_asking() -> None:
    words = ("one", "two")
    calls, stopped = ask_many(
        lambda number: (400, {"detail": f"bad {words[number % 2]}"}, {}), response_format="prompt"
    )
    assert (calls, stopped) == (QUESTIONS, [])


@pytest.mark.parametrize(
    "answer",
    [
        {**completion(" \n" * 100), "choices": [{"message": {"content": " \n" * 100}, "finish_reason": "length"}]},
        completion("no JSON"),
        completion("{}"),
        completion(""),
    ],
)
def test_answers_that_are_never_usable_end_the_asking(answer: Any) -> None:
    calls, stopped = ask_many(lambda _: (200, answer, {}))
    assert calls <= 16
    assert len(stopped) >= QUESTIONS - 8
    assert stopped[0].startswith("The judge gives no usable answer")


def test_answers_that_are_sometimes_usable_do_not_end_the_asking() -> None:
    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        return 200, completion(json.dumps(ANSWER) if number % 13 == 1 else "no JSON"), {}

    assert ask_many(respond)[1] == []


@pytest.mark.parametrize("headers", [{}, {"retry-after": "0"}])
def test_endless_rate_limit_ends_the_asking(headers: dict[str, str]) -> None:
    calls, stopped = ask_many(lambda _: (429, {"error": {"message": "Too many requests"}}, headers))
    assert calls <= 8
    assert stopped[0].startswith("The judge's provider lets no call through")


def test_rate_limit_that_lets_some_calls_through_does_not_end_the_asking() -> None:
    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        return (200, completion(json.dumps(ANSWER)), {}) if number % 5 == 1 else (429, {"error": "slow down"}, {})

    assert ask_many(respond)[1] == []


# ---- what the server did not read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "counted", "share"),
    [
        ("one two three four " * 100, 400, 1.0),
        ("one two three four " * 100, 200, 1.0),
        ("one two three four " * 100, 100, 0.25),
        ("漢字の文章です。" * 100, 130, 1.0),
        ("", 0, 1.0),
    ],
)
def test_share_read_is_less_only_where_no_tokenizer_counts_so_few(text: str, counted: int, share: float) -> None:
    assert share_read(text, counted) == share


def test_call_whose_prompt_was_cut_says_so() -> None:
    def told(tokens: int) -> float:
        usage = {"prompt_tokens": tokens, "completion_tokens": 5, "total_tokens": tokens + 5}
        with Provider(lambda _: (200, completion(json.dumps(ANSWER), usage=usage), {})) as provider:
            return ask(provider.url).calls[-1].share_read

    assert told(5_000) == 1.0
    assert 0 < told(50) < 0.5


# ---- answers without a bound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
def test_body_beyond_the_limit_is_cut_off(encoding: str) -> None:

    body = b'{"choices": [{"message": {"content": "' + b"a" * 60_000_000
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(body)
    with Provider(lambda _: (200, packed, {"content-encoding": encoding})) as provider:
        tracemalloc.start()
        result = ask(provider.url, max_attempts=1, max_response_tokens=500)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert error_classes(result) == [("unusable", "not_a_completion")]
    assert "it is larger than" in (result.calls[0].error_message or "")
    # The test's own server holds what it sends.
    assert peak < 40_000_000 + (len(packed) if encoding == "identity" else 0)


def test_repair_turn_repeats_no_more_than_an_answer_can_have() -> None:
    with Provider(lambda _: (200, completion("x" * 1_000_000), {})) as provider:
        ask(provider.url, max_response_tokens=500)
    assert len(provider.requests[1]["messages"][-2]["content"]) < 2_500


def test_repair_turn_that_never_fits_the_budget_ends_with_the_answer() -> None:
    # Words in place of the closed sets of words, which are their values.
    cap = Cap("daily_tokens", "day", "tokens", 100, "TRAJECTORY_DAILY_BUDGET_TOKENS", "the budget")  # type: ignore[arg-type]
    log = CallLog()

    async def only_one(call: CallRecord) -> None:
        if log.began:
            raise BudgetExhausted(BudgetShortfall(cap, Cost(tokens=101), cap.limit, could_free_up=False))
        log.began.append(call)

    log.on_begin = only_one  # type: ignore[method-assign]  # a fault injected
    with Provider(lambda _: (200, completion("no JSON"), {})) as provider:
        result: AskResult[JudgeResponse] = ask(provider.url, log)
    assert error_classes(result) == [("unusable", "invalid_json")]
    assert result.unusable


def test_query_of_the_base_url_stands_behind_each_path() -> None:
    paths: list[str] = []
    with Provider(lambda _: (200, completion(json.dumps(ANSWER)), {})) as provider:
        handler = provider._server.RequestHandlerClass
        real = handler.do_POST  # type: ignore[attr-defined]  # the handler of this test

        def do_post(self: Any) -> None:
            paths.append(self.path)
            real(self)

        handler.do_POST = do_post  # type: ignore[attr-defined]  # a fault injected
        assert ask(f"{provider.url}?api-version=2024-10-21").answer is not None
    assert paths == ["/v1/chat/completions?api-version=2024-10-21"]
