"""Raw rows of a run (``schema.raw``) from what a source knows: the columns that it does not name are null.

JSON columns are written here, so that every source writes what Letta would: content parts, tool calls and returns.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from trajectory_pipeline.partition_keys import source_run_id, storable_id, storable_text
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.raw import (
    AGENTS,
    MESSAGES,
    RUN_METRICS,
    RUNS,
    STEP_METRICS,
    STEPS,
    TERMINAL_RUNS,
    SourceTable,
)
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION

Row = dict[str, Any]
_COLUMNS = {
    table.name: tuple(column.name for column in table.columns)
    for table in (RUNS, STEPS, MESSAGES, RUN_METRICS, STEP_METRICS, AGENTS)
}
_LARGEST = 2**63
_INDEXED = ("agent_id", "conversation_id")
"""Columns of ids that a source gives and that are in an index of Postgres, beside the run's own."""


def json_text(value: Any) -> str:
    """Return a value as JSON text; ASCII, so that a lone surrogate stays an escape."""
    return json.dumps(value, separators=(",", ":"))


def text_part(text: str) -> Row:
    """Return the content part of a text."""
    return {"type": "text", "text": text}


def reasoning_part(text: str, signature: str | None = None) -> Row:
    """Return the content part of what a model reasoned, in its own words."""
    return {"type": "reasoning", "is_native": True, "reasoning": text, "signature": signature}


def tool_call(call_id: str | None, name: str | None, arguments: Any) -> Row:
    """Return a tool call; arguments that are no text become JSON text."""
    written = arguments if isinstance(arguments, str) else json_text(arguments)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": written}}


def tool_return(call_id: str | None, text: str | None, status: str | None, **more: Any) -> Row:
    """Return a tool's return; ``status`` is None where the source does not say whether the tool succeeded.

    ``more`` are fields as the source has them, which are kept beside.
    """
    return {"tool_call_id": call_id, "status": status, "func_response": text, **more}


@dataclass(frozen=True)
class RunRows:
    """What a source knows of a run; ids are its own, and get the source's name when the rows are written.

    Attributes:
        run: columns of ``runs``; ``id`` and ``status`` at the least.
        steps: columns of ``steps``; the run's id is added.
        foreign_steps: steps of other runs that messages name, with the own ids of these runs.
        messages: columns of ``messages`` in order, which numbers them if they have no ``sequence_id``.
        agent: columns of ``agents``; None where the source knows none.
        system_prompt: what the agent was told.
        tools: JSON text of the agent's tool definitions.
        context_source: ``at_capture`` where both are as they stand now, ``provider_trace`` where the run recorded them.
    """

    run: Row
    steps: Sequence[Row] = ()
    messages: Sequence[Row] = ()
    foreign_steps: Sequence[Row] = ()
    step_metrics: Sequence[Row] = ()
    agent: Row | None = None
    agent_tags: Sequence[str] = ()
    system_prompt: str | None = None
    tools: str | None = None
    context_source: str = "at_capture"


def unreadable_run(native_id: str, place: str, problem: str, text: str | None = None) -> RunRows:
    """Return the rows of what cannot be read as a run: the conversion quarantines them, with the place."""
    return RunRows(
        run={"id": native_id, "status": "unknown", "agent_id": "unknown"},
        messages=[unreadable_message(place, problem, text)],
    )


def unreadable_message(place: str, problem: str, text: str | None = None) -> Row:
    """Return a message that no conversion accepts, and that names the place of what cannot be read."""
    return {"id": f"{place}: {problem}", "role": None, "content": text}


def raw_row(source: str, rows: RunRows) -> Row:
    """Return a row of ``terminal_runs``.

    Raises:
        KeyError: a column is named that does not exist: a defect of the source's code.
    """
    run_id = source_run_id(source, rows.run["id"])
    steps = [_completed(STEPS, {**step, "run_id": run_id}) for step in rows.steps]
    messages = [
        _completed(MESSAGES, {"sequence_id": number, **message, "run_id": run_id})
        for number, message in enumerate(rows.messages, 1)
    ]
    foreign = [
        _completed(STEPS, {**step, "run_id": step.get("run_id") and source_run_id(source, step["run_id"])})
        for step in rows.foreign_steps
    ]
    has_context = rows.system_prompt is not None or rows.tools is not None
    return {
        "run_id": run_id,
        "run": _completed(RUNS, {**rows.run, "id": run_id}),
        "run_metrics": None,
        "steps": sorted(steps, key=lambda step: str(step["id"])),
        "foreign_steps": sorted(foreign, key=lambda step: str(step["id"])),
        "asked_calls": [],
        "step_metrics": [_completed(STEP_METRICS, row) for row in sorted(rows.step_metrics, key=lambda r: r["id"])],
        "messages": messages,
        "agent": None if rows.agent is None else _with_ids(_completed(AGENTS, rows.agent), "id"),
        "agent_tags": sorted(map(_storable, rows.agent_tags)),
        "context": {
            "system_prompt": None if rows.system_prompt is None else _storable(rows.system_prompt),
            "tools": rows.tools,
            "source": rows.context_source,
        }
        if has_context
        else None,
        "deleted_at": None,
        "erased": None,
        "schema_version": SCHEMA_VERSION,
    }


def raw_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    """Return rows of ``terminal_runs`` as Arrow."""
    return pa.RecordBatch.from_pylist(list(rows), schema=arrow_schema(TERMINAL_RUNS))


def shown_columns(**tables: str) -> dict[str, dict[str, str]]:
    """Return the columns that a source can fill, by table, for ``SourceSnapshot``; each is given as names."""
    return {name: dict.fromkeys(columns.split(), "") for name, columns in tables.items()}


def absent_columns(shown: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the declared columns that are not shown, ``table.column``."""
    return [
        f"{table}.{column}"
        for table, columns in _COLUMNS.items()
        for column in columns
        if column not in shown.get(table, {})
    ]


def _completed(table: SourceTable, row: Mapping[str, Any]) -> Row:
    unknown = row.keys() - set(_COLUMNS[table.name])
    if unknown:
        raise KeyError(f"{table.name} has no columns {sorted(unknown)}")
    return _with_ids({name: _storable(row.get(name)) for name in _COLUMNS[table.name]}, *_INDEXED)


def _with_ids(row: Row, *names: str) -> Row:
    return {**row, **{name: storable_id(row[name]) for name in names if isinstance(row.get(name), str)}}


def _storable(value: Any) -> Any:
    """Return a value that Arrow can hold: a text with a lone surrogate cannot be UTF-8, and gets its escapes.

    A number that no column holds becomes null beside a text that says so nowhere: callers keep it in JSON.
    """
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, int) and not isinstance(value, bool) and not -_LARGEST <= value < _LARGEST:
        raise OverflowError(f"{value} is more than a column can hold")
    return value


def utc_time(value: Any) -> datetime | None:
    """Return an ISO-8601 time, or milliseconds since 1970, as UTC; None where it is neither."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def naive(moment: datetime | None) -> datetime | None:
    """Return a time as ``runs.completed_at`` has it: UTC without a zone."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def whole(value: Any) -> int | None:
    """Return a count if it is one that a column can hold, else None."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST
    return value if is_count else None


def object_of(value: Any) -> Row:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def texts(value: Any) -> Iterable[str]:
    """Yield the texts of a list, or the one text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, str))
