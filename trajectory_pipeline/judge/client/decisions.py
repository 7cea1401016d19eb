"""Asks a decision endpoint for the status of requirements, and checks its probabilities, one by one."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx2
from openai import AsyncOpenAI

from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.http_call import HttpReply, exchange
from trajectory_pipeline.judge.client.parse import InvalidResponse
from trajectory_pipeline.judge.client.usage import read_billed_usd, read_usage
from trajectory_pipeline.schema.enums import AttemptResult, ErrorClass, RequirementStatus

MAX_QUESTIONS = 400
"""Of one request, as OpenAI takes them."""
_ROUNDING = 0.02
"""How far the probabilities of one question may miss 1 in all."""
Probabilities = dict[str, float]


@dataclass(frozen=True)
class DecisionResult:
    """All calls of one decision, and the probabilities of each statement's statuses, None where it was refused.

    Without ``probabilities``, there is no usable answer.
    """

    calls: tuple[CallRecord, ...]
    probabilities: list[Probabilities | None] | None
    raw_response: str | None = None


def status_questions(statements: Sequence[str]) -> list[dict[str, Any]]:
    """Return one question for each statement, with the statuses as choices."""
    choices = [{"value": str(status)} for status in RequirementStatus]
    return [
        {
            "type": "choice",
            "name": f"requirement_{number}",
            "instructions": f"The status of this requirement, by the rubric: {statement}",
            "choices": choices,
        }
        for number, statement in enumerate(statements, 1)
    ]


async def send_decision(
    client: AsyncOpenAI,
    sent: CallRecord,
    messages: Sequence[dict[str, str]],
    questions: Sequence[dict[str, Any]],
    timeout_seconds: float,
) -> HttpReply:
    """Make a call, within a wall-clock limit, by the client library's own method; its answer is read here."""

    async def post() -> httpx2.Response:
        arguments: Any = {"input": list(messages), "model": sent.model, "questions": list(questions)}
        raw = await client.decisions.with_raw_response.create(**arguments)
        return raw.http_response

    return await exchange(sent, post, _read_response, timeout_seconds)


def _read_response(call: CallRecord, response: httpx2.Response) -> HttpReply:
    text = response.content.decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("answers"), list):
        message = f"what came is no decision: {text[:200]!r}"
        failed = call.failed(AttemptResult.UNUSABLE, ErrorClass.NOT_A_COMPLETION, message)
        return HttpReply(failed, None, response.headers)
    usage = body.get("usage")
    model = body.get("model")
    call = replace(
        call,
        result=AttemptResult.ANSWERED,
        response_model=model if isinstance(model, str) else None,
        usage=read_usage(usage, call.estimated_prompt_tokens, call.max_response_tokens, has_text=False),
        billed_usd=read_billed_usd(usage),
    )
    return HttpReply(call, text, response.headers)


def read_probabilities(text: str, questions: Sequence[dict[str, Any]]) -> list[Probabilities | None] | InvalidResponse:
    """Return the probabilities of each question's choices, in order, None where it was refused; or what is wrong."""
    answers = json.loads(text)["answers"]
    if len(answers) != len(questions):
        return InvalidResponse(ErrorClass.WRONG_COUNT, f"{len(questions)} questions, and {len(answers)} answers")
    found: list[Probabilities | None] = []
    for question, answer in zip(questions, answers, strict=True):
        one = _of_question(question, answer)
        if isinstance(one, InvalidResponse):
            return InvalidResponse(one.error_class, f"{question['name']}: {one.message}")
        found.append(one)
    return found


def _of_question(question: dict[str, Any], answer: Any) -> Probabilities | InvalidResponse | None:
    if not isinstance(answer, dict) or answer.get("name") not in (question["name"], None):
        name = answer.get("name") if isinstance(answer, dict) else None
        return InvalidResponse(ErrorClass.SCHEMA_VIOLATION, f"its answer is named {name!r}")
    if answer.get("type") == "refusal":
        return None
    listed = answer.get("probabilities")
    if (
        answer.get("type") != "choice"
        or not isinstance(listed, list)
        or not all(isinstance(one, dict) for one in listed)
    ):
        return InvalidResponse(ErrorClass.SCHEMA_VIOLATION, "its answer has no list of probabilities")
    values = [choice["value"] for choice in question["choices"]]
    if sorted(str(one.get("value")) for one in listed) != sorted(values):
        return InvalidResponse(ErrorClass.SCHEMA_VIOLATION, "its choices are not those that were asked")
    numbers = [one.get("probability") for one in listed]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        return InvalidResponse(ErrorClass.SCHEMA_VIOLATION, "a probability is no number")
    if not all(map(math.isfinite, numbers)):
        return InvalidResponse(ErrorClass.NOT_A_NUMBER, "a probability is not finite")
    if not all(0 <= number <= 1 for number in numbers) or abs(sum(numbers) - 1) > _ROUNDING:
        return InvalidResponse(
            ErrorClass.OUT_OF_RANGE, f"its probabilities are {numbers}, which are none of one choice"
        )
    return {one["value"]: float(one["probability"]) for one in listed}
