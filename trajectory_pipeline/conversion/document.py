"""The trajectory document: what ``data`` in Postgres holds.

Each value comes from a column, and is written at the path that the column's declaration names.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from trajectory_pipeline.conversion.messages import approval_of, part_of, tool_call_of, tool_return_of
from trajectory_pipeline.lossless_json import MAX_DEPTH, Verbatim, write_json
from trajectory_pipeline.schema.trajectories import MESSAGE, TRAJECTORIES, TURN

MAX_JSONB_BYTES = 200_000_000
"""Longer documents are not written to Postgres, whose ``jsonb`` holds 256 MB in any array or object."""
MAX_JSONB_VALUES = 4_000_000
"""A short number takes six times as much in ``jsonb`` as in text, and reading it into 1 GB of memory."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_MAX_NUMERIC_EXPONENT = 100_000
"""Postgres ``numeric`` holds 131,072 digits before the point and 16,383 after it."""
_MAX_NUMERIC_DIGITS = 16_000
_MAX_INTEGER_DIGITS = 4300
"""``jsonb`` writes numbers out in full, and Python refuses to read integers of more digits."""

ALWAYS_IN_TURN = ("step_id", "step_run_id", "model", "input_tokens", "output_tokens", "stop_reason")

Row = Mapping[str, Any]
Document = tuple[bytes | None, str | None]
"""A document for Postgres as JSON text in UTF-8; or None, and the reason."""


def trajectory_document(row: Row) -> dict[str, Any]:
    """Return the document of a trajectory, whole: image bytes and all.

    ``row`` has the fields of ``TRAJECTORIES`` in Parquet, as the converter or a Parquet file gives them.
    """
    return compose_document(
        lambda name: [_turn(turn) for turn in row["turns"]] if name == "turns" else _to_json(row[name])
    )


def compose_document(value_of: Callable[[str], Any]) -> dict[str, Any]:
    """Return the value of each column at the path in the document that its declaration names."""
    document: dict[str, Any] = {}
    for column in TRAJECTORIES.columns:
        if column.document is not None:
            *parents, name = column.document.split(".")
            target = document
            for parent in parents:
                target = target.setdefault(parent, {})
            target[name] = value_of(column.name)
    return document


def postgres_document(row: Row) -> Document:
    """Return a trajectory's document for ``jsonb``, image bytes as stubs."""
    document = trajectory_document(row)
    for turn in document["turns"]:
        for message in turn["messages"]:
            for name in _ENTRIES.keys() & message.keys():
                message[name] = strip_image_data(message[name])
    reason = next(filter(None, map(_beyond_jsonb, _leaves(document))), None)
    if reason is not None:
        return None, f"the document holds {reason}"
    text = write_json(document).encode()
    reason = too_large_for_jsonb(text)
    return (text, None) if reason is None else (None, reason)


def too_large_for_jsonb(text: bytes) -> str | None:
    """Return why a document is too large to be offered to ``jsonb``; None where it is not."""
    if len(text) > MAX_JSONB_BYTES:
        return f"the document has {len(text)} bytes, more than the {MAX_JSONB_BYTES} that are offered to jsonb"
    if len(text) > MAX_JSONB_VALUES and text.count(b",") > MAX_JSONB_VALUES:
        values = _STRING.sub(b"", text).count(b",")
        if values > MAX_JSONB_VALUES:
            return f"the document has {values} values, more than the {MAX_JSONB_VALUES} that are offered to jsonb"
    return None


def _turn(turn: Row) -> dict[str, Any]:
    written = {
        column.name: _to_json(turn[column.name])
        for column in TURN
        if column.name != "messages" and (turn[column.name] not in (None, []) or column.name in ALWAYS_IN_TURN)
    }
    return {**written, "messages": [_message(message) for message in turn["messages"]]}


def _message(message: Row) -> dict[str, Any]:
    written = {
        column.name: _to_json(message[column.name])
        for column in MESSAGE
        if column.name not in _ENTRIES and (message[column.name] is not None or column.name == "timestamp")
    }
    for name, entry_of in _ENTRIES.items():
        if message[name] or name == "content":
            written[name] = [entry_of(entry) for entry in message[name]]
    return written


def tool_return_document(row: Row) -> dict[str, Any]:
    """Return a tool return with ``func_response`` under the name ``text``; with both where it is no string."""
    item = tool_return_of(row)
    if isinstance(item.get("func_response"), str | None):
        item.pop("func_response", None)
    # An item's own keys of these names are in Parquet's ``json`` only.
    verbatim = {name: value for name, value in item.items() if name not in ("text", "denied")}
    written = {"tool_call_id": row["tool_call_id"], "status": row["status"], "text": row["text"], **verbatim}
    if row["denied"]:
        written["denied"] = True
    return written


_ENTRIES: dict[str, Callable[[Row], dict[str, Any]]] = {
    "content": part_of,
    "tool_calls": tool_call_of,
    "tool_returns": tool_return_document,
    "approvals": approval_of,
}


def _to_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return value


def strip_image_data(value: Any) -> Any:
    """Return a value with a stub of size and hash instead of the bytes of every image in it."""
    if isinstance(value, list):
        return [strip_image_data(item) for item in value]
    if not isinstance(value, dict):
        return value
    source = value.get("source")
    if value.get("type") == "image" and isinstance(source, dict) and isinstance(source.get("data"), str):
        return {
            **value,
            "source": {**{key: source[key] for key in source if key != "data"}, "stub": _stub(source["data"])},
        }
    return {key: strip_image_data(item) for key, item in value.items()}


def _stub(data: str) -> dict[str, Any]:
    try:
        content, valid = base64.b64decode(data, validate=True), True
    except (binascii.Error, ValueError):
        content, valid = data.encode(), False
    stub = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return stub if valid else {**stub, "invalid_base64": True}


def _leaves(value: Any) -> Iterator[Any]:
    open_values = [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            open_values.extend(value.values())
        elif isinstance(value, list):
            open_values.extend(value)
        else:
            yield value


def _beyond_jsonb(value: Any) -> str | None:
    """Return what a value is that ``jsonb`` cannot hold; None where it can."""
    if isinstance(value, Verbatim) and value.text[0] in "[{":
        return f"a value of {len(value.text)} characters that is nested more than {MAX_DEPTH} levels deep"
    if isinstance(value, Verbatim) or (isinstance(value, Decimal) and _beyond_numeric(value)):
        return f"a number beyond Postgres numeric, of {len(write_json(value))} characters"
    if isinstance(value, Decimal) and value.adjusted() >= _MAX_INTEGER_DIGITS:
        return f"a number of {value.adjusted() + 1} digits, more than the {_MAX_INTEGER_DIGITS} that Python reads"
    return None


def _beyond_numeric(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    return (
        not isinstance(exponent, int)
        or abs(number.adjusted()) > _MAX_NUMERIC_EXPONENT
        or exponent < -_MAX_NUMERIC_DIGITS
    )
