"""Signals: facts of a run computed by rule, no model involved.

Belongs here: the rules, whose version is ``schema.trajectory.SIGNALS_VERSION``. Does not belong here: any conclusion:
signals are evidence for a judge and for sampling, never an outcome.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from trajectory_pipeline.trajectories.json_text import canonical, write
from trajectory_pipeline.trajectories.messages import tool_call_of

LONGEST_PATTERN = 4
"""Calls in the longest pattern that is looked for as a repeating cycle."""

Row = dict[str, Any]


def signals_of(turns: Sequence[Row], fills: Iterable[float], feedback: Sequence[str | None], denied: int) -> Row:
    """Return the signals of a run, with the fields of ``schema.trajectory.SIGNALS``.

    Args:
        turns: all turns, in order.
        fills: share of the context window that each own prompt took.
        feedback: of each own step.
        denied: calls that a person denied.
    """
    messages = [message for turn in turns for message in turn["messages"]]
    calls = [_signature(call) for message in messages for call in message["tool_calls"]]
    returns = [item for message in messages for item in message["tool_returns"] if not item["denied"]]
    failed = [item["status"] == "error" for item in returns]
    return {
        "tool_calls": len(calls),
        "distinct_tools": len({name for name, _ in calls if name is not None}),
        "tool_errors": sum(failed),
        "last_tool_call_failed": failed[-1] if failed else None,
        "error_recovered": _recovered(failed),
        "repeated_calls": len(calls) - len(set(calls)),
        "longest_cycle": longest_cycle(calls),
        "context_fill": max(fills, default=None),
        "person_messages": sum(message["kind"] == "user" for message in messages),
        "positive_feedback": sum(value == "positive" for value in feedback),
        "negative_feedback": sum(value == "negative" for value in feedback),
        "denied_approvals": denied,
        "refusals": sum(any(part["type"] == "refusal" for part in message["content"]) for message in messages),
        "empty_final_answer": _empty_final_answer(messages),
    }


def _signature(call: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return a call's tool and its arguments, the same text for canonically equal ones.

    Equal are JSON values whose text differs in blanks, in the order of keys or in how a number is written (``1``,
    ``1.0``, ``1e0``); arguments that are no JSON are equal when their text is.
    """
    arguments = call["arguments"]
    if arguments is None and call["json"] is not None:  # they may be there, but no string
        function = tool_call_of(call).get("function")
        arguments = write(function.get("arguments")) if isinstance(function, dict) else None
    try:
        return call["name"], canonical(json.loads(arguments or "null", parse_int=_by_value, parse_float=_by_value))
    except (ValueError, RecursionError, ArithmeticError):
        return call["name"], str(arguments)


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


def _empty_final_answer(messages: Sequence[Row]) -> bool | None:
    last = next(
        (
            message
            for message in reversed(messages)
            if message["role"] in ("assistant", "approval") and not message["approvals"]
        ),
        None,
    )
    if last is None:
        return None
    return not last["assistant_text"] and not last["tool_calls"]
