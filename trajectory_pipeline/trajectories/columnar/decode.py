"""The entries of ordinary messages: the JSON of a whole column to flat lists, in one pass.

Belongs here: content parts, tool calls, tool returns and decisions of the forms that Letta writes. Does not belong
here: any form of which it is not plain that nothing is lost: such a value is ``Unusual``, and the specification
(``convert.convert_run``) converts the run that holds it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jiter import from_json

from trajectory_pipeline.trajectories.digest import (
    approval_form,
    call_form,
    framed,
    part_form,
    return_form,
)
from trajectory_pipeline.trajectories.messages import (
    approval_row,
    part_row,
    tool_call_row,
    tool_return_row,
)

_MAX_DEPTH = 50
_MAX_INT = 2**63

_TEXT = ["type", "text", "signature"]
_REASONING = ["type", "is_native", "reasoning", "signature"]
_CALL = ["id", "function", "type"]
_FUNCTION = ["arguments", "name"]
_RETURN = ["tool_call_id", "status", "stdout", "stderr", "func_response"]

DecodedEntry = tuple[Any, ...]


class NeedsReferencePath(Exception):  # noqa: N818 - no error: such a run takes the other way
    """A value is of no form that is known to lose nothing on the short way."""


@dataclass
class DecodedEntries:
    """The entries of one JSON column of many messages.

    Attributes:
        ends: where each message's entries end in the lists below; one more than there are messages, the first is 0.
        values: the entries as they stand in the JSON.
        rows: their fields, in the order of the column's declaration in ``schema.trajectories``.
        forms: of each message, the forms of its entries for the digest, joined.
        untyped: messages with an entry that its typed fields do not hold whole.
        unusual: messages whose entries are not known; they have none here.
    """

    ends: list[int] = field(default_factory=lambda: [0])
    values: list[dict[str, Any]] = field(default_factory=list)
    rows: list[DecodedEntry] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    untyped: set[int] = field(default_factory=set)
    unusual: set[int] = field(default_factory=set)


def parts(texts: Sequence[bytes | None]) -> DecodedEntries:
    """Return the content parts of messages."""
    return _entries(texts, _part, part_row, part_form)


def tool_calls(texts: Sequence[bytes | None]) -> DecodedEntries:
    """Return the tool calls of messages."""
    return _entries(texts, _call, tool_call_row, call_form)


def tool_returns(texts: Sequence[bytes | None]) -> DecodedEntries:
    """Return the tool returns of messages; none is marked as denied yet."""
    return _entries(texts, _return, tool_return_row, return_form)


def approvals(texts: Sequence[bytes | None]) -> DecodedEntries:
    """Return the decisions of messages."""
    return _entries(texts, _decision, approval_row, approval_form)


def decoded(text: bytes | None) -> Any:
    """Return the value of JSON text; None where there is no text.

    Raises:
        Unusual: it is no JSON, or holds a key twice or a lone surrogate.
    """
    if text is None:
        return None
    try:
        return from_json(text, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        raise NeedsReferencePath from None


def _entries(
    texts: Sequence[bytes | None],
    known: Callable[[dict[str, Any]], tuple[DecodedEntry, str] | None],
    row_of: Callable[[dict[str, Any]], dict[str, Any]],
    form_of: Callable[[dict[str, Any]], str],
) -> DecodedEntries:
    found = DecodedEntries()
    ends, values, rows = found.ends, found.values, found.rows
    for message, text in enumerate(texts):
        forms: list[str] = []
        if text is not None and text != b"[]":
            try:
                for entry in _objects(text):
                    row, form = known(entry) or _other(entry, row_of, form_of)
                    if row[-1] is not None:
                        found.untyped.add(message)
                    values.append(entry)
                    rows.append(row)
                    forms.append(form)
            except NeedsReferencePath:
                found.unusual.add(message)
                del values[ends[-1] :], rows[ends[-1] :]
        ends.append(len(rows))
        found.forms.append("".join(forms))
    return found


def _objects(text: bytes) -> list[dict[str, Any]]:
    value = decoded(text)
    if value is None:
        return []
    if type(value) is not list:
        raise NeedsReferencePath
    for item in value:
        if type(item) is not dict:
            raise NeedsReferencePath
    return value


def _framed(value: str | None) -> str:
    return "-" if value is None else f"{len(value)}:{value}"


def _is_text(value: Any) -> bool:
    """Whether a value is a string that every sink can hold, or none."""
    return value is None or (type(value) is str and "\0" not in value)


def _part(part: dict[str, Any]) -> tuple[DecodedEntry, str] | None:
    keys = list(part)
    if keys == _TEXT and part["type"] == "text":
        text, signature = part["text"], part["signature"]
        if type(text) is str and "\0" not in text and _is_text(signature):
            form = f"4:text{len(text)}:{text}-{_framed(signature)}-"
            return ("text", text, None, signature, None, None, None), form
    elif keys == _REASONING and part["type"] == "reasoning" and part["is_native"] is True:
        reasoning, signature = part["reasoning"], part["signature"]
        if type(reasoning) is str and "\0" not in reasoning and _is_text(signature):
            form = f"9:reasoning-{len(reasoning)}:{reasoning}{_framed(signature)}4:true"
            return ("reasoning", None, reasoning, signature, True, None, None), form
    return None


def _call(call: dict[str, Any]) -> tuple[DecodedEntry, str] | None:
    if list(call) == _CALL:
        function = call["function"]
        if type(function) is dict and list(function) == _FUNCTION:
            call_id, kind, name, arguments = call["id"], call["type"], function["name"], function["arguments"]
            if _is_text(call_id) and _is_text(kind) and _is_text(name) and _is_text(arguments):
                return (call_id, kind, name, arguments, None), framed(call_id, kind, name, arguments)
    return None


def _return(item: dict[str, Any]) -> tuple[DecodedEntry, str] | None:
    if list(item) == _RETURN:
        call_id, status, stdout, stderr, text = item.values()
        if _is_text(call_id) and _is_text(status) and _is_text(text) and _is_lines(stdout) and _is_lines(stderr):
            printed = (None if lines is None else framed(*lines) for lines in (stdout, stderr))
            return (call_id, status, False, text, stdout, stderr, None), framed(call_id, status, text, *printed)
    return None


def _is_lines(value: Any) -> bool:
    return value is None or (type(value) is list and None not in value and all(map(_is_text, value)))


def _decision(_: dict[str, Any]) -> None:
    return None


def _other(
    entry: Any, row_of: Callable[[dict[str, Any]], dict[str, Any]], form_of: Callable[[dict[str, Any]], str]
) -> tuple[DecodedEntry, str]:
    """Convert an entry of any other form as the specification does, where that loses nothing."""
    _refuse_inexact(entry, _MAX_DEPTH)
    row = row_of(entry)
    return tuple(row.values()), form_of(row)


def _refuse_inexact(value: Any, levels: int) -> None:
    """Refuse what the decoder may not have given exactly, or what a sink cannot hold.

    Raises:
        Unusual: a decimal number, an integer of more than 64 bits, NUL, or too many levels.
    """
    kind = type(value)
    if kind is str:
        if "\0" in value:
            raise NeedsReferencePath
    elif kind is dict:
        if not levels:
            raise NeedsReferencePath
        for key, item in value.items():
            _refuse_inexact(key, levels)
            _refuse_inexact(item, levels - 1)
    elif kind is list:
        if not levels:
            raise NeedsReferencePath
        for item in value:
            _refuse_inexact(item, levels - 1)
    elif kind is float or (kind is int and not -_MAX_INT <= value < _MAX_INT):
        raise NeedsReferencePath
