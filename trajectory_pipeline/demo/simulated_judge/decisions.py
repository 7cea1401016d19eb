"""The decision endpoint: typed questions about an input, answered with probabilities by the rules of the judge."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.demo.simulated_judge.faults import ChosenFault
from trajectory_pipeline.demo.simulated_judge.protocol import ApiError, read_json, read_model, tokens_of
from trajectory_pipeline.demo.simulated_judge.rules import findings, status_of
from trajectory_pipeline.demo.simulated_judge.transcript import find_transcript, parse_transcript

MAX_QUESTIONS = 400
_SURE = 0.85
"""Probability of what the rules say; the other choices share the rest."""


@dataclass(frozen=True)
class DecisionRequest:
    """A request that has been checked; ``text`` is all that the model reads."""

    model: str
    text: str
    questions: list[dict[str, Any]]
    fault: ChosenFault | None


def read_decision_request(body: bytes) -> DecisionRequest:
    """Read and check a request; raises ApiError as the API would."""
    request = read_json(body)
    model, fault = read_model(request)
    questions = request.get("questions")
    if not isinstance(questions, list) or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise ApiError(400, f"Ask 1 to {MAX_QUESTIONS} questions.", param="questions", code="invalid_value")
    for number, question in enumerate(questions):
        if not _is_choice(question):
            raise ApiError(400, "Only questions of type choice are simulated.", param=f"questions[{number}]")
    given = request.get("input")
    messages = given if isinstance(given, list) else [{"content": given}]
    texts = [str(message.get("content")) for message in messages if isinstance(message, dict)]
    if not any(texts):
        raise ApiError(400, "Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    return DecisionRequest(model, "\n".join(texts), questions, fault)


def _is_choice(question: Any) -> bool:
    return (
        isinstance(question, dict)
        and question.get("type") == "choice"
        and isinstance(question.get("instructions"), str)
        and isinstance(question.get("choices"), list)
        and 2 <= len(question["choices"]) <= 255
    )


def decide(asked: DecisionRequest, chosen: ChosenFault | None) -> dict[str, Any]:
    """Return the body of the answer, damaged as a fault asks for."""
    answers = [_answer(asked, question) for question in asked.questions]
    name = chosen.name if chosen is not None else None
    first = answers[0]
    if name == "decision_refused":
        answers[0] = {"type": "refusal", "name": first["name"]}
    elif name == "decision_missing":
        answers.pop()
    elif name == "decision_nan":
        first["probabilities"][0]["probability"] = math.nan
    elif name == "decision_out_of_range":
        first["probabilities"][0]["probability"] = 1.7
    elif name == "decision_wrong_name":
        first["name"] = "simulated_name_that_nobody_asked_for"
    prompt, output = tokens_of(asked.text) + tokens_of(str(asked.questions)), len(answers)
    return {
        "object": "decision",
        "model": asked.model,
        "answers": answers,
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + output,
        },
    }


def _answer(asked: DecisionRequest, question: Mapping[str, Any]) -> dict[str, Any]:
    block = find_transcript(asked.text)
    found = findings(parse_transcript(block)) if block is not None else None
    values = [choice["value"] for choice in question["choices"]]
    status = status_of(question["instructions"], found)[0] if found is not None else values[-1]
    likeliest = status if status in values else values[-1]
    rest = (1 - _SURE) / (len(values) - 1)
    return {
        "type": "choice",
        "name": question.get("name"),
        "choice": likeliest,
        "confidence": _SURE,
        "probabilities": [{"value": value, "probability": _SURE if value == likeliest else rest} for value in values],
    }
