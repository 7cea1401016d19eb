"""Parses a response strictly: no number is clamped, no field filled in, no list shortened."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trajectory_pipeline.judge.client.call_record import JudgeReply
from trajectory_pipeline.schema.enums import ErrorClass

_CLASS_OF_TYPE = {
    "greater_than": ErrorClass.OUT_OF_RANGE,
    "greater_than_equal": ErrorClass.OUT_OF_RANGE,
    "less_than": ErrorClass.OUT_OF_RANGE,
    "less_than_equal": ErrorClass.OUT_OF_RANGE,
    "finite_number": ErrorClass.NOT_A_NUMBER,
    "too_short": ErrorClass.WRONG_COUNT,
    "too_long": ErrorClass.WRONG_COUNT,
}
_MAX_MISTAKES = 20


@dataclass(frozen=True)
class InvalidResponse:
    """All that is wrong with a response; ``schema_violation`` where there are mistakes of several classes."""

    error_class: ErrorClass
    message: str


class _NotANumberError(ValueError):
    pass


def parse_response(text: str, answer_type: type[JudgeReply]) -> JudgeReply | InvalidResponse:
    """Return the answer that is valid by its type, or what is wrong with the text."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except _NotANumberError as error:
        return InvalidResponse(ErrorClass.NOT_A_NUMBER, str(error))
    except (ValueError, RecursionError) as error:
        return InvalidResponse(ErrorClass.INVALID_JSON, f"the answer is not valid JSON: {error}")
    try:
        return answer_type.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        classes = {_CLASS_OF_TYPE.get(detail["type"], ErrorClass.SCHEMA_VIOLATION) for detail in details}
        return InvalidResponse(classes.pop() if len(classes) == 1 else ErrorClass.SCHEMA_VIOLATION, _describe(details))


def _describe(details: Sequence[ErrorDetails]) -> str:
    named = [f"{'.'.join(map(str, detail['loc'])) or 'the answer'}: {detail['msg']}" for detail in details]
    more = len(named) - _MAX_MISTAKES
    return "; ".join(named[:_MAX_MISTAKES]) + (f"; and {more} more" if more > 0 else "")


def _refuse_constant(name: str) -> Any:
    raise _NotANumberError(f"{name} stands in the answer, which is no JSON number")
