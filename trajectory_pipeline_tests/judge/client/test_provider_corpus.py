"""Every row of the provider corpus over real HTTP: what comes of it, how long to wait, and what is booked.

A new provider, or another shape of a known one, is a new line in ``provider_corpus.jsonl``.
"""

import asyncio
from decimal import Decimal

import pytest
from openai import AsyncOpenAI

from trajectory_pipeline.budget.prices import load_prices
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE, SimulatedJudge
from trajectory_pipeline.demo.simulated_judge.provider_cases import ProviderCase, provider_cases
from trajectory_pipeline.judge.client.bounded_http import BoundedHttpClient
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.http_call import HttpReply, send_call
from trajectory_pipeline.judge.client.response_format import RequestOptions
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline.schema.enums import ResponseFormat
from trajectory_pipeline.storage.postgres.spend_ledger import billable_cost
from trajectory_pipeline_tests.judge.judge_client import KEY, PROMPT, ask, purposes

FAMILIES = (
    *("OpenAI", "Azure", "OpenRouter", "Gemini", "Anthropic", "Mistral", "xAI", "Groq", "DeepSeek", "vLLM"),
    *("llama.cpp", "Ollama", "TGI", "LM Studio", "LiteLLM"),
)
RESERVED_PROMPT, RESERVED_OUTPUT = 100_000, 8_000

every_case = pytest.mark.parametrize("case", provider_cases().values(), ids=lambda case: case.name)


def plan(judge: SimulatedJudge, case: ProviderCase, times: int | None = None) -> None:
    judge.plan_faults([{"fault": "provider", "params": {"row": case.name}, "times": times}])


def send(judge: SimulatedJudge) -> HttpReply:
    """One call in the first format, and what is read from its response."""
    sent = CallRecord(
        JUDGE_MODEL,
        judge.base_url,
        prompt_characters=1,
        estimated_prompt_tokens=RESERVED_PROMPT,
        max_response_tokens=RESERVED_OUTPUT,
    )
    body = RequestOptions(ResponseFormat.JSON_SCHEMA, 0.0, RESERVED_OUTPUT).body(JUDGE_MODEL, PROMPT, JudgeResponse)

    async def work() -> HttpReply:
        http = BoundedHttpClient(10**7, follow_redirects=False)
        async with AsyncOpenAI(api_key=KEY, base_url=judge.base_url, max_retries=0, http_client=http) as client:
            return await send_call(client, sent, body, 10.0)

    return asyncio.run(work())


def test_corpus_has_every_family() -> None:
    assert {case.family for case in provider_cases().values()} == set(FAMILIES)


@every_case
def test_response_has_its_class_words_and_wait(judge: SimulatedJudge, case: ProviderCase) -> None:
    plan(judge, case)
    reply = send(judge)
    assert reply.call.error_class == case.expect.get("error_class"), reply.call.error_message
    assert reply.wait == pytest.approx(case.expect.get("wait"), abs=0.01)
    assert case.expect.get("says", "") in (reply.call.error_message or "")
    assert "secret" not in (reply.call.error_message or "")
    assert reply.call.simulated
    if reply.call.error_class is None:
        assert JudgeResponse.model_validate_json(reply.text or "")


@every_case
def test_response_is_booked_at_no_less_than_its_bill(judge: SimulatedJudge, case: ProviderCase) -> None:
    plan(judge, case)
    call = send(judge).call
    bill = Decimal(judge.calls()["cost_usd"])
    prices = load_prices(PRICE_TABLE)
    reserved = prices.max_cost(JUDGE_MODEL, judge.base_url, RESERVED_PROMPT, RESERVED_OUTPUT)
    cost = prices.cost(call.model, call.response_model, call.usage, call.base_url)
    booked = billable_cost(
        {
            "result": call.result,
            "reserved_usd": reserved,
            "reserved_tokens": RESERVED_PROMPT + RESERVED_OUTPUT,
            "cost_usd": cost,
            "input_tokens": call.usage and call.usage.input_tokens,
            "output_tokens": call.usage and call.usage.output_tokens,
        }
    ).usd
    assert {"tokens": 0 < booked < reserved, "reservation": booked == reserved, "nothing": booked == 0}[
        case.expect["booked"]
    ]
    assert booked >= bill
    assert call.billed_usd == (Decimal(case.expect["cost"]) if "cost" in case.expect else None)


@pytest.mark.parametrize(
    "case", [case for case in provider_cases().values() if case.status == 200 and "error_class" not in case.expect],
    ids=lambda case: case.name,
)  # fmt: skip
def test_answer_of_any_shape_gives_a_verdict_at_once(judge: SimulatedJudge, case: ProviderCase) -> None:
    plan(judge, case)
    for response_format in ResponseFormat:
        result = ask(judge.base_url, model=JUDGE_MODEL, response_format=response_format)
        assert result.answer is not None
        assert len(result.calls) == 1


@pytest.mark.parametrize("follows", ["fallback", "repair"])
def test_refusal_of_a_schema_or_an_answer_is_followed_up(judge: SimulatedJudge, follows: str) -> None:
    cases = [case for case in provider_cases().values() if case.expect.get(follows)]
    for case in cases:
        judge.clear_faults()
        plan(judge, case, times=1)
        result = ask(judge.base_url, model=JUDGE_MODEL)
        assert result.answer is not None, case.name
        assert purposes(result) == ["first", follows], case.name
    assert len(cases) > 3


def test_fallback_row_never_refuses_a_simpler_format(judge: SimulatedJudge) -> None:
    for case in provider_cases().values():
        if case.expect.get("fallback"):
            judge.clear_faults()
            plan(judge, case)
            assert ask(judge.base_url, model=JUDGE_MODEL).calls[-1].response_format == ResponseFormat.TOOL_CALL
