"""Converted runs back to Arrow: columns copied from the raw rows or built, nested by offsets."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.columnar.columns import Integers, RawColumns, find_in_run, owners, sums
from trajectory_pipeline.conversion.columnar.decode import DecodedEntries
from trajectory_pipeline.conversion.columnar.runs import ColumnarRuns
from trajectory_pipeline.conversion.digest import context_digests
from trajectory_pipeline.conversion.messages import MESSAGE_COLUMNS
from trajectory_pipeline.conversion.reference import AGENT_COLUMNS, METRICS_COLUMNS, RUN_COLUMNS, STEP_COLUMNS
from trajectory_pipeline.conversion.usage import TOKEN_COLUMNS
from trajectory_pipeline.partition_keys import source_of_key
from trajectory_pipeline.schema.arrow import arrow_schema, arrow_type
from trajectory_pipeline.schema.trajectories import (
    APPROVAL,
    CONTENT_PART,
    MESSAGE,
    SCHEMA_VERSION,
    SIGNALS_VERSION,
    TOOL_CALL,
    TOOL_RETURN,
    TRAJECTORIES,
    TURN,
)
from trajectory_pipeline.schema.types import Column

_FROM_BATCH = {"tags": "agent_tags", "context": "context", "deleted_at": "deleted_at"}
_FROM_MESSAGE = {"message_id": "id", "timestamp": "created_at", **{name: name for name in MESSAGE_COLUMNS}}


def trajectories_batch(converted: ColumnarRuns) -> pa.RecordBatch:
    """Return all runs, in their order, as trajectories; of rejected ones, the columns by rules are null."""
    raw = converted.raw
    batch, runs = raw.batch, raw.runs.arrays
    schema = arrow_schema(TRAJECTORIES)
    columns: dict[str, Any] = {
        **{name: batch.column(source) for name, source in _FROM_BATCH.items()},
        **{name: runs[source] for name, source in RUN_COLUMNS.items()},
        "end_time": runs["completed_at"],
        **{name: raw.agents.arrays[source] for name, source in AGENT_COLUMNS.items()},
        "context_digest": pa.array(context_digests(batch.column("context")), pa.string()),
        "erased": _flags(batch.column("erased")),
        "duration_ns": _durations(raw),
        "run_ns": pc.coalesce(cast(Any, raw.run_metrics.arrays["run_ns"]), cast(Any, runs["total_duration_ns"])),
        "turns": _listed(converted.layout.run_turns, _turns(converted)),
        **_sums(converted),
        "escaped": _empty_lists(batch.num_rows, schema.field("escaped").type),
        "schema_version": pa.repeat(pa.scalar(SCHEMA_VERSION), batch.num_rows),
        "signals_version": pa.repeat(pa.scalar(SIGNALS_VERSION), batch.num_rows),
        "partition_key": pa.repeat(pa.scalar(converted.partition_key), batch.num_rows),
        "source": pa.repeat(pa.scalar(source_of_key(converted.partition_key)), batch.num_rows),
    }
    for each in schema:
        if each.name not in columns:
            values = [row and row[each.name] for row in converted.values]
            columns[each.name] = pa.array(values, each.type)
    return pa.RecordBatch.from_arrays([columns[each.name].cast(each.type) for each in schema], schema=schema)


def _durations(raw: RawColumns) -> "pa.Array[Any]":
    created, completed = (raw.runs.integers(name) for name in ("created_at", "completed_at"))
    known = raw.runs.valid("created_at") & raw.runs.valid("completed_at")
    return pa.array((completed - created) * 1000, pa.int64(), mask=~known)


def _sums(converted: ColumnarRuns) -> dict[str, "pa.Array[Any]"]:
    """Return the columns of a trajectory that count tokens."""
    usage, offsets = converted.usage, converted.layout.run_turns
    found: dict[str, pa.Array[Any]] = {}
    for name in TOKEN_COLUMNS:
        known = sums(usage.known[name].astype(np.int64), offsets) > 0
        mask = None if name in TOKEN_COLUMNS[:3] else ~known
        found[name] = pa.array(sums(usage.counts[name], offsets), pa.int64(), mask=mask)
    found["usage_reported"] = pa.array(sums(usage.reported.astype(np.int64), offsets) > 0)
    return found


def _turns(converted: ColumnarRuns) -> "pa.Array[Any]":
    raw, layout, usage = converted.raw, converted.layout, converted.usage
    count = len(layout.steps)
    steps = _indexes(layout.steps)
    step_ids = _taken(raw.steps.arrays["id"], steps)
    columns: dict[str, Any] = {
        "step_id": step_ids,
        "step_run_id": _other_runs(converted, steps),
        "error": _sparse(converted.errors, count, None),
        "tags": _sparse(converted.tags, count, []),
        **{name: _taken(raw.steps.arrays[source], steps) for name, source in STEP_COLUMNS.items()},
        **{name: pa.array(usage.counts[name], pa.int64(), mask=~usage.known[name]) for name in TOKEN_COLUMNS},
        "messages": _listed(layout.turn_messages, _messages(converted)),
    }
    if layout.gone_steps:
        gone = _sparse(layout.gone_steps, count, None)
        columns["step_id"] = pc.coalesce(cast(Any, step_ids), cast(Any, pa.array(gone, pa.string())))
    run_of_metrics = owners(raw.step_metrics_offsets)
    wanted = pc.fill_null(columns["step_id"], "")
    metrics = _indexes(find_in_run(raw.step_metrics.arrays["id"], run_of_metrics, wanted, converted.run_of_turn))
    columns |= {name: _taken(raw.step_metrics.arrays[name], metrics) for name in METRICS_COLUMNS}
    return _structs(TURN, columns)


def _other_runs(converted: ColumnarRuns, steps: "pa.Array[Any]") -> "pa.Array[Any]":
    """Return for each turn the run of its step, where that is another one."""
    owners: Any = _taken(converted.raw.steps.arrays["run_id"], steps)
    of_turns: Any = converted.raw.runs.arrays["id"].take(pa.array(converted.run_of_turn, pa.int64()))
    same = pc.fill_null(pc.equal(owners, of_turns), cast(Any, False))
    found: pa.Array[Any] = pc.if_else(same, pa.scalar(None, pa.string()), owners)
    return found


def _messages(converted: ColumnarRuns) -> "pa.Array[Any]":
    arrays = converted.raw.messages.arrays
    returns = converted.returns
    for at in converted.denied:
        row = returns.rows[at]
        returns.rows[at] = (*row[:2], True, *row[3:])
    order = _indexes(converted.layout.messages)
    deleted = _flags(arrays["is_deleted"])
    if converted.deleted.any():
        deleted = pc.or_(cast(Any, deleted), cast(Any, pa.array(converted.deleted)))
    columns: dict[str, Any] = {
        "kind": _taken(pa.array(converted.kinds, pa.string()), order),
        "is_deleted": _taken(deleted, order),
        "assistant_text": _taken(pa.array(converted.replies, pa.string()), order),
        "inner_thought": _taken(pa.array(converted.thoughts, pa.string()), order),
        "content": _taken(_entries(CONTENT_PART, converted.content), order),
        "tool_calls": _taken(_entries(TOOL_CALL, converted.calls), order),
        "tool_returns": _taken(_entries(TOOL_RETURN, returns), order),
        "approvals": _taken(_entries(APPROVAL, converted.approvals), order),
        **{name: _taken(arrays[source], order) for name, source in _FROM_MESSAGE.items()},
    }
    return _structs(MESSAGE, columns)


def _entries(fields: Sequence[Column], entries: DecodedEntries) -> "pa.Array[Any]":
    values: Iterable[Sequence[Any]] = zip(*entries.rows, strict=True) if entries.rows else [()] * len(fields)
    columns = {column.name: of_field for column, of_field in zip(fields, values, strict=True)}
    return _listed(entries.offsets, _structs(fields, columns))


def _flags(array: "pa.Array[Any]") -> "pa.Array[Any]":
    flags: pa.Array[Any] = pc.fill_null(cast(Any, array), cast(Any, False))
    return flags


def _sparse(values: "dict[int, Any]", count: int, other: Any) -> list[Any]:
    found = [other] * count
    for at, value in values.items():
        found[at] = value
    return found


def _indexes(indexes: Integers) -> "pa.Array[Any]":
    """Return indexes to take, null for -1."""
    return pa.array(indexes, pa.int64(), mask=indexes < 0)


def _taken(array: "pa.Array[Any]", indexes: "pa.Array[Any]") -> "pa.Array[Any]":
    """Return the values at these indexes; the array itself where that is all of it, in order."""
    in_order = len(indexes) == len(array) and not indexes.null_count
    if in_order and (indexes.to_numpy(zero_copy_only=False) == np.arange(len(array))).all():
        return array
    taken: pa.Array[Any] = array.take(indexes)
    return taken


def _structs(fields: Sequence[Column], columns: dict[str, Any]) -> "pa.Array[Any]":
    arrays = []
    for column in fields:
        kind, values = arrow_type(column.type), columns[column.name]
        arrays.append(values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind))
    kinds = [pa.field(column.name, arrow_type(column.type)) for column in fields]
    return pa.StructArray.from_arrays(arrays, fields=kinds)


def _empty_lists(count: int, kind: Any) -> "pa.Array[Any]":
    return _listed(np.zeros(count + 1, np.int64), pa.array([], kind.value_type))


def _listed(offsets: "Integers | Sequence[int]", values: "pa.Array[Any]") -> "pa.Array[Any]":
    lists: pa.Array[Any] = cast(Any, pa.ListArray).from_arrays(pa.array(offsets, pa.int32()), values)
    return lists
