"""From the text of an answer to the answer itself, or to all that is wrong with it.

Nothing is mended: no number is brought into its range, no field filled in, no list shortened.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trajectory_pipeline.judge.client.call_record import JudgeReply

_CLASS_OF_TYPE = {
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "finite_number": "not_a_number",
    "too_short": "wrong_count",
    "too_long": "wrong_count",
}
_MAX_MISTAKES = 20


@dataclass(frozen=True)
class InvalidResponse:
    """Why an answer cannot be used.

    Attributes:
        error_class: of ``schema.enums.ErrorClass``; ``schema_violation`` where mistakes of several kinds come together.
        words: all that is wrong, for the reader and for the repair turn.
    """

    error_class: str
    message: str


class _NotANumberError(ValueError):
    """NaN or Infinity, which JSON does not have."""


def parse_response(text: str, answer_type: type[JudgeReply]) -> JudgeReply | InvalidResponse:
    """Return the answer that a text is, valid by its type, or what is wrong with it."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except _NotANumberError as error:
        return InvalidResponse("not_a_number", str(error))
    except (ValueError, RecursionError) as error:
        return InvalidResponse("invalid_json", f"the answer is not valid JSON: {error}")
    try:
        return answer_type.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        classes = {_CLASS_OF_TYPE.get(detail["type"], "schema_violation") for detail in details}
        return InvalidResponse(classes.pop() if len(classes) == 1 else "schema_violation", _describe(details))


def _describe(details: Sequence[ErrorDetails]) -> str:
    named = [f"{'.'.join(map(str, detail['loc'])) or 'the answer'}: {detail['msg']}" for detail in details]
    more = len(named) - _MAX_MISTAKES
    return "; ".join(named[:_MAX_MISTAKES]) + (f"; and {more} more" if more > 0 else "")


def _refuse_constant(name: str) -> Any:
    raise _NotANumberError(f"{name} stands in the answer, which is no JSON number")
