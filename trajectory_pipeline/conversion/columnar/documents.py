"""The documents of columnar runs: JSON text joined from pieces, most of which the source wrote."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.columnar.columns import Integers
from trajectory_pipeline.conversion.columnar.decode import DecodedEntries
from trajectory_pipeline.conversion.columnar.runs import ColumnarRuns
from trajectory_pipeline.conversion.document import (
    ALWAYS_IN_TURN,
    Document,
    compose_document,
    postgres_document,
    strip_image_data,
    too_large_for_jsonb,
    tool_return_document,
)
from trajectory_pipeline.schema.trajectories import MESSAGE, TRAJECTORIES, TURN

_ENTRIES = ("content", "tool_calls", "tool_returns", "approvals")
_ALWAYS_IN_MESSAGE = ("message_id", "role", "kind", "timestamp", "sequence_id", "is_deleted")
_MESSAGES_AT_ONCE = 2_000
"""Whose texts are joined at a time: a long run's would be held several times over."""
_IN_MESSAGE = tuple(column.name for column in MESSAGE if column.name not in _ENTRIES)
_IN_TURN = tuple(column.name for column in TURN if column.name != "messages")
_OF_RUN = tuple(column.name for column in TRAJECTORIES.columns if column.document and column.name != "turns")
_LONG = 64
"""Bytes of a text on average from which each is quoted by itself."""
_TO_ESCAPE = r'["\\\x00-\x1f]'


def columnar_documents(converted: ColumnarRuns, trajectories: pa.RecordBatch) -> list[Document]:
    """Return the document of each run of a batch, image bytes as stubs; ``trajectories`` are all its runs.

    Rejected runs have one too, without their values.
    """
    turns = cast(Any, trajectories.column("turns")).flatten()
    messages = _messages(converted, turns.field("messages").flatten())
    heads = _fields(turns, _IN_TURN, ALWAYS_IN_TURN)
    of_runs = _columns(trajectories)
    run_offsets, turn_offsets = converted.layout.run_turns.tolist(), converted.layout.turn_messages.tolist()
    documents: list[Document] = []
    for run in range(trajectories.num_rows):
        values = {name: column[run] for name, column in of_runs.items()}
        # orjson writes no NUL, so that the turns' place is found again.
        values["turns"] = orjson.Fragment(b"\0")
        before, after = orjson.dumps(compose_document(values.__getitem__)).split(b"\0")
        # Joined once: a long run's text is not to be held several times over.
        pieces = [before, b"["]
        for turn in range(run_offsets[run], run_offsets[run + 1]):
            pieces += (b"{" if turn == run_offsets[run] else b",{", heads[turn], b',"messages":[')
            for at in range(turn_offsets[turn], turn_offsets[turn + 1]):
                pieces.append(b"{" if at == turn_offsets[turn] else b",{")
                pieces += messages[at]
            pieces.append(b"]}")
        text = b"".join([*pieces, b"]", after])
        # What the source writes may be longer than what we would write, never shorter.
        fits = too_large_for_jsonb(text) is None
        documents.append((text, None) if fits else postgres_document(trajectories.slice(run, 1).to_pylist()[0]))
    return documents


def _messages(converted: ColumnarRuns, messages: Any) -> list[list[bytes]]:
    """Return messages, which are in the order of the turns, as pieces of JSON text, without the first brace."""
    written: list[list[bytes]] = []
    for first in range(0, len(messages), _MESSAGES_AT_ONCE):
        indexes = converted.layout.messages[first : first + _MESSAGES_AT_ONCE]
        heads = _fields(messages.slice(first, len(indexes)), _IN_MESSAGE, _ALWAYS_IN_MESSAGE)
        written += _message_pieces(converted, indexes, heads)
    return written


