"""Signals: facts of a run computed by rule, evidence for a judge and for sampling, never an outcome.

Raise ``schema.trajectories.SIGNALS_VERSION`` with any change to a rule.
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from trajectory_pipeline.conversion.messages import tool_call_of
from trajectory_pipeline.conversion.tools import ToolCall, ToolUse
from trajectory_pipeline.lossless_json import canonical_json, write_json

_MAX_PATTERN_CALLS = 4
_MAY_BE_DECIMAL = re.compile(r"[0-9][.eE]|-0|[0-9]{19}")
"""In any JSON text with a number that orjson reads as a float."""

Row = dict[str, Any]


def compute_signals(
    tools: ToolUse,
    *,
    person_messages: int,
    context_fill: float | None,
    feedback: Sequence[str | None],
    denied: int,
    refusals: int,
    empty_final_answer: bool | None,
) -> Row:
    """Return the signals of a run, with the fields of ``schema.trajectories.SIGNALS``.

    ``context_fill`` is the largest share (0 to 1) of the context window that an own prompt took; ``denied`` counts
    calls, ``refusals`` messages.
    """
    calls, failed = tools.calls, tools.errors()
    signatures = _signatures(calls)
    repeated = len(calls) - len(set(signatures))
    return {
        "tool_calls": len(calls),
        "distinct_tools": len({call.name for call in calls if call.name is not None}),
        "tool_errors": failed.count(True),
        "last_tool_call_failed": failed[-1] if failed else None,
        "error_recovered": tools.error_recovered(),
        "repeated_calls": repeated,
        # Without a repeated call no pattern repeats.
        "longest_cycle": _longest_cycle(signatures) if repeated else 0,
        "context_fill": context_fill,
        "person_messages": person_messages,
        "positive_feedback": feedback.count("positive"),
        "negative_feedback": feedback.count("negative"),
        "denied_approvals": denied,
        "refusals": refusals,
        "empty_final_answer": empty_final_answer,
    }


def argument_text(call: Mapping[str, Any]) -> str | None:
    """Return a call's arguments as text; as JSON text where they are no string."""
    arguments: str | None = call["arguments"]
    if arguments is None and call["json"] is not None:  # there may be some that are no string
        function = tool_call_of(call).get("function")
        return write_json(function.get("arguments")) if isinstance(function, dict) else None
    return arguments


def _signatures(calls: Sequence[ToolCall]) -> list[tuple[str | None, str]]:
    """Return for each call what only canonically equal calls share."""
    canonical: dict[str | None, dict[str | None, str]] = {}
    for call in calls:
        canonical.setdefault(call.name, {})[call.arguments] = ""
    for of_tool in canonical.values():
        # Equal texts are equal arguments, so a tool that was called with one text needs no parsing.
        if len(of_tool) > 1:
            sorted_texts = {arguments: _sorted(arguments) for arguments in of_tool}
            inexact = None in sorted_texts.values()
            for arguments, text in sorted_texts.items():
                of_tool[arguments] = _canonical_arguments(arguments) if inexact else text or ""
    return [(call.name, canonical[call.name][call.arguments]) for call in calls]


def _sorted(arguments: str | None) -> str | None:
    """Return arguments with sorted keys; None where equal ones may still differ: a decimal number, or no JSON."""
    text = arguments or "null"
    try:
        value = orjson.loads(text)
        # Looking for a decimal number in the text is ten times faster than in the value.
        if _MAY_BE_DECIMAL.search(text) and _holds_decimal(value):
            return None
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (ValueError, TypeError, RecursionError):
        return None


def _holds_decimal(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_decimal, value.values()))
    if isinstance(value, list):
        return any(map(_holds_decimal, value))
    return isinstance(value, float)


def _canonical_arguments(arguments: str | None) -> str:
    """Return a call's arguments as text that is the same for canonically equal ones.

    JSON values are equal where their texts differ in whitespace, in the order of keys or in how a number is written
    (``1``, ``1.0``, ``1e0``); arguments that are no JSON are equal where their texts are.
    """
    try:
        return canonical_json(
            json.loads(arguments or "null", parse_int=_canonical_number, parse_float=_canonical_number)
        )
    except (ValueError, RecursionError, ArithmeticError):
        return str(arguments)


def _canonical_number(text: str) -> dict[str, str]:
    """Return a number in a form that equal ones share, and that no other argument has."""
    sign, digits, exponent = Decimal(text).as_tuple()
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    shown = f"{'-' * sign}{stripped}e{int(exponent) + len(significant) - len(stripped)}" if stripped else "0"
    return {"\0": shown}


def _longest_cycle(calls: Sequence[Any]) -> int:
    """Return the number of calls in the longest stretch that repeats one pattern at least three times in a row.

    A pattern is one to four calls: ``A B A B A B`` is a stretch of six, ``A B A B A B A`` of seven, ``A A`` is none.
    """
    longest = 0
    for size in range(1, _MAX_PATTERN_CALLS + 1):
        equal = 0
        for index in range(size, len(calls)):
            equal = equal + 1 if calls[index] == calls[index - size] else 0
            # As many equal pairs as two patterns have calls: the pattern occurs three times.
            if equal >= 2 * size:
                longest = max(longest, equal + size)
    return longest
