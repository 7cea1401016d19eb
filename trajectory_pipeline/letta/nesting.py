"""Nesting flat rows of the source under their runs, column by column, in Arrow, without parsing any value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.lossless_json import ConversionError, parse_array_of_objects
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.raw import TERMINAL_RUNS

CALL_COLUMNS = ("run_id", "step_id", "sequence_id", "tool_calls")
"""Columns of ``messages`` from which calls of other runs are known."""


@dataclass(frozen=True)
class RunTables:
    """The flat tables of one batch of runs, each with all known columns of its source table, in any order.

    ``other_steps`` are the steps that their messages name and that ``steps`` has not, ``other_calls`` the messages of
    any run in those, with ``CALL_COLUMNS``. ``contexts`` have ``run_id`` and
    the fields of ``schema.raw.CONTEXT``.
    """

    runs: pa.Table
    steps: pa.Table
    other_steps: pa.Table
    other_calls: pa.Table
    messages: pa.Table
    run_metrics: pa.Table
    step_metrics: pa.Table
    agents: pa.Table
    agent_tags: pa.Table
    contexts: pa.Table


def nest_run_tables(tables: RunTables, schema_version: str) -> pa.RecordBatch:
    """Return the rows of ``terminal_runs`` for these runs, ordered by run id.

    The same rows in any order give the same batch.
    """
    runs = tables.runs.sort_by("id")
    run_ids = _combined(runs["id"])
    steps = tables.steps
    owner_of_step = _matches(steps["run_id"], run_ids)
    step_metrics_owner = pc.take(owner_of_step, _matches(tables.step_metrics["id"], _combined(steps["id"])))
    foreign_owner, foreign_steps = _foreign_steps(tables, run_ids)
    columns = {
        "run_id": run_ids,
        "run": _structs(runs, "run"),
        "run_metrics": _one_each(tables.run_metrics, "id", run_ids, "run_metrics"),
        "steps": _many_each(steps, owner_of_step, ("id",), len(run_ids), "steps"),
        "foreign_steps": _many_each(foreign_steps, foreign_owner, ("id",), len(run_ids), "foreign_steps"),
        "asked_calls": _asked_calls(tables, run_ids, foreign_owner, foreign_steps["id"]),
        "step_metrics": _many_each(tables.step_metrics, step_metrics_owner, ("id",), len(run_ids), "step_metrics"),
        "messages": _many_each(
            tables.messages,
            _matches(tables.messages["run_id"], run_ids),
            ("sequence_id", "id"),
            len(run_ids),
            "messages",
        ),
        "agent": _one_each(tables.agents, "id", _combined(runs["agent_id"]), "agent"),
        "agent_tags": _tags(tables.agent_tags, runs),
        "context": _one_each(tables.contexts, "run_id", run_ids, "context"),
        "deleted_at": pa.nulls(len(run_ids), pa.timestamp("us", tz="UTC")),
        "erased": pa.repeat(pa.scalar(False), len(run_ids)),
        "schema_version": pa.repeat(pa.scalar(schema_version), len(run_ids)),
    }
    schema = arrow_schema(TERMINAL_RUNS)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def unnamed_step_ids(steps: pa.Table, messages: pa.Table) -> list[str]:
    """Return the step ids that messages name and that are not among these steps, sorted."""
    named = pc.unique(_combined(messages["step_id"]).drop_null())
    unnamed = named.filter(pc.invert(pc.is_in(named, value_set=_combined(steps["id"]))))
    return sorted(cast(list[str], unnamed.to_pylist()))


def _combined(column: "pa.ChunkedArray[Any] | pa.Array[Any]") -> "pa.Array[Any]":
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _matches(values: "pa.ChunkedArray[Any] | pa.Array[Any]", among: "pa.Array[Any]") -> "pa.Array[Any]":
    """Return for each value its index in ``among``; null where it has none."""
    return pc.index_in(_combined(values), value_set=among, skip_nulls=True)


def _structs(table: pa.Table, column: str) -> pa.StructArray:
    kind = arrow_schema(TERMINAL_RUNS).field(column).type
    fields = list(cast(pa.StructType, kind.value_type if pa.types.is_list(kind) else kind))
    return pa.StructArray.from_arrays(
        [_combined(table[field.name]).cast(field.type) for field in fields], fields=fields
    )


def _one_each(table: pa.Table, key: str, keys: "pa.Array[Any]", column: str) -> "pa.Array[Any]":
    return _structs(table, column).take(_matches(keys, _combined(table[key])))


def _many_each(
    table: pa.Table, owners: "pa.Array[Any]", order: Sequence[str], runs: int, column: str
) -> "pa.ListArray[Any]":
    """Nest rows under their owners: a list array built from the offsets of the sorted rows."""
    ordered = table.select(list(order))
    ordered = ordered.append_column("owner", owners).append_column("row", pa.array(np.arange(len(owners))))
    ordered = ordered.filter(pc.is_valid(owners))
    ordered = ordered.sort_by([("owner", "ascending"), *((name, "ascending") for name in order)])
    counts = np.bincount(ordered["owner"].to_numpy().astype(np.int64), minlength=runs)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    nested = _structs(table, column).take(_combined(ordered["row"]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), nested)


def _tags(agent_tags: pa.Table, runs: pa.Table) -> "pa.Array[Any]":
    by_agent: dict[Any, list[Any]] = {}
    for agent, tag in zip(agent_tags["agent_id"].to_pylist(), agent_tags["tag"].to_pylist(), strict=True):
        by_agent.setdefault(agent, []).append(tag)
    return pa.array(
        [sorted(by_agent.get(agent, [])) for agent in runs["agent_id"].to_pylist()], type=pa.list_(pa.string())
    )


def _foreign_steps(tables: RunTables, run_ids: "pa.Array[Any]") -> tuple["pa.Array[Any]", pa.Table]:
    """Return, for each run, the steps of other runs that its messages name, with the run's index as owner."""
    all_steps = pa.concat_tables([tables.steps, tables.other_steps])
    pairs = tables.messages.select(["run_id", "step_id"]).group_by(["run_id", "step_id"]).aggregate([])
    index = _matches(pairs["step_id"], _combined(all_steps["id"]))
    owner_of_named = _combined(all_steps["run_id"]).take(index)
    # A step whose run is gone (run_id null) is foreign as well.
    own = cast(Any, pc.equal(owner_of_named, _combined(pairs["run_id"]))).fill_null(fill_value=False)
    foreign = pc.and_not(pc.is_valid(index), own)
    chosen = pairs.append_column("index", index).filter(foreign)
    return _matches(chosen["run_id"], run_ids), all_steps.take(_combined(chosen["index"]))


