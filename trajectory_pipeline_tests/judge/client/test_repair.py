"""An unusable answer has its own error class and gets one repair turn that shows the mistake. It is never changed.

After a second unusable answer there is no verdict, and the answer is stored unchanged.
"""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.budget.prices import CallUsage
from trajectory_pipeline.judge.client.call_record import UNUSABLE_RESPONSES
from trajectory_pipeline.judge.client.errors import FATAL, PROVIDER_DOWN, TRANSIENT
from trajectory_pipeline.judge.client.parse import InvalidResponse, parse_response
from trajectory_pipeline.judge.client.response_format import strip_code_fence
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline.schema.enums import ErrorClass, VerdictStatus
from trajectory_pipeline_tests.judge.judge_client import PROMPT, ask, ask_provider, error_classes, purposes
from trajectory_pipeline_tests.judge.provider import ANSWER, Provider, completion

GOOD = json.dumps(ANSWER)


def changed(**more: Any) -> str:
    return json.dumps({**ANSWER, **more})


def rated(value: Any) -> str:
    return changed(learning={**ANSWER["learning"], "tool_use": value})


UNUSABLE = [
    ("no JSON", "invalid_json"),
    ("[" * 100_000, "invalid_json"),
    ("1" * 10_000, "invalid_json"),
    (f"{GOOD} and more", "invalid_json"),
    (f"```json\n{GOOD}\n```", "invalid_json"),
    (rated(math.nan), "not_a_number"),
    (rated(math.inf), "not_a_number"),
    (rated(-math.inf), "not_a_number"),
    (rated(6), "out_of_range"),
    (rated(0), "out_of_range"),
    (rated(10**400), "out_of_range"),
    (changed(tags=["only", "two"]), "wrong_count"),
    (changed(requirements=[]), "wrong_count"),
    (changed(requirements=ANSWER["requirements"] * 8), "wrong_count"),
    (changed(tags=["only", "two"], summary=""), "schema_violation"),
    (changed(tags=["only", "two"], learning={**ANSWER["learning"], "tool_use": 6}), "schema_violation"),
    (changed(outcome="success"), "schema_violation"),
    (changed(task_category="enormous"), "schema_violation"),
    (changed(summary=""), "schema_violation"),
    (changed(summary="half \ud83d"), "schema_violation"),
    (rated(1.5), "schema_violation"),
    (rated("3"), "schema_violation"),
    (rated(True), "schema_violation"),
    ("null", "schema_violation"),
    ("{}", "schema_violation"),
]


@pytest.mark.parametrize(("content", "error_class"), UNUSABLE)
def test_parse_of_an_invalid_answer_gives_its_error_class(content: str, error_class: str) -> None:
    found = parse_response(content, JudgeResponse)
    assert isinstance(found, InvalidResponse)
    assert found.error_class == error_class


@pytest.mark.parametrize("error_class", sorted({error_class for _, error_class in UNUSABLE}))
def test_second_unusable_answer_is_stored_and_gives_no_verdict(error_class: str) -> None:
    content = next(content for content, its_error_class in UNUSABLE if its_error_class == error_class)
    result = ask_provider(completion("no JSON"), completion(content), completion(GOOD), max_attempts=3)
    assert error_classes(result) == [("unusable", "invalid_json"), ("unusable", error_class)]
    assert purposes(result) == ["first", "repair"]
    assert (result.answer, result.raw_response, result.unusable) == (None, content, True)
    assert [attempt.usage for attempt in result.calls] == [CallUsage(10, None, 5)] * 2


def test_repair_turn_appends_the_answer_and_every_mistake() -> None:
    bad = changed(tags=["only", "two"], summary="", learning={**ANSWER["learning"], "tool_use": 6})
    with Provider(lambda number: (200, completion(bad if number == 1 else GOOD), {})) as provider:
        result = ask(provider.url)
    assert error_classes(result) == [("unusable", "schema_violation"), ("answered", None)]
    assert result.answer == JudgeResponse.model_validate(ANSWER)
    assert result.raw_response is None
    first, second = (request["messages"] for request in provider.requests)
    assert first == PROMPT
    assert second[: len(PROMPT)] == PROMPT
    answer, repair = second[len(PROMPT) :]
    assert answer == {"role": "assistant", "content": bad}
    assert repair["role"] == "user"
    for mistake in ("tags: List should have at least 3 items", "summary: ", "learning.tool_use: Input should be less"):
        assert mistake in repair["content"]


