"""The JSON columns of well-formed messages: a whole column to flat lists, in one pass.

Where it is not certain that nothing is lost, the run takes the reference path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jiter import from_json

from trajectory_pipeline.conversion.digest import (
    approval_text,
    call_text,
    length_prefixed,
    part_text,
    return_text,
)
from trajectory_pipeline.conversion.messages import approval_row, part_row, tool_call_row, tool_return_row

_MAX_DEPTH = 50
_MAX_INT = 2**63

_TEXT = ["type", "text", "signature"]
_REASONING = ["type", "is_native", "reasoning", "signature"]
_CALL = ["id", "function", "type"]
_FUNCTION = ["arguments", "name"]
_RETURN = ["tool_call_id", "status", "stdout", "stderr", "func_response"]

Json = dict[str, Any]
DecodedEntry = tuple[Any, ...]
WithText = tuple[DecodedEntry, str]
"""An entry's fields, and its canonical text for the digest."""
_Decoder = tuple[Callable[[Json], WithText | None], Callable[[Json], Json], Callable[[Json], str]]


class NeedsReferencePath(Exception):  # noqa: N818 - no error: such a run takes the other path
    """A value has no shape that the columnar path is known to convert without loss."""


@dataclass
class DecodedEntries:
    """The entries of one JSON column of many messages.

    Attributes:
        offsets: where each message's entries begin in ``values`` and ``rows``; one more than there are messages.
        rows: their fields, in the order of the column's declaration in ``schema.trajectories``.
        canonical: of each message, the canonical texts of its entries, joined.
        untyped: messages with an entry that its typed fields do not hold whole.
        needs_reference: messages whose entries are not known; they have none here.
    """

    offsets: list[int] = field(default_factory=lambda: [0])
    values: list[Json] = field(default_factory=list)
    rows: list[DecodedEntry] = field(default_factory=list)
    canonical: list[str] = field(default_factory=list)
    untyped: set[int] = field(default_factory=set)
    needs_reference: set[int] = field(default_factory=set)

    def of(self, message: int) -> range:
        """Return where the entries of a message are in ``values`` and ``rows``."""
        return range(self.offsets[message], self.offsets[message + 1])


def decode_json(text: bytes | None) -> Any:
    """Return the value of JSON text; None where there is no text.

    Raises:
        NeedsReferencePath: it is no JSON, or holds a key twice or a lone surrogate.
    """
    if text is None:
        return None
    try:
        return from_json(text, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        raise NeedsReferencePath from None


def decode_entries(column: str, texts: Sequence[bytes | None]) -> DecodedEntries:
    """Return the entries of one of ``DECODED_COLUMNS``; no tool return is marked as denied yet."""
    known, row_of, text_of = DECODED_COLUMNS[column]
    found = DecodedEntries()
    offsets, values, rows = found.offsets, found.values, found.rows
    for message, text in enumerate(texts):
        canonical: list[str] = []
        if text is not None and text != b"[]":
            try:
                for entry in _objects(text):
                    if (typed := known(entry)) is not None:
                        row, entry_text = typed
                    else:  # as the reference does, where that loses nothing
                        _reject_inexact(entry, _MAX_DEPTH)
                        other = row_of(entry)
                        row, entry_text = tuple(other.values()), text_of(other)
                    if row[-1] is not None:
                        found.untyped.add(message)
                    values.append(entry)
                    rows.append(row)
                    canonical.append(entry_text)
            except Exception:  # whatever is odd in one message must not fail the others
                found.needs_reference.add(message)
                del values[offsets[-1] :], rows[offsets[-1] :]
        offsets.append(len(rows))
        found.canonical.append("".join(canonical))
    return found


def _objects(text: bytes) -> list[Json]:
    value = decode_json(text)
    if value is None:
        return []
    if type(value) is not list:
        raise NeedsReferencePath
    for item in value:
        if type(item) is not dict:
            raise NeedsReferencePath
    return value


def _prefixed(value: str | None) -> str:
    return "-" if value is None else f"{len(value)}:{value}"


def _is_text(value: Any) -> bool:
    """Whether a value is null or a string that every sink can hold."""
    return value is None or (type(value) is str and "\0" not in value)


def _part(part: Json) -> WithText | None:
    keys = list(part)
    if keys == _TEXT and part["type"] == "text":
        text, signature = part["text"], part["signature"]
        if type(text) is str and "\0" not in text and _is_text(signature):
            canonical = f"4:text{len(text)}:{text}-{_prefixed(signature)}-"
            return ("text", text, None, signature, None, None, None), canonical
    elif keys == _REASONING and part["type"] == "reasoning" and part["is_native"] is True:
        reasoning, signature = part["reasoning"], part["signature"]
        if type(reasoning) is str and "\0" not in reasoning and _is_text(signature):
            canonical = f"9:reasoning-{len(reasoning)}:{reasoning}{_prefixed(signature)}4:true"
            return ("reasoning", None, reasoning, signature, True, None, None), canonical
    return None


def _call(call: Json) -> WithText | None:
    if list(call) == _CALL:
        function = call["function"]
        if type(function) is dict and list(function) == _FUNCTION:
            call_id, kind, name, arguments = call["id"], call["type"], function["name"], function["arguments"]
            if _is_text(call_id) and _is_text(kind) and _is_text(name) and _is_text(arguments):
                return (call_id, kind, name, arguments, None), length_prefixed(call_id, kind, name, arguments)
    return None


def _return(item: Json) -> WithText | None:
    if list(item) == _RETURN:
        call_id, status, stdout, stderr, text = item.values()
        if _is_text(call_id) and _is_text(status) and _is_text(text) and _is_lines(stdout) and _is_lines(stderr):
            printed = (None if lines is None else length_prefixed(*lines) for lines in (stdout, stderr))
            row = (call_id, status, False, text, stdout, stderr, None)
            return row, length_prefixed(call_id, status, text, *printed)
    return None


def _is_lines(value: Any) -> bool:
    return value is None or (type(value) is list and None not in value and all(map(_is_text, value)))


def _reject_inexact(value: Any, levels: int) -> None:
    """Reject a decimal number, an integer of more than 64 bits, NUL, or too many levels."""
    kind = type(value)
    if kind is str:
        if "\0" in value:
            raise NeedsReferencePath
    elif kind is dict or kind is list:
        if not levels:
            raise NeedsReferencePath
        for item in value.values() if kind is dict else value:
            _reject_inexact(item, levels - 1)
        if kind is dict and any("\0" in key for key in value):
            raise NeedsReferencePath
    elif kind is float or (kind is int and not -_MAX_INT <= value < _MAX_INT):
        raise NeedsReferencePath


DECODED_COLUMNS: dict[str, _Decoder] = {
    "content": (_part, part_row, part_text),
    "tool_calls": (_call, tool_call_row, call_text),
    "tool_returns": (_return, tool_return_row, return_text),
    "approvals": (lambda _: None, approval_row, approval_text),
}
"""By JSON column of ``messages``: fields and text of a usual entry; the row, and the text of that, of any other."""
