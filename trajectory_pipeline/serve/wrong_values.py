"""Sentences for values that do not fit: where, what is wrong, what to give. Never the value, which may be secret."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_MOST = 20
"""Sentences of one answer."""
_Sentence = Callable[[Mapping[str, Any]], str]

_SENTENCES: dict[str, _Sentence] = {
    "missing": lambda _: "it is missing: give it",
    "extra_forbidden": lambda _: not_known(),
    "greater_than_equal": lambda limits: f"it must be at least {limits['ge']}",
    "less_than_equal": lambda limits: f"it must be at most {limits['le']}",
    "int_type": lambda _: "it must be a whole number",
    "int_parsing": lambda _: "it must be a whole number",
    "int_parsing_size": lambda _: "the number is too large: give a smaller one",
    "int_from_float": lambda _: "it must be a whole number",
    "string_type": lambda _: "it must be text",
    "string_too_short": lambda limits: (
        "it is empty: give a text" if limits["min_length"] == 1 else f"give at least {limits['min_length']} characters"
    ),
    "string_too_long": lambda limits: f"it has more than {limits['max_length']} characters: shorten it",
    "string_pattern_mismatch": lambda _: "it holds control characters: remove them",
    "list_type": lambda _: "it must be a list",
    "too_short": lambda limits: f"it has fewer than {limits['min_length']} values: give more",
    "too_long": lambda limits: f"it has more than {limits['max_length']} values: give fewer",
    "enum": lambda limits: f"it must be {limits['expected']}",
    "literal_error": lambda limits: f"it must be {limits['expected']}",
    "datetime_from_date_parsing": lambda _: WRONG_TIME,
    "datetime_parsing": lambda _: WRONG_TIME,
    "datetime_type": lambda _: WRONG_TIME,
    "json_invalid": lambda _: "the body is not JSON",
    "model_type": lambda _: "it must be a JSON object",
    "model_attributes_type": lambda _: "it must be a JSON object, sent as application/json",
    "dict_type": lambda _: "it must be a JSON object",
}
WRONG_TIME = "write a time as 2026-11-21, 2026-11-21T09:00:00 or 2026-11-21T09:00:00+01:00; without an offset it is UTC"


def not_known(known: str = "") -> str:
    """Return what is wrong with a name that is none of the known ones, if there are any."""
    return f"it is not known here: leave it out{f', or take one of {known}' if known else ''}"


def sentences(errors: Iterable[Mapping[str, Any]], known: Iterable[str] = ()) -> str:
    """Return the errors of pydantic as sentences, each after the place that it is about.

    ``known`` are the names that may be given, for a name that is not known.
    """
    found = list(errors)
    told = [_sentence(error, ", ".join(known)) for error in found[:_MOST]]
    more = [f"{len(found) - _MOST} more values are wrong"] if len(found) > _MOST else []
    return "; ".join([*told, *more]) + "."


def _sentence(error: Mapping[str, Any], known: str) -> str:
    words = _SENTENCES.get(error["type"])
    text = words(error.get("ctx", {})) if words else str(error["msg"]).rstrip(".")
    if error["type"] == "extra_forbidden":
        text = not_known(known)
    return f"{'.'.join(map(str, error['loc']))}: {text}"