def test_cut_off_answer_is_repaired_showing_only_a_part() -> None:
    cut = {**completion("x" * 50_000)}
    cut["choices"] = [{**cut["choices"][0], "finish_reason": "length"}]
    with Provider(lambda number: (200, cut if number == 1 else completion(GOOD), {})) as provider:
        result = ask(provider.url)
    assert error_classes(result) == [("unusable", "cut_off"), ("answered", None)]
    _, _, answer, repair = provider.requests[1]["messages"]
    assert len(answer["content"]) < 2_100
    assert "cut off" in repair["content"]


def test_answer_cut_off_twice_is_stored_with_its_error_class() -> None:
    cut = completion(GOOD[:40])
    cut["choices"][0]["finish_reason"] = "length"
    result = ask_provider(cut)
    assert error_classes(result) == [("unusable", "cut_off")] * 2
    assert (result.answer, result.raw_response, result.unusable) == (None, GOOD[:40], True)


def test_repair_turn_with_a_transient_error_is_retried() -> None:
    result = ask_provider(completion("no JSON"), (503, {"error": {"message": "busy"}}, {}), completion(GOOD))
    assert purposes(result) == ["first", "repair", "retry"]
    assert result.answer is not None


def test_repair_turn_without_an_answer_fails_without_quarantine() -> None:
    result = ask_provider(completion("no JSON"), (503, {"error": {"message": "busy"}}, {}), max_attempts=1)
    assert error_classes(result) == [("unusable", "invalid_json"), ("error", "server_error")]
    assert (result.answer, result.raw_response, result.unusable) == (None, "no JSON", False)


def test_empty_answer_is_retried() -> None:
    for content in (None, "", [{"type": "thinking", "thinking": "x"}], 5):
        result = ask_provider(completion(content), completion(GOOD))
        assert error_classes(result) == [("unusable", "no_answer"), ("answered", None)]
        assert purposes(result) == ["first", "retry"]


def test_refusal_is_not_retried() -> None:
    refused = completion(None)
    refused["choices"][0]["message"]["refusal"] = "I can't help with that."
    result = ask_provider(refused)
    assert error_classes(result) == [("refused", "refused")]
    assert result.calls[0].error_message == "I can't help with that."


# ---- text around an answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framed",
    [
        GOOD,
        f"\n{GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```\n",
        f"<think>\nMaybe {{this}}? No.\n</think>\n\n{GOOD}",
        f"<think>Hm.</think>```json\n{GOOD}\n```",
        f"Hm, the opening tag is in the template.</think>{GOOD}",
    ],
)
def test_strip_code_fence_removes_thoughts_and_a_fence(
    framed: str,
) -> None:
    """Only in the response formats where no schema constrains the model."""
    for response_format in ("prompt", "tool_call"):
        assert parse_response(strip_code_fence(framed, response_format), JudgeResponse) == JudgeResponse.model_validate(
            ANSWER
        )


@pytest.mark.parametrize(
    "framed",
    [
        f"Here is my answer:\n```json\n{GOOD}\n```",
        f"```json\n{GOOD}\n```\nI hope this helps.",
        f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```",
        f"{GOOD}\n{GOOD}",
        f"<think>never ended {GOOD}",
    ],
)
def test_answer_with_text_around_its_fence_is_invalid(framed: str) -> None:
    found = parse_response(strip_code_fence(framed, "prompt"), JudgeResponse)
    assert isinstance(found, InvalidResponse)
    assert found.error_class == "invalid_json"


@given(st.text(max_size=200))
def test_strip_code_fence_does_not_change_strings_in_the_answer(prose: str) -> None:
    answer = {**ANSWER, "summary": f"<think>``` {prose} ```</think>"}
    text = json.dumps(answer)
    assert json.loads(strip_code_fence(text, "prompt")) == answer
    assert json.loads(strip_code_fence(f"```json\n{text}\n```", "prompt")) == answer


# ---- the closed list -----------------------------------------------------------------------------------------------


def test_error_class_lists_every_class_that_calls_use() -> None:
    assert set(ErrorClass) >= UNUSABLE_RESPONSES | TRANSIENT | PROVIDER_DOWN | FATAL
    assert {each for each in ErrorClass if each.verdict_status is VerdictStatus.QUARANTINED} == UNUSABLE_RESPONSES
