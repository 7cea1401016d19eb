"""Waiting: a wait that a provider asks of one call holds for the whole session; each call takes a rate limit slot."""

import asyncio
import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, SimulatedJudge
from trajectory_pipeline.judge.client.backoff import backoff_seconds, requested_wait, seconds_until_reset
from trajectory_pipeline.judge.client.call_record import AskResult, CallRecord
from trajectory_pipeline.judge.client.session import open_session
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.judge.judge_client import PROMPT, CallLog, judge_at
from trajectory_pipeline_tests.judge.provider import ANSWER, Provider, completion

ANSWERED = (200, completion(json.dumps(ANSWER)), {})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after": "Thu, 01 Jan 2015 00:00:00 GMT"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m0s"}, None),
        ({"retry-after": "2", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "9"}, 2.0),
    ],
)
def test_requested_wait_reads_each_known_header(headers: dict[str, str], seconds: float | None) -> None:
    assert requested_wait(headers) == seconds


def test_requested_wait_reads_a_date() -> None:
    assert requested_wait({"retry-after": formatdate(time.time() + 100, usegmt=True)}) == pytest.approx(100, abs=2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("20ms", 0.02),
        ("1.5", 1.5),
        ("", None),
        ("soon", None),
        ("5s later", None),
        ("-1", None),
        ("inf", None),
    ],
)
def test_reset_header_reads_durations_as_servers_write_them(text: str, seconds: float | None) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": text}
    assert seconds_until_reset(headers) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("factor", [1, 1000])
def test_reset_header_reads_a_timestamp_in_s_or_ms(factor: int) -> None:
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int((time.time() + 100) * factor))}
    assert seconds_until_reset(headers) == pytest.approx(100, abs=2)


def test_reset_of_several_exhausted_limits_is_the_slowest() -> None:
    exhausted = {f"x-ratelimit-remaining-{kind}": "0" for kind in ("requests", "tokens")}
    headers = {**exhausted, "x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "3s"}
    assert seconds_until_reset(headers) == 3.0


def test_backoff_doubles_up_to_its_bound_with_jitter() -> None:
    for failures in range(1, 12):
        longest = min(0.5 * 2 ** (failures - 1), 60.0)
        pauses = {backoff_seconds(failures, 0.5) for _ in range(50)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)


# ---- all calls of a session ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, {"retry-after-ms": "400"}),
        (503, {"error": {"message": "overloaded"}}, {"retry-after-ms": "400"}),
        (*ANSWERED[:2], {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "400ms"}),
    ],
    ids=["429", "503", "exhausted"],
)
def test_session_starts_no_call_during_a_requested_wait(first: tuple[int, Any, dict[str, str]]) -> None:
    began: list[float] = []

    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        began.append(time.monotonic())
        return first if number == 1 else ANSWERED

    log = CallLog()

    async def work(url: str) -> None:
        async with open_session(judge_at(url)) as session:
            ended = asyncio.Event()

            async def on_end(attempt: CallRecord) -> None:
                await log.on_end(attempt)
                ended.set()

            ask = asyncio.create_task(session.ask(PROMPT, JudgeResponse, log.on_begin, on_end))
            await ended.wait()
            await asyncio.gather(ask, *(session.ask(PROMPT, JudgeResponse, log.on_begin, on_end) for _ in range(3)))

    with Provider(respond) as provider:
        asyncio.run(work(provider.url))
    assert len(began) >= 4
    # No upper bound: a loaded machine may send them later.
    assert all(moment - began[0] >= 0.4 for moment in began[1:])


def test_call_takes_a_rate_limit_slot_before_it_is_sent(judge: SimulatedJudge) -> None:
    """Each call requests a slot for its tokens before it is recorded and sent, retries and repairs included."""
    judge.plan_faults([{"fault": "empty_content", "times": 1}, {"fault": "invalid_json", "times": 1}])
    events: list[str] = []
    tokens: list[int] = []

    async def request_slot(wanted: int) -> float:
        events.append("slot")
        tokens.append(wanted)
        return 0.0

    async def on_begin(attempt: CallRecord) -> None:
        events.append(f"begins {attempt.purpose}")

    async def on_end(attempt: CallRecord) -> None:
        events.append(f"ended {judge.calls()['received']}")

    async def work() -> AskResult[JudgeResponse]:
        async with open_session(
            judge_at(judge.base_url, model=JUDGE_MODEL, max_response_tokens=3000), request_slot=request_slot
        ) as session:
            return await session.ask(PROMPT, JudgeResponse, on_begin, on_end)

    result = asyncio.run(work())
    assert result.answer is not None
    assert events == [
        *("slot", "begins first", "ended 1"),
        *("slot", "begins retry", "ended 2"),
        *("slot", "begins repair", "ended 3"),
    ]
    assert tokens == [attempt.estimated_prompt_tokens + 3000 for attempt in result.calls]
    assert tokens[2] > tokens[1] == tokens[0]
