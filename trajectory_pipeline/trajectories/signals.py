"""Signals: facts of a run computed by rule, no model involved.

Belongs here: the rules, whose version is ``schema.trajectories.SIGNALS_VERSION``. Does not belong here: any conclusion:
signals are evidence for a judge and for sampling, never an outcome.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from trajectory_pipeline.lossless_json import canonical_json, write_json
from trajectory_pipeline.trajectories.messages import tool_call_of

LONGEST_PATTERN = 4
"""Calls in the longest pattern that is looked for as a repeating cycle."""

Row = dict[str, Any]


def trajectory_signals(
    turns: Sequence[Row], fills: Iterable[float], feedback: Sequence[str | None], denied: int
) -> Row:
    """Return the signals of a run, with the fields of ``schema.trajectories.SIGNALS``.

    Args:
        turns: all turns, in order.
        fills: share of the context window that each own prompt took.
        feedback: of each own step.
        denied: calls that a person denied.
    """
    messages = [message for turn in turns for message in turn["messages"]]
    calls = [call for message in messages for call in message["tool_calls"]]
    last = next(
        (
            message
            for message in reversed(messages)
            if message["role"] in ("assistant", "approval") and not message["approvals"]
        ),
        None,
    )
    return compute_signals(
        [(call["name"], parsed_arguments(call)) for call in calls],
        [item["status"] == "error" for message in messages for item in message["tool_returns"] if not item["denied"]],
        [message["kind"] for message in messages],
        fills,
        feedback,
        denied,
        refusals=sum(any(part["type"] == "refusal" for part in message["content"]) for message in messages),
        empty_final_answer=None if last is None else not last["assistant_text"] and not last["tool_calls"],
    )


def compute_signals(
    calls: Sequence[tuple[str | None, str | None]],
    failed: Sequence[bool],
    kinds: Sequence[str],
    fills: Iterable[float],
    feedback: Sequence[str | None],
    denied: int,
    *,
    refusals: int,
    empty_final_answer: bool | None,
) -> Row:
    """Return the signals of a run, with the fields of ``schema.trajectories.SIGNALS``.

    Args:
        calls: each call's tool and arguments, in order.
        failed: of each return that no person denied, whether it is an error, in order.
        kinds: of each message.
        fills: share of the context window that each own prompt took.
        feedback: of each own step.
        denied: calls that a person denied.
        refusals: messages with a refusal.
        empty_final_answer: see the data dictionary.
    """
    signatures = _signatures(calls)
    return {
        "tool_calls": len(calls),
        "distinct_tools": len({name for name, _ in calls if name is not None}),
        "tool_errors": sum(failed),
        "last_tool_call_failed": failed[-1] if failed else None,
        "error_recovered": _recovered(failed),
        "repeated_calls": len(calls) - len(set(signatures)),
        "longest_cycle": longest_cycle(signatures),
        "context_fill": max(fills, default=None),
        "person_messages": sum(kind == "user" for kind in kinds),
        "positive_feedback": sum(value == "positive" for value in feedback),
        "negative_feedback": sum(value == "negative" for value in feedback),
        "denied_approvals": denied,
        "refusals": refusals,
        "empty_final_answer": empty_final_answer,
    }


def parsed_arguments(call: Mapping[str, Any]) -> str | None:
    """Return a call's arguments as text; as JSON text where they are no string."""
    arguments: str | None = call["arguments"]
    if arguments is None and call["json"] is not None:  # they may be there, but no string
        function = tool_call_of(call).get("function")
        return write_json(function.get("arguments")) if isinstance(function, dict) else None
    return arguments


def _signatures(calls: Sequence[tuple[str | None, str | None]]) -> list[tuple[str | None, str]]:
    """Return for each call what only canonically equal calls share."""
    texts: dict[str | None, dict[str | None, str]] = {}
    for name, arguments in calls:
        texts.setdefault(name, {})[arguments] = ""
    for of_tool in texts.values():
        # Equal texts are equal arguments; nobody needs to look into a text that stands alone.
        if len(of_tool) > 1:
            quick = {arguments: _sorted(arguments) for arguments in of_tool}
            thorough = None in quick.values()
            for arguments, text in quick.items():
                of_tool[arguments] = canonical_arguments(arguments) if thorough else text or ""
    return [(name, texts[name][arguments]) for name, arguments in calls]


def _sorted(arguments: str | None) -> str | None:
    """Return arguments with their keys sorted; None where equal ones may still differ: a decimal number, or no JSON."""
    try:
        value = orjson.loads(arguments or "null")
        return None if _holds_decimal(value) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (ValueError, TypeError, RecursionError):
        return None


def _holds_decimal(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_decimal, value.values()))
    if isinstance(value, list):
        return any(map(_holds_decimal, value))
    return isinstance(value, float)


def canonical_arguments(arguments: str | None) -> str:
    """Return a call's arguments as text that is the same for canonically equal ones.

    Equal are JSON values whose text differs in blanks, in the order of keys or in how a number is written (``1``,
    ``1.0``, ``1e0``); arguments that are no JSON are equal when their text is.
    """
    try:
        return canonical_json(json.loads(arguments or "null", parse_int=_by_value, parse_float=_by_value))
    except (ValueError, RecursionError, ArithmeticError):
        return str(arguments)


def _by_value(text: str) -> dict[str, str]:
    """Return a number in a form that is the same for equal ones, and that no other argument has."""
    sign, digits, exponent = Decimal(text).as_tuple()
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    shown = f"{'-' * sign}{stripped}e{int(exponent) + len(significant) - len(stripped)}" if stripped else "0"
    return {"\0": shown}


def _recovered(failed: Sequence[bool]) -> bool | None:
    return None if True not in failed else not failed[-1]


def longest_cycle(calls: Sequence[Any]) -> int:
    """Return the number of calls in the longest stretch in which one pattern stands at least three times in a row.

    A pattern is one to four calls; ``A B A B A B`` is a stretch of six and ``A B A B A B A`` one of seven, ``A A`` is
    none.
    """
    longest = 0
    for size in range(1, LONGEST_PATTERN + 1):
        equal = 0
        for place in range(size, len(calls)):
            equal = equal + 1 if calls[place] == calls[place - size] else 0
            # As many equal pairs as two patterns have calls: the pattern stands three times.
            if equal >= 2 * size:
                longest = max(longest, equal + size)
    return longest
