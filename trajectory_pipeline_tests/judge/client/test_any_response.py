"""Whatever a provider sends, reading it ends with a class or an answer, and never with an exception."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from trajectory_pipeline.judge.client.answer_text import find_answer
from trajectory_pipeline.judge.client.call_record import AskResult, CallRecord
from trajectory_pipeline.judge.client.event_stream import assemble
from trajectory_pipeline.judge.client.http_call import send_call
from trajectory_pipeline.judge.judge_trajectory import build_judge_request, judge
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.response_schema import JudgeResponse, PartFindings
from trajectory_pipeline.pipeline.judging_stats import JudgingStats
from trajectory_pipeline_tests.judge.documents import ORDER, document, message, text, turn
from trajectory_pipeline_tests.judge.provider import ANSWER

NAMES = st.sampled_from(
    [
        *("choices", "message", "delta", "content", "text", "type", "tool_calls", "function", "arguments", "index"),
        *(
            "finish_reason",
            "refusal",
            "error",
            "code",
            "detail",
            "usage",
            "total_tokens",
            "candidates",
            "parts",
            "model",
        ),
        *("function_call", "parsed", "output", "failed_generation", "retry_after", "retryDelay", "metadata", "raw"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        ["", "text", "thinking", "stop", "error", "400", "34s", "{", '{"error": "quota"}', "[1]", "\ud83d"]
    ),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
SENT = CallRecord("m", "http://judge.test/v1", 1, estimated_prompt_tokens=1000, max_response_tokens=500)


@given(VALUES, st.sampled_from([200, 301, 400, 401, 404, 429, 500, 502, 999]), st.booleans())
def test_any_body_ends_with_a_class_or_an_answer(value: Any, status: int, streamed: bool) -> None:
    body = json.dumps(value)
    content = f"data: {body}\n\ndata: {body}\n\ndata: [DONE]\n\n" if streamed else body

    async def work() -> None:
        transport = httpx2.MockTransport(lambda _: httpx2.Response(status, content=content.encode()))
        http = httpx2.AsyncClient(transport=transport)
        async with AsyncOpenAI(api_key="k", base_url=SENT.base_url, max_retries=0, http_client=http) as client:
            reply = await send_call(client, SENT, b"{}", 5.0)
        assert (reply.call.error_class is None) == (reply.call.result == "answered" and reply.text is not None)
        assert reply.call.error_class is None or reply.call.error_message

    asyncio.run(work())


@pytest.mark.parametrize(
    "chunks",
    [
        [{"content": "ab"}, {"content": [{"type": "text", "text": "cd"}]}],
        [{"content": [{"type": "thinking", "thinking": "?"}]}, {"content": "ab"}, {"content": "cd"}],
        [{"content": [{"type": "text", "text": "ab"}]}, {"content": [{"type": "text", "text": "cd"}]}],
        [{"function_call": {"name": "f", "arguments": "ab"}}, {"function_call": {"arguments": "cd"}}],
    ],
)
def test_assembled_chunks_give_the_whole_text(chunks: list[dict[str, Any]]) -> None:
    lines = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in chunks]
    answer = find_answer(assemble("".join([*lines, "data: [DONE]\n\n"])), "json_schema")
    assert answer is not None
    assert answer.text == "abcd"


def test_coverage_of_a_cut_prompt_is_what_can_have_been_read() -> None:
    request = build_judge_request([ORDER], RefinementPolicy("m"))

    async def ask(*_: Any) -> AskResult[Any]:
        return AskResult((replace(SENT, share_read=0.25),), JudgeResponse.model_validate(ANSWER), None)

    columns = asyncio.run(judge(request, "success", ask))
    assert columns["coverage"] == pytest.approx(request.rendered.coverage * 0.25)


def test_coverage_of_a_long_transcript_counts_parts_that_were_cut() -> None:
    """A server that reads half of each part, and all of the excerpts, has not read the whole transcript."""
    long = document(
        "run-1", *(turn(f"step-{n}", message(f"message-{n}", "user", text(f"{n} apples " * 400))) for n in range(20))
    )
    request = build_judge_request([long], RefinementPolicy("m", max_prompt_tokens=9_000))
    assert len(request.rendered.windows) > 1

    async def ask(_: Any, answer_type: Any) -> AskResult[Any]:
        if answer_type is PartFindings:
            findings = PartFindings(findings=[], account="nothing")
            return AskResult((replace(SENT, share_read=0.5),), findings, None)
        return AskResult((SENT,), JudgeResponse.model_validate(ANSWER), None)

    columns = asyncio.run(judge(request, "success", ask))
    assert columns["coverage"] == pytest.approx(request.rendered.coverage * 0.5)


def test_stats_count_calls_whose_prompt_was_cut() -> None:
    stats = JudgingStats()
    stats.add_calls([SENT, replace(SENT, share_read=0.5), replace(SENT, share_read=0.0)])
    stats.add(stats)
    assert (stats.calls, stats.cut_prompts) == (6, 4)