def _message_pieces(converted: ColumnarRuns, indexes: Integers, heads: list[bytes]) -> Iterator[list[bytes]]:
    arrays, returns = converted.raw.messages.arrays, converted.returns
    columns = {"content": converted.content, "tool_calls": converted.calls, "approvals": converted.approvals}
    taken = pa.array(indexes, pa.int64())
    stored = {name: arrays[name].cast(pa.binary()).take(taken).to_pylist() for name in columns}
    for at, head, content, calls, approvals in zip(indexes.tolist(), heads, *stored.values(), strict=True):
        pieces = [head, b',"content":', _stored(converted.content, at, content) or b"[]"]
        if (text := _stored(converted.calls, at, calls)) is not None:
            pieces += (b',"tool_calls":', text)
        if found := returns.of(at):
            pieces += (b',"tool_returns":', orjson.dumps([_tool_return(returns.rows[item]) for item in found]))
        if (text := _stored(converted.approvals, at, approvals)) is not None:
            pieces += (b',"approvals":', text)
        pieces.append(b"}")
        yield pieces


def _stored(entries: DecodedEntries, at: int, text: bytes | None) -> bytes | None:
    """Return the entries of a message as the source wrote them, image bytes as stubs; None where there are none."""
    if not entries.of(at):
        return None
    return orjson.dumps(strip_image_data(entries.untyped[at])) if at in entries.untyped else text


def _tool_return(row: tuple[Any, ...]) -> dict[str, Any]:
    call_id, status, denied, text, stdout, stderr, whole = row
    if whole is not None:
        names = ("tool_call_id", "status", "denied", "text", "stdout", "stderr", "json")
        return cast(dict[str, Any], strip_image_data(tool_return_document(dict(zip(names, row, strict=True)))))
    # Texts alone hold no image.
    written = {"tool_call_id": call_id, "status": status, "text": text, "stdout": stdout, "stderr": stderr}
    return {**written, "denied": True} if denied else written


def _fields(rows: Any, names: Sequence[str], always: Sequence[str]) -> list[bytes]:
    """Return rows as the fields of JSON objects, without braces; the first name is in ``always``.

    A null, and an empty list, are left out where they need not be there.
    """
    parts: list[Any] = []
    for name in names:
        texts: Any = _json_texts(rows.field(name))
        if name in always:
            texts = pc.fill_null(texts, "null")
        elif texts.null_count == len(texts):
            continue
        parts.append(pc.binary_join_element_wise(f'{"," if parts else ""}"{name}":', texts, ""))
    joined = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="")
    return cast(list[bytes], joined.cast(pa.binary()).to_pylist())


def _json_texts(array: Any) -> Any:
    """Return values as JSON text; null where there is none, or an empty list."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        return pc.binary_join_element_wise('"', _iso(array), '"', "")
    if pa.types.is_string(kind):
        return _quoted(array)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(pa.string())
    texts = [None if value in (None, []) else orjson.dumps(value).decode() for value in array.to_pylist()]
    return pa.array(texts, pa.string())


def _quoted(array: Any) -> Any:
    """Return texts as JSON strings."""
    if array.nbytes > _LONG * len(array):  # with a line break in most
        return pa.array([None if text is None else orjson.dumps(text) for text in array.to_pylist()], pa.string())
    special = pc.match_substring_regex(array, _TO_ESCAPE).fill_null(False).to_numpy(zero_copy_only=False)
    where = np.flatnonzero(special)
    quoted: Any = pc.binary_join_element_wise('"', array, '"', "")
    if not len(where):
        return quoted
    texts = [orjson.dumps(text).decode() for text in array.take(pa.array(where)).to_pylist()]
    return pc.replace_with_mask(quoted, pa.array(special), pa.array(texts, pa.string()))


def _columns(trajectories: pa.RecordBatch) -> dict[str, list[Any]]:
    """Return the columns of runs as the document writes them: times as text, money as a number."""
    found = {}
    for name in _OF_RUN:
        array: Any = trajectories.column(name)
        if pa.types.is_timestamp(array.type):
            array = _iso(array)
        values = array.to_pylist()
        if pa.types.is_decimal(array.type):
            values = [None if value is None else float(value) for value in values]
        found[name] = values
    return found


def _iso(times: Any) -> Any:
    # In this form by a cast: ten times faster than by strftime.
    texts = times.cast(pa.timestamp("us")).cast(pa.string())
    texts = pc.utf8_replace_slice(texts, start=10, stop=11, replacement="T")
    whole = pc.ends_with(texts, ".000000")
    return pc.binary_join_element_wise(pc.if_else(whole, pc.utf8_slice_codeunits(texts, 0, 19), texts), "+00:00", "")
