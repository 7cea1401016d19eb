"""The contract of reading a decision endpoint's answer: probabilities of what was asked, or what is wrong."""

import asyncio
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.decisions import read_probabilities, status_questions
from trajectory_pipeline.judge.client.parse import InvalidResponse
from trajectory_pipeline.judge.client.session import open_session
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.schema.enums import RequirementStatus
from trajectory_pipeline_tests.judge.provider import Provider

QUESTIONS = status_questions(["It was sent."])


def answer(number: int = 1, **changes: Any) -> dict[str, Any]:
    listed = [{"value": str(status), "probability": 0.25} for status in RequirementStatus]
    return {"type": "choice", "name": f"requirement_{number}", "choice": "met", "probabilities": listed, **changes}


def all_of(probability: Any) -> list[dict[str, Any]]:
    return [{"value": str(status), "probability": probability} for status in RequirementStatus]


def read(*answers: Any) -> Any:
    return read_probabilities(json.dumps({"answers": answers}), QUESTIONS)


def test_answer_gives_the_probability_of_each_status() -> None:
    assert read(answer()) == [dict.fromkeys(map(str, RequirementStatus), 0.25)]
    assert read({"type": "refusal", "name": None}) == [None]


@pytest.mark.parametrize(
    ("answers", "error_class"),
    [
        ((), "wrong_count"),
        ((answer(), answer(2)), "wrong_count"),
        ((answer(2),), "schema_violation"),
        (("met",), "schema_violation"),
        ((answer(type="predicate", probability=0.5),), "schema_violation"),
        ((answer(probabilities=[{"value": "met", "probability": 1.0}]),), "schema_violation"),
        (
            (answer(probabilities=all_of("1")),),
            "schema_violation",
        ),
        (
            (answer(probabilities=all_of(True)),),
            "schema_violation",
        ),
        ((answer(probabilities=all_of(0.9)),), "out_of_range"),
        ((answer(probabilities=all_of(-1)),), "out_of_range"),
        ((answer(probabilities=all_of(1e999)),), "not_a_number"),
    ],
)
def test_wrong_answer_is_named(answers: tuple[Any, ...], error_class: str) -> None:
    found = read(*answers)
    assert isinstance(found, InvalidResponse)
    assert found.error_class == error_class


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "name", "probabilities", "value"]), inner),
    max_leaves=8,
)


@given(st.lists(_json, max_size=2))
def test_any_answer_is_read_or_refused(answers: list[Any]) -> None:
    found = read(*answers)
    assert isinstance(found, InvalidResponse) or all(one is None or abs(sum(one.values()) - 1) < 0.03 for one in found)


def test_more_questions_than_a_request_takes_are_split() -> None:
    asked: list[int] = []

    async def ask(url: str) -> Any:
        async def record(_: CallRecord) -> None:
            pass

        config = JudgeConfig("gpt-6-luna", url, "sk-test-0123456789", local_only=True)
        async with open_session(config) as session:
            statements = [f"Statement {number}." for number in range(401)]
            return await session.decide([{"role": "user", "content": "hello"}], statements, record, record)

    def reply(number: int) -> tuple[int, Any, dict[str, str]]:
        questions = provider.requests[number - 1]["questions"]
        asked.append(len(questions))
        answers = [{**answer(), "name": question["name"]} for question in questions]
        return 200, {"model": "gpt-6-luna", "answers": answers, "usage": {"input_tokens": 9, "output_tokens": 4}}, {}

    with Provider(reply) as provider:
        result = asyncio.run(ask(provider.url))
    assert (asked, len(result.probabilities), len(result.calls)) == ([400, 1], 401, 2)
    assert result.calls[0].usage is not None
    assert (result.calls[0].usage.input_tokens, result.calls[0].response_model) == (9, "gpt-6-luna")
