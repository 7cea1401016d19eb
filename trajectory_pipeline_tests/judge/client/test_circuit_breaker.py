"""Circuit breaker: calls to a provider that is down stop soon, and one trial call finds out that it is back.

The simulated judge counts the calls. No test depends on how long anything takes.
"""

import asyncio
from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, SimulatedJudge
from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.client.call_record import AskResult
from trajectory_pipeline.judge.client.errors import is_outage
from trajectory_pipeline.judge.client.session import JudgeSession, open_session
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.judge.judge_client import PROMPT, CallLog, error_classes, judge_at

Result = AskResult[JudgeResponse] | BaseException


def ask_many(
    judge: SimulatedJudge, questions: int, at_once: int, *, half_open: bool = False, **settings: Any
) -> list[Result]:
    """Ask many questions in one session, ``at_once`` of them concurrently; returns an answer or an error for each."""
    log = CallLog()

    async def one(session: JudgeSession, slots: asyncio.Semaphore) -> AskResult[JudgeResponse]:
        async with slots:
            return await session.ask(PROMPT, JudgeResponse, log.on_begin, log.on_end)

    async def work() -> list[Result]:
        slots = asyncio.Semaphore(at_once)
        async with open_session(
            judge_at(judge.base_url, model=JUDGE_MODEL, **settings), half_open=half_open
        ) as session:
            return await asyncio.gather(*(one(session, slots) for _ in range(questions)), return_exceptions=True)

    results = asyncio.run(work())
    assert len(log.began) == len(log.ended) == judge.calls()["received"]
    return results


def stopped(results: list[Result]) -> int:
    return sum(isinstance(result, ProviderDownError) for result in results)


@pytest.mark.parametrize("fault", ["server_error", "bad_gateway", "html_body", "error_body", "connection_dropped"])
def test_breaker_after_consecutive_failures_stops_all_calls(judge: SimulatedJudge, fault: str) -> None:
    judge.plan_faults([{"fault": fault}])
    results = ask_many(judge, 20, 1, breaker_after=5, max_attempts=2)
    assert judge.calls()["received"] == 5
    # Two calls for each question, but the fifth call opens the breaker.
    assert [len(result.calls) for result in results if isinstance(result, AskResult)] == [2, 2, 1]
    assert stopped(results) == 17
    (message,) = {str(result) for result in results if isinstance(result, ProviderDownError)}
    assert message.startswith(
        "The judge's provider is down, and nothing more is asked of it now (5 calls in a row failed"
    )


@pytest.mark.parametrize("fault", ["unauthorized", "forbidden", "insufficient_quota", "payment_required"])
def test_breaker_after_one_fatal_error_stops_all_calls(judge: SimulatedJudge, fault: str) -> None:
    """An error that every call would get, such as a wrong key, is got once."""
    judge.plan_faults([{"fault": fault}])
    results = ask_many(judge, 20, 1)
    assert judge.calls()["received"] == 1
    assert stopped(results) == 19


def test_breaker_that_opens_lets_only_calls_in_flight_finish(judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "server_error"}])
    results = ask_many(judge, 100, 10, breaker_after=5)
    assert 5 <= judge.calls()["received"] <= 5 + 10
    assert stopped(results) >= 100 - 15


def test_breaker_restarts_its_count_after_an_answer(judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "server_error", "every": 2}])
    results = ask_many(judge, 20, 1, breaker_after=2, max_attempts=2)
    assert stopped(results) == 0
    assert all(isinstance(result, AskResult) and result.answer for result in results)


def test_breaker_ignores_rate_limits_and_refusals(judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "rate_limit_ms", "every": 2, "params": {"retry_after_ms": 1}}, {"fault": "refusal"}])
    assert stopped(ask_many(judge, 6, 1, breaker_after=1)) == 0


def test_half_open_breaker_sends_one_trial_call(judge: SimulatedJudge) -> None:
    """The other calls wait for the trial, and are not sent where it fails."""
    judge.plan_faults([{"fault": "server_error"}])
    results = ask_many(judge, 20, 20, half_open=True)
    assert judge.calls()["received"] == 1
    assert stopped(results) == 19
    (trial,) = [result for result in results if isinstance(result, AskResult)]
    assert error_classes(trial) == [("error", "server_error")]


def test_half_open_breaker_closes_after_a_successful_trial(judge: SimulatedJudge) -> None:
    results = ask_many(judge, 20, 20, half_open=True)
    assert all(isinstance(result, AskResult) and result.answer for result in results)
    assert judge.calls()["received"] == 20


def test_half_open_breaker_gives_an_unsent_trial_to_the_next_call(judge: SimulatedJudge) -> None:
    log = CallLog()

    async def refuse(_: object) -> None:
        raise LookupError("no headroom in the budget")

    async def work() -> AskResult[JudgeResponse]:
        async with open_session(judge_at(judge.base_url, model=JUDGE_MODEL), half_open=True) as session:
            with pytest.raises(LookupError):
                await session.ask(PROMPT, JudgeResponse, refuse, log.on_end)
            return await session.ask(PROMPT, JudgeResponse, log.on_begin, log.on_end)

    assert asyncio.run(work()).answer is not None
    assert judge.calls()["received"] == 1


def test_breaker_after_a_too_long_requested_wait_stops_all_calls(judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "rate_limit", "params": {"retry_after": 3600}}])
    results = ask_many(judge, 5, 1)
    assert judge.calls()["received"] == 1
    assert stopped(results) == 4
    assert "asked for a 3600 s pause" in str(results[1])


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        ([], False),
        ([None], False),
        (["authentication"], True),
        (["authentication", None], True),
        ([None, "authentication"], False),
        (["server_error"] * 3, True),
        (["server_error", "timeout", "connection"], True),
        (["server_error"] * 2, False),
        (["server_error", "server_error", None], False),
        (["server_error", "server_error", "refused"], False),
        (["rate_limited"] * 3, False),
    ],
)
def test_is_outage_depends_on_the_latest_calls(latest: list[str | None], expected: bool) -> None:
    assert is_outage(latest, 3) is expected