def _asked_calls(
    tables: RunTables, run_ids: "pa.Array[Any]", owners: "pa.Array[Any]", step_ids: "pa.ChunkedArray[Any]"
) -> "pa.Array[Any]":
    """Return, for each run, the calls that other runs made in its foreign steps, in order."""
    asked: list[list[_Call]] = [[] for _ in range(len(run_ids))]
    if len(step_ids):
        calls = _calls_by_step(tables, step_ids)
        pairs: Any = zip(owners.to_pylist(), step_ids.to_pylist(), strict=True)
        for owner, step_id in sorted(pair for pair in pairs if pair[0] is not None):
            run_id = run_ids[owner].as_py()
            # Where the first answer was refused, another run may have asked again for the same call.
            asked[owner] += dict.fromkeys(call for caller, call in calls.get(step_id, ()) if caller != run_id)
    kind: Any = arrow_schema(TERMINAL_RUNS).field("asked_calls").type
    rows: pa.Array[Any] = pa.array([[call._asdict() for call in of_run] for of_run in asked], kind)
    return rows


class _Call(NamedTuple):
    step_id: str
    id: str | None
    name: str | None


def _calls_by_step(tables: RunTables, step_ids: "pa.ChunkedArray[Any]") -> dict[str, list[tuple[str | None, _Call]]]:
    """Return the calls in these steps in order, each with the run that made it."""
    messages = pa.concat_tables([tables.messages.select(CALL_COLUMNS), tables.other_calls.select(CALL_COLUMNS)])
    messages = messages.filter(pc.is_in(messages["step_id"], value_set=_combined(step_ids)))
    found: dict[str, list[tuple[str | None, _Call]]] = {}
    for row in messages.sort_by([("step_id", "ascending"), ("sequence_id", "ascending")]).to_pylist():
        calls = found.setdefault(row["step_id"], [])
        for call in _readable_calls(row["tool_calls"]):
            function = call.get("function")
            named = (call.get("id"), function.get("name") if isinstance(function, dict) else None)
            call_id, name = (value if isinstance(value, str) else None for value in named)
            calls.append((row["run_id"], _Call(row["step_id"], call_id, name)))
    return found


def _readable_calls(text: str | None) -> list[dict[str, Any]]:
    """Return the calls of another run's message; none where they cannot be read: that run is quarantined for it."""
    try:
        return parse_array_of_objects(text, "tool_calls", [])
    except ConversionError:
        return []
