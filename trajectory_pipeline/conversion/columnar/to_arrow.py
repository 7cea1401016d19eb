"""Converted runs back to Arrow: columns copied from the raw rows or built, nested by offsets."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.columnar.decode import DecodedEntries
from trajectory_pipeline.conversion.columnar.runs import ColumnarRun, ColumnarRuns, ColumnarTurn
from trajectory_pipeline.conversion.digest import context_digests
from trajectory_pipeline.conversion.messages import MESSAGE_COLUMNS
from trajectory_pipeline.conversion.reference import AGENT_COLUMNS, METRICS_COLUMNS, RUN_COLUMNS, STEP_COLUMNS
from trajectory_pipeline.conversion.usage import TOKEN_COLUMNS
from trajectory_pipeline.schema.arrow import arrow_schema, arrow_type
from trajectory_pipeline.schema.trajectories import (
    APPROVAL,
    CONTENT_PART,
    MESSAGE,
    TOOL_CALL,
    TOOL_RETURN,
    TRAJECTORIES,
    TURN,
)
from trajectory_pipeline.schema.types import Column

_FROM_BATCH = {"tags": "agent_tags", "context": "context", "deleted_at": "deleted_at"}
_FROM_MESSAGE = {"message_id": "id", "timestamp": "created_at", **{name: name for name in MESSAGE_COLUMNS}}
_NO_USAGE = (None,) * len(TOKEN_COLUMNS)


def trajectories_batch(converted: ColumnarRuns, runs: Sequence[ColumnarRun]) -> pa.RecordBatch:
    """Return runs, in this order, as trajectories."""
    raw = converted.raw
    batch, indexes = raw.batch, [run.index for run in runs]
    columns: dict[str, pa.Array[Any]] = {
        **{name: _taken(batch.column(source), indexes) for name, source in _FROM_BATCH.items()},
        **{name: _taken(raw.runs.arrays[source], indexes) for name, source in RUN_COLUMNS.items()},
        "end_time": _taken(raw.runs.arrays["completed_at"], indexes),
        **{name: _taken(raw.agents.arrays[source], indexes) for name, source in AGENT_COLUMNS.items()},
        "context_digest": pa.array(context_digests(_taken(batch.column("context"), indexes)), pa.string()),
        "erased": _flags(_taken(batch.column("erased"), indexes)),
        "turns": _nested(
            [len(run.turns) for run in runs], _turns(converted, [turn for run in runs for turn in run.turns])
        ),
    }
    schema = arrow_schema(TRAJECTORIES)
    for each in schema:
        if each.name not in columns:
            columns[each.name] = pa.array([run.values[each.name] for run in runs], each.type)
    return pa.RecordBatch.from_arrays([columns[each.name].cast(each.type) for each in schema], schema=schema)


def _turns(converted: ColumnarRuns, turns: Sequence[ColumnarTurn]) -> "pa.Array[Any]":
    raw = converted.raw
    steps, metrics = [turn.step for turn in turns], [turn.metrics for turn in turns]
    usage = [turn.usage or _NO_USAGE for turn in turns]
    columns: dict[str, Any] = {
        "step_id": _taken(raw.steps.arrays["id"], steps),
        "step_run_id": [turn.step_run_id for turn in turns],
        "error": [turn.error for turn in turns],
        "tags": [turn.tags for turn in turns],
        **{name: _taken(raw.steps.arrays[source], steps) for name, source in STEP_COLUMNS.items()},
        **{name: _taken(raw.step_metrics.arrays[name], metrics) for name in METRICS_COLUMNS},
        **{name: [of_step[index] for of_step in usage] for index, name in enumerate(TOKEN_COLUMNS)},
        "messages": _nested(
            [len(turn.messages) for turn in turns],
            _messages(converted, [message for turn in turns for message in turn.messages]),
        ),
    }
    return _structs(TURN, columns)


def _messages(converted: ColumnarRuns, indexes: Sequence[int]) -> "pa.Array[Any]":
    arrays = converted.raw.messages.arrays
    returns = converted.returns
    for at in converted.denied:
        row = returns.rows[at]
        returns.rows[at] = (*row[:2], True, *row[3:])
    columns: dict[str, Any] = {
        "kind": [converted.kinds[at] for at in indexes],
        "is_deleted": _flags(_taken(arrays["is_deleted"], indexes)),
        "assistant_text": [converted.replies[at] for at in indexes],
        "inner_thought": [converted.thoughts[at] for at in indexes],
        "content": _taken(_entries(CONTENT_PART, converted.content), indexes),
        "tool_calls": _taken(_entries(TOOL_CALL, converted.calls), indexes),
        "tool_returns": _taken(_entries(TOOL_RETURN, returns), indexes),
        "approvals": _taken(_entries(APPROVAL, converted.approvals), indexes),
        **{name: _taken(arrays[source], indexes) for name, source in _FROM_MESSAGE.items()},
    }
    return _structs(MESSAGE, columns)


def _entries(fields: Sequence[Column], entries: DecodedEntries) -> "pa.Array[Any]":
    values: Iterable[Sequence[Any]] = zip(*entries.rows, strict=True) if entries.rows else [()] * len(fields)
    columns = {column.name: of_field for column, of_field in zip(fields, values, strict=True)}
    return _listed(pa.array(entries.offsets, pa.int32()), _structs(fields, columns))


def _flags(array: "pa.Array[Any]") -> "pa.Array[Any]":
    flags: pa.Array[Any] = pc.fill_null(cast(Any, array), cast(Any, False))
    return flags


def _taken(array: "pa.Array[Any]", indexes: Sequence[int | None]) -> "pa.Array[Any]":
    """Return the values at these indexes; the array itself where that is all of it, in order."""
    if len(indexes) == len(array) and all(map(operator.eq, indexes, range(len(indexes)))):
        return array
    taken: pa.Array[Any] = array.take(pa.array(indexes, pa.int64()))
    return taken


def _structs(fields: Sequence[Column], columns: dict[str, Any]) -> "pa.Array[Any]":
    arrays = []
    for column in fields:
        kind, values = arrow_type(column.type), columns[column.name]
        arrays.append(values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind))
    kinds = [pa.field(column.name, arrow_type(column.type)) for column in fields]
    return pa.StructArray.from_arrays(arrays, fields=kinds)


def _nested(lengths: Sequence[int], values: "pa.Array[Any]") -> "pa.Array[Any]":
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return _listed(pa.array(offsets), values)


def _listed(offsets: "pa.Array[Any]", values: "pa.Array[Any]") -> "pa.Array[Any]":
    lists: pa.Array[Any] = cast(Any, pa.ListArray).from_arrays(offsets, values)
    return lists
