"""The JSON columns of well-formed messages: a whole column to flat lists, in one pass.

Where it is not certain that nothing is lost, the run takes the reference path.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jiter import from_json

from trajectory_pipeline.conversion.columnar.columns import Integers
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
        values: the entries as parsed.
        rows: their fields, in the order of the column's declaration in ``schema.trajectories``.
        canonical: of each message, the canonical texts of its entries, joined.
        untyped: the entries of messages with one that its typed fields do not hold whole, by message.
        needs_reference: messages whose entries are not known; they have none here.
    """

    offsets: list[int]
    canonical: list[str]
    values: list[Json] = field(default_factory=list)
    rows: list[DecodedEntry] = field(default_factory=list)
    untyped: dict[int, list[Json]] = field(default_factory=dict)
    needs_reference: set[int] = field(default_factory=set)

    def of(self, message: int) -> range:
        """Return where the entries of a message are in ``values`` and ``rows``."""
        return range(self.offsets[message], self.offsets[message + 1])

    @property
    def counts(self) -> Integers:
        """The number of each message's entries."""
        offsets: Integers = np.array(self.offsets, np.int64)
        return offsets[1:] - offsets[:-1]


def decode_json(text: bytes | None) -> Any:
    """Return the value of JSON text; None where there is no text.

    Raises:
        NeedsReferencePath: it is no JSON, or holds a key twice or a lone surrogate.
    """
    if text is None:
        return None
    try:
        return from_json(text, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError:
        raise NeedsReferencePath from None


def decode_entries(column: str, texts: "pa.Array[Any]", instead: Mapping[int, list[Json]]) -> DecodedEntries:
    """Return the entries of one of ``DECODED_COLUMNS``; no tool return is marked as denied yet.

    ``instead`` has, by message, the entries that count where the column has none.
    """
    known, row_of, text_of = DECODED_COLUMNS[column]
    count = len(texts)
    found = DecodedEntries([], [""] * count)
    values, rows, canonical = found.values, found.rows, found.canonical
    # Most messages have no entries: they are found in Arrow.
    empty: Any = pc.is_in(texts, value_set=pa.array([None, "[]"], pa.string()))
    filled = np.flatnonzero(~empty.to_numpy(zero_copy_only=False))
    where: Integers = np.union1d(filled, np.array([*instead], np.int64))
    counts = np.zeros(count + 1, np.int64)
    for message, text in zip(
        where.tolist(), texts.cast(pa.binary()).take(pa.array(where, pa.int64())).to_pylist(), strict=True
    ):
        before = len(rows)
        try:
            entry_texts = []
            typed_whole = True
            for entry in _objects(text) or instead.get(message, []):
                typed = known(entry)
                if typed is not None:
                    row, entry_text = typed
                else:  # as the reference does, where that loses nothing
                    _reject_inexact(entry, _MAX_DEPTH)
                    other = row_of(entry)
                    row, entry_text = tuple(other.values()), text_of(other)
                typed_whole &= row[-1] is None
                values.append(entry)
                rows.append(row)
                entry_texts.append(entry_text)
            if not typed_whole:
                found.untyped[message] = values[before:]
            canonical[message] = entry_texts[0] if len(entry_texts) == 1 else "".join(entry_texts)
        except Exception:  # whatever is odd in one message must not fail the others
            found.needs_reference.add(message)
            del values[before:], rows[before:]
        counts[message + 1] = len(rows) - before
    found.offsets = np.cumsum(counts).tolist()
    return found


def _objects(text: bytes | None) -> list[Json]:
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
    return value is None or _is_storable(value)


def _part(part: Json) -> WithText | None:
    keys = list(part)
    if keys == _TEXT:
        kind, text, signature = part.values()
        if kind == "text" and type(text) is str and "\0" not in text and _is_text(signature):
            signed = "-" if signature is None else f"{len(signature)}:{signature}"
            return ("text", text, None, signature, None, None, None), f"4:text{len(text)}:{text}-{signed}-"
    elif keys == _REASONING:
        kind, native, reasoning, signature = part.values()
        if (
            kind == "reasoning"
            and native is True
            and type(reasoning) is str
            and "\0" not in reasoning
            and _is_text(signature)
        ):
            canonical = f"9:reasoning-{len(reasoning)}:{reasoning}{_prefixed(signature)}4:true"
            return ("reasoning", None, reasoning, signature, True, None, None), canonical
    return None


def _call(call: Json) -> WithText | None:
    if list(call) == _CALL:
        call_id, function, kind = call.values()
        if type(function) is dict and list(function) == _FUNCTION:
            arguments, name = function.values()
            if all(map(_is_storable, (call_id, kind, name, arguments))):
                canonical = f"{len(call_id)}:{call_id}{len(kind)}:{kind}{len(name)}:{name}{len(arguments)}:{arguments}"
                return (call_id, kind, name, arguments, None), canonical
    return None


def _return(item: Json) -> WithText | None:
    if list(item) == _RETURN:
        call_id, status, stdout, stderr, text = item.values()
        if all(map(_is_storable, (call_id, status, text))) and _is_lines(stdout) and _is_lines(stderr):
            head = f"{len(call_id)}:{call_id}{len(status)}:{status}{len(text)}:{text}"
            return (call_id, status, False, text, stdout, stderr, None), f"{head}{_lines(stdout)}{_lines(stderr)}"
    return None


def _is_storable(value: Any) -> bool:
    """Whether a value is a string that every sink can hold."""
    return type(value) is str and "\0" not in value


def _is_lines(value: Any) -> bool:
    return value is None or value == [] or (type(value) is list and None not in value and all(map(_is_text, value)))


def _lines(lines: list[str] | None) -> str:
    return "-" if lines is None else _prefixed(length_prefixed(*lines)) if lines else "0:"


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
