"""The documents of columnar runs: JSON text composed of pieces, most of which the source wrote."""

from typing import Any, cast

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.columnar.decode import DecodedEntries
from trajectory_pipeline.conversion.columnar.runs import ColumnarRun, ColumnarRuns
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
_ALWAYS_IN_MESSAGE = frozenset({"message_id", "role", "kind", "timestamp", "sequence_id", "is_deleted"})
_EMPTY_ARRAY = orjson.Fragment(b"[]")


def columnar_documents(
    converted: ColumnarRuns, runs: list[ColumnarRun], trajectories: pa.RecordBatch
) -> list[Document]:
    """Return the document of each of these runs of a batch, image bytes as stubs; ``trajectories`` are these runs."""
    turns = cast(Any, trajectories.column("turns")).flatten()
    messages = _messages(converted, runs, turns.field("messages").flatten())
    of_runs = _columns(trajectories, [c.name for c in TRAJECTORIES.columns if c.document and c.name != "turns"])
    nested = iter(_turns(turns, runs, messages))
    documents: list[Document] = []
    for index, run in enumerate(runs):
        values = {name: column[index] for name, column in of_runs.items()}
        values["turns"] = [next(nested) for _ in run.turns]
        text = orjson.dumps(compose_document(values.__getitem__))
        # What the source writes may be longer than what we would write, never shorter.
        fits = too_large_for_jsonb(text) is None
        documents.append((text, None) if fits else postgres_document(trajectories.slice(index, 1).to_pylist()[0]))
    return documents


def _turns(turns: Any, runs: list[ColumnarRun], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [column.name for column in TURN if column.name != "messages"]
    lists = _columns(turns, names)
    written = []
    remaining = iter(messages)
    for index, turn in enumerate(turn for run in runs for turn in run.turns):
        one = {
            name: lists[name][index]
            for name in names
            if (lists[name][index] is not None and lists[name][index] != []) or name in ALWAYS_IN_TURN
        }
        one["messages"] = [next(remaining) for _ in turn.messages]
        written.append(one)
    return written


def _messages(converted: ColumnarRuns, runs: list[ColumnarRun], messages: Any) -> list[dict[str, Any]]:
    names = [column.name for column in MESSAGE if column.name not in _ENTRIES]
    lists = [(name, values, name in _ALWAYS_IN_MESSAGE) for name, values in _columns(messages, names).items()]
    stored = {name: converted.raw.messages.utf8(name) for name in _ENTRIES if name != "tool_returns"}
    columns = {"content": converted.content, "tool_calls": converted.calls, "approvals": converted.approvals}
    returns = converted.returns
    written = []
    for index, at in enumerate(at for run in runs for turn in run.turns for at in turn.messages):
        one = {name: values[index] for name, values, always in lists if always or values[index] is not None}
        one["content"] = _EMPTY_ARRAY
        for name, column in columns.items():
            if column.of(at):
                one[name] = _fragment(column, at, stored[name][at])
        if returns.of(at):
            one["tool_returns"] = [strip_image_data(_tool_return(returns.rows[item])) for item in returns.of(at)]
        written.append(one)
    return written


def _fragment(column: DecodedEntries, at: int, stored: bytes) -> Any:
    if at in column.untyped:
        return strip_image_data(column.values[column.offsets[at] : column.offsets[at + 1]])
    return orjson.Fragment(stored)


def _tool_return(row: tuple[Any, ...]) -> dict[str, Any]:
    call_id, status, denied, text, stdout, stderr, whole = row
    if whole is not None:
        names = ("tool_call_id", "status", "denied", "text", "stdout", "stderr", "json")
        return tool_return_document(dict(zip(names, row, strict=True)))
    written = {"tool_call_id": call_id, "status": status, "text": text, "stdout": stdout, "stderr": stderr}
    return {**written, "denied": True} if denied else written


def _columns(rows: Any, names: list[str]) -> dict[str, list[Any]]:
    """Return fields as the document writes them: times as text, money as a number."""
    found = {}
    for name in names:
        array = rows.field(name) if isinstance(rows, pa.StructArray) else rows.column(name)
        if pa.types.is_timestamp(array.type):
            array = _iso(array)
        elif pa.types.is_decimal(array.type):
            array = pa.array([None if value is None else float(value) for value in array.to_pylist()], pa.float64())
        found[name] = array.to_pylist()
    return found


def _iso(times: Any) -> Any:
    # In this form by a cast: ten times faster than by strftime.
    texts = times.cast(pa.timestamp("us")).cast(pa.string())
    texts = pc.utf8_replace_slice(texts, start=10, stop=11, replacement="T")
    whole = pc.ends_with(texts, ".000000")
    return pc.binary_join_element_wise(pc.if_else(whole, pc.utf8_slice_codeunits(texts, 0, 19), texts), "+00:00", "")
