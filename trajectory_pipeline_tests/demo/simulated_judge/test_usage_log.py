"""The usage log: it agrees with what a client saw, to the last cent, and do not grow."""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from trajectory_pipeline.budget.prices import CallUsage, load_prices
from trajectory_pipeline.demo.simulated_judge import (
    EMBEDDING_MODEL,
    JUDGE_MODEL,
    OBEDIENT_MODEL,
    PRICE_TABLE,
    SCRIPTED_MODEL,
    SIMULATED_PRICES,
    SimulatedJudge,
)
from trajectory_pipeline.demo.simulated_judge.usage_log import UsageLog
from trajectory_pipeline_tests.demo.simulated_judge.prompts import messages_of


def test_usage_log_agrees_with_the_client(judge: SimulatedJudge) -> None:
    judge.plan_faults(
        [
            {"fault": "rate_limit_bare", "every": 5},
            {"fault": "connection_dropped", "every": 7},
            {"fault": "server_error", "every": 11},
            {"fault": "truncated", "every": 3},
        ]
    )
    cost = Decimal(0)
    seen: Counter[str] = Counter()
    ids: set[str] = set()
    tokens: Counter[str] = Counter()

    async def ask(client: AsyncOpenAI, number: int) -> None:
        nonlocal cost
        try:
            completion = await client.chat.completions.create(
                model=JUDGE_MODEL, messages=[*messages_of(), {"role": "user", "content": f"x{number % 4}" * 2000}]
            )
        except openai.APIStatusError as error:
            seen[str(error.status_code)] += 1
        except openai.APIConnectionError:
            seen["dropped"] += 1
        else:
            seen["200"] += 1
            ids.add(completion.id)
            usage = completion.usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            cached = usage.prompt_tokens_details.cached_tokens or 0
            tokens.update(prompt=usage.prompt_tokens, cached=cached, completion=usage.completion_tokens)
            cost += SIMULATED_PRICES[JUDGE_MODEL].cost(usage.prompt_tokens, cached, usage.completion_tokens)

    async def ask_all() -> None:
        async with AsyncOpenAI(base_url=judge.base_url, api_key="x", max_retries=0) as client:
            await asyncio.gather(*(ask(client, number) for number in range(120)))

    asyncio.run(ask_all())
    account = judge.calls(last=1000)
    assert account["received"] == 120
    assert account["in_flight"] == 0
    assert account["by_status"] == dict(seen)
    assert account["answered"] == seen["200"]
    assert Decimal(account["cost_usd"]) == cost
    assert account["cost_usd"] == format(cost.normalize(), "f")
    assert (account["prompt_tokens"], account["completion_tokens"]) == (tokens["prompt"], tokens["completion"])
    assert account["cached_tokens"] == tokens["cached"] > 0
    records = account["calls"]
    assert len(records) == 120
    assert {r["id"] for r in records if r["status"] == "200"} == ids
    assert sum(Decimal(r["cost_usd"]) for r in records) == cost
    assert Counter(r["fault"] for r in records if r["fault"]) == account["by_fault"]


def test_prices_of_a_call_are_exact() -> None:
    price = SIMULATED_PRICES[JUDGE_MODEL]
    assert price.cost(1_000_000, 0, 0) == Decimal("0.5")
    assert price.cost(1_000_000, 1_000_000, 1_000_000) == Decimal("2.05")
    assert price.cost(1, 1, 0) == Decimal("0.00000005")
    assert set(SIMULATED_PRICES) == {JUDGE_MODEL, OBEDIENT_MODEL, SCRIPTED_MODEL, EMBEDDING_MODEL}


def test_price_table_gives_the_pipeline_the_servers_prices() -> None:
    prices, usage = load_prices(PRICE_TABLE), CallUsage(1_000_000, 400_000, 300_000)
    for model, price in SIMULATED_PRICES.items():
        assert prices.cost(model, model, usage, "http://localhost") == price.cost(1_000_000, 400_000, 300_000)
        assert prices.is_simulated(model, "http://localhost")
    assert prices.cost("simulated-judge-of-tomorrow", None, usage, "http://localhost") is None
    assert not prices.is_simulated("gpt-4o", "http://localhost")


def test_usage_log_records_client_request_ids_until_reset(client: OpenAI, judge: SimulatedJudge) -> None:
    client.chat.completions.create(
        model=JUDGE_MODEL, messages=messages_of(), extra_headers={"x-client-request-id": "attempt-1"}
    )
    assert [r["client_request_id"] for r in judge.calls()["calls"]] == ["attempt-1"]
    judge.reset_calls()
    account = judge.calls()
    assert (account["received"], account["cost_usd"], account["calls"]) == (0, "0", [])


def test_usage_log_counts_malformed_requests(client: OpenAI, judge: SimulatedJudge) -> None:
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", body={}, cast_to=object)
    assert judge.calls()["by_status"] == {"400": 1}


def test_usage_log_stores_bounded_calls_and_counts_all() -> None:
    log = UsageLog(max_calls=10)
    for number in range(1000):
        call = log.open(f"call-{number}", None)
        call.record.model = JUDGE_MODEL
        call.charge(100, 0, 10)
        call.close(200, answered=True)
        call.close(500, answered=False)  # a call ends once
    account = log.as_json(last=100)
    calls = account["calls"]
    assert isinstance(calls, list)
    assert [call["id"] for call in calls] == [f"call-{number}" for number in range(990, 1000)]
    assert (account["received"], account["by_status"], account["cost_usd"]) == (1000, {"200": 1000}, "0.07")


def test_usage_log_reset_still_counts_open_calls() -> None:
    log = UsageLog()
    call = log.open("call-1", None)
    log.reset()
    assert log.as_json()["in_flight"] == 1
    call.close(200, answered=True)
    assert (log.as_json()["in_flight"], log.as_json()["received"]) == (0, 1)
