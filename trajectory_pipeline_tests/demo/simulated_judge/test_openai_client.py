"""The real ``openai`` client over real HTTP, unchanged.

What a fault does is specified in ``test_faults``; what an answer says in ``test_rules``.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, get_type_hints

import openai
import pytest
from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAI
from openai.types.chat import completion_create_params
from pydantic import BaseModel

from trajectory_pipeline.demo.simulated_judge import (
    JUDGE_MODEL,
    SIMULATED_PRICES,
    SimulatedJudge,
)
from trajectory_pipeline.demo.simulated_judge.protocol import KNOWN_CHAT_PARAMETERS
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.demo.simulated_judge.prompts import (
    FAILED_TOOL_RUN,
    ORDER_RUN,
    messages_of,
    prompt_of,
)


def parse(client: OpenAI, transcript: str = ORDER_RUN, **more: Any) -> Any:
    return client.chat.completions.parse(
        model=JUDGE_MODEL, messages=messages_of(transcript), response_format=JudgeResponse, **more
    )


def test_parse_returns_a_valid_answer_that_cites_the_transcript(client: OpenAI) -> None:
    answer = parse(client).choices[0].message.parsed
    assert isinstance(answer, JudgeResponse)
    assert answer.summary.startswith("[simulated judge] ")
    assert [r.statement for r in answer.requirements] == ["Please find order 4711.", "When will it arrive?"]
    for requirement in answer.requirements:
        assert requirement.status == "met"
        assert requirement.reasoning.startswith("simulated rule: ")
        assert requirement.evidence[0].message_id == "message-c"
        assert f"  {requirement.evidence[0].quote}\n" in ORDER_RUN


def test_async_client_on_either_transport_gets_the_same_answer(judge: SimulatedJudge) -> None:
    async def ask(**transport: Any) -> JudgeResponse | None:
        async with AsyncOpenAI(base_url=judge.base_url, api_key="x", max_retries=0, **transport) as client:
            completion = await client.chat.completions.parse(
                model=JUDGE_MODEL, messages=messages_of(), response_format=JudgeResponse
            )
            return completion.choices[0].message.parsed

    async def both() -> tuple[JudgeResponse | None, JudgeResponse | None]:
        return await ask(), await ask(http_client=DefaultAioHttpClient())

    plain, aiohttp = asyncio.run(both())
    assert plain is not None
    assert plain == aiohttp


def test_answer_depends_only_on_the_transcript(client: OpenAI) -> None:
    first, second, other = parse(client), parse(client), parse(client, FAILED_TOOL_RUN)
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.id != second.id
    assert first.choices[0].message.content != other.choices[0].message.content


def test_response_has_the_fields_and_headers_of_openai(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=JUDGE_MODEL, messages=messages_of())
    completion = raw.parse()
    assert completion.id.startswith("chatcmpl-")
    assert completion.created > 1_700_000_000
    assert completion.model == JUDGE_MODEL
    assert completion.system_fingerprint == "fp_simulated"
    assert completion._request_id == raw.headers["x-request-id"]
    for part in ("limit", "remaining", "reset"):
        for unit in ("requests", "tokens"):
            assert f"x-ratelimit-{part}-{unit}" in raw.headers


def test_tokens_are_a_quarter_of_the_bytes_rounded_up(client: OpenAI) -> None:
    completion = client.chat.completions.create(model=JUDGE_MODEL, messages=[{"role": "user", "content": "é" * 101}])
    usage, content = completion.usage, completion.choices[0].message.content
    assert usage is not None
    assert content is not None
    assert usage.prompt_tokens == math.ceil(len(("user\n" + "é" * 101 + "\n").encode()) / 4)
    assert usage.completion_tokens == math.ceil(len(content.encode()) / 4)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 0


def test_repeated_prefix_is_cached_in_blocks_of_128_tokens(client: OpenAI) -> None:
    def cached(text: str) -> int:
        usage = client.chat.completions.create(model=JUDGE_MODEL, messages=[{"role": "user", "content": text}]).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    long = "".join(f"unique line {n} of this test\n" for n in range(400))  # about 2,600 tokens
    assert cached(long) == 0
    again = cached(long)
    assert again >= 2048
    assert again % 128 == 0
    # The prompt begins "user\n": 4,800 bytes of the text and these five make 1,201 tokens, so nine blocks.
    assert cached(long[:4800] + "and then something else " * 200) == 1152
    assert cached(long[:3000] + "and then something quite different " * 200) == 0
    assert cached("x" + long) == 0


def test_json_object_returns_fields_and_text_returns_summary(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=JUDGE_MODEL, messages=messages_of(), response_format={"type": "json_object"}
    )
    JudgeResponse.model_validate_json(completion.choices[0].message.content or "")
    plain = client.chat.completions.create(model=JUDGE_MODEL, messages=messages_of())
    assert (plain.choices[0].message.content or "").startswith("[simulated judge] What was wanted")


def test_forced_tool_gets_the_answer_as_arguments(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(JudgeResponse, name="give_verdict")
    completion = client.chat.completions.parse(
        model=JUDGE_MODEL,
        messages=messages_of(),
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "give_verdict"}},
    )
    calls = completion.choices[0].message.tool_calls
    assert calls is not None
    assert completion.choices[0].message.content is None
    assert calls[0].function.name == "give_verdict"
    assert isinstance(calls[0].function.parsed_arguments, JudgeResponse)


@pytest.mark.parametrize("include_usage", [True, False])
def test_stream_adds_up_to_the_same_answer(client: OpenAI, include_usage: bool) -> None:
    whole = parse(client)
    stream = client.chat.completions.create(
        model=JUDGE_MODEL,
        messages=messages_of(),
        stream=True,
        stream_options={"include_usage": include_usage},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == client.chat.completions.create(model=JUDGE_MODEL, messages=messages_of()).choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert (chunks[-1].usage is not None) is include_usage
    with client.chat.completions.stream(
        model=JUDGE_MODEL, messages=messages_of(), response_format=JudgeResponse
    ) as events:
        assert events.get_final_completion().choices[0].message.parsed == whole.choices[0].message.parsed


def test_streamed_tool_call_adds_up_to_the_same_answer(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(JudgeResponse, name="give_verdict")
    with client.chat.completions.stream(
        model=JUDGE_MODEL, messages=messages_of(), tools=[tool], tool_choice="required"
    ) as events:
        calls = events.get_final_completion().choices[0].message.tool_calls
    assert calls is not None
    assert isinstance(calls[0].function.parsed_arguments, JudgeResponse)


def test_max_tokens_truncates_with_finish_reason_length(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=JUDGE_MODEL, messages=messages_of(), max_completion_tokens=10, response_format={"type": "json_object"}
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 10
    with pytest.raises(openai.LengthFinishReasonError):
        parse(client, max_completion_tokens=10)


class Loose(BaseModel):
    title: str
    rating: float
    nested: list[dict[str, int]]


def test_answer_without_transcript_is_valid_and_decides_nothing(client: OpenAI) -> None:
    completion = client.chat.completions.parse(
        model=JUDGE_MODEL, messages=[{"role": "user", "content": "Hello"}], response_format=JudgeResponse
    )
    answer = completion.choices[0].message.parsed
    assert answer is not None
    assert {requirement.status for requirement in answer.requirements} == {"insufficient_evidence"}


BAD_REQUESTS: list[tuple[dict[str, Any], int, str | None, str | None]] = [
    ({"messages": ...}, 400, "missing_required_parameter", "messages"),
    ({"messages": []}, 400, "empty_array", "messages"),
    ({"messages": "Hello"}, 400, "invalid_type", "messages"),
    ({"messages": [{"role": "judge", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "invalid_type", "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{}]}]}, 400, "invalid_value", "messages[0].content[0].type"),
    ({"model": ...}, 400, "missing_required_parameter", "model"),
    ({"model": "gpt-9"}, 404, "model_not_found", None),
    ({"model": "simulated-embedding"}, 404, "model_not_found", None),
    ({"model": "simulated-judge:no_such_fault"}, 404, "model_not_found", None),
    ({"response_format": {"type": "yaml"}}, 400, "invalid_value", "response_format.type"),
    (
        {"response_format": {"type": "json_schema"}},
        400,
        "missing_required_parameter",
        "response_format.json_schema.name",
    ),
    ({"response_format": {"type": "json_object"}}, 400, None, "messages"),
    ({"tool_choice": "required"}, 400, None, "tool_choice"),
    ({"n": 0}, 400, "integer_below_min_value", "n"),
    ({"max_tokens": "many"}, 400, "invalid_type", "max_tokens"),
    ({"wish": "a good verdict"}, 400, "unknown_parameter", "wish"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "code", "param"), BAD_REQUESTS, ids=[str(b[0]) for b in BAD_REQUESTS])
def test_malformed_request_gets_openais_error(
    client: OpenAI, change: dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    request: dict[str, Any] = {"model": JUDGE_MODEL, "messages": [{"role": "user", "content": "Hello"}], **change}
    request = {name: value for name, value in request.items() if value is not ...}
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/chat/completions", body=request, cast_to=object)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)
    assert caught.value.type == "invalid_request_error"


def test_strict_schema_that_openai_refuses_is_refused(client: OpenAI) -> None:
    response_format: Any = {
        "type": "json_schema",
        "json_schema": {"name": "loose", "strict": True, "schema": Loose.model_json_schema()},
    }
    with pytest.raises(openai.BadRequestError, match="'additionalProperties' is required"):
        client.chat.completions.create(model=JUDGE_MODEL, messages=messages_of(), response_format=response_format)


def test_invalid_json_and_unknown_paths_get_openais_errors(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="could not parse the JSON body"):
        client.post("/chat/completions", content=b"{", cast_to=object)
    with pytest.raises(openai.NotFoundError, match="Invalid URL"):
        client.post("/responses", body={}, cast_to=object)


def test_prompt_beyond_the_context_window_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=JUDGE_MODEL, messages=[{"role": "user", "content": "word " * 400_000}])
    assert caught.value.code == "context_length_exceeded"


def test_every_parameter_of_the_client_is_accepted() -> None:
    sent = get_type_hints(completion_create_params.CompletionCreateParamsBase).keys()
    assert set(sent) | {"stream"} == set(KNOWN_CHAT_PARAMETERS)


def test_models_endpoint_lists_simulated_prices(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == set(SIMULATED_PRICES)
    pricing = client.models.retrieve(JUDGE_MODEL).to_dict()["pricing"]
    assert pricing == {
        "input": 0.50,
        "cached_input": 0.05,
        "output": 2.00,
        "currency": "USD",
        "per_tokens": 1_000_000,
        "simulated": True,
    }
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_last_transcript_of_a_conversation_is_judged(client: OpenAI) -> None:
    conversation: list[Any] = [
        *messages_of(FAILED_TOOL_RUN),
        {"role": "assistant", "content": "{broken"},
        {"role": "user", "content": "That was no JSON. " + prompt_of(ORDER_RUN)},
    ]
    completion = client.chat.completions.create(
        model=JUDGE_MODEL, messages=conversation, response_format={"type": "json_object"}
    )
    assert "4711" in json.loads(completion.choices[0].message.content or "")["summary"]
