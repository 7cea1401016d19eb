"""Raw rows made by hand: rows of `terminal_runs` in which only what a test is about is set."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from trajectory_pipeline.conversion.convert import Conversion, convert_batch
from trajectory_pipeline.conversion.document import trajectory_document
from trajectory_pipeline.conversion.reference import convert_run
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

Raw = dict[str, Any]
Row = dict[str, Any]

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = "2026-03-01-12:00"

STOP_REASONS = (
    None,
    "end_turn",
    "error",
    "llm_api_error",
    "invalid_llm_response",
    "invalid_tool_call",
    "max_steps",
    "max_tokens_exceeded",
    "no_tool_call",
    "tool_rule",
    "cancelled",
    "insufficient_credits",
    "requires_approval",
    "context_window_overflow_in_system_prompt",
    "a reason of tomorrow",
)
"""Those of Letta 0.16.8, none, and one that it may add."""


def _row(table: SourceTable, values: Raw) -> Raw:
    unknown = values.keys() - {column.name for column in table.columns}
    assert not unknown, f"{table.name} has no column {unknown}"
    return {column.name: values.get(column.name) for column in table.columns}


AGENTS_ROW, MESSAGES_ROW, RUNS_ROW, STEPS_ROW = (_row(table, {}) for table in (AGENTS, MESSAGES, RUNS, STEPS))
METRICS_ROW = {"run": _row(RUN_METRICS, {}), "step": _row(STEP_METRICS, {})}


def step(step_id: str = "step-1", **values: Any) -> Raw:
    """A completed step of `run-1`, with usage."""
    number = int(step_id.rpartition("-")[2]) if step_id.rpartition("-")[2].isdigit() else 0
    defaults = {
        "id": step_id,
        "run_id": "run-1",
        "created_at": NOON + timedelta(seconds=number),
        "model": "gpt-4o-mini",
        "provider_name": "openai",
        "context_window_limit": 1000,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "total_tokens": 110,
        "status": "SUCCESS",
    }
    return _row(STEPS, {**defaults, **values})


def message(number: int, role: str = "assistant", reply: str | None = None, **values: Any) -> Raw:
    """A message of `run-1`; JSON columns may be given as values or, verbatim, as text."""
    content = [] if reply is None else [{"type": "text", "text": reply, "signature": None}]
    defaults = {
        "id": f"message-{number}",
        "run_id": "run-1",
        "step_id": "step-1",
        "sequence_id": number,
        "role": role,
        "created_at": NOON + timedelta(seconds=number),
        "is_deleted": False,
        "content": content,
        "tool_calls": [],
        "tool_returns": [],
        "approvals": [],
    }
    return _row(MESSAGES, {name: _json(value) for name, value in {**defaults, **values}.items()})


def call(name: str, arguments: Any = "{}", call_id: str = "call-1") -> Raw:
    return {"id": call_id, "function": {"arguments": arguments, "name": name}, "type": "function"}


def asked(name: str | None, call_id: str = "call-1", step_id: str = "step-0") -> Raw:
    """A call that another run made in a foreign step."""
    return {"step_id": step_id, "id": call_id, "name": name}


def returned(status: str = "success", call_id: str = "call-1", text: Any = "done", **more: Any) -> Raw:
    return {
        "tool_call_id": call_id,
        "status": status,
        "stdout": None,
        "stderr": None,
        "func_response": text,
        **more,
    }


def raw_run(*messages: Raw, steps: list[Raw] | None = None, **values: Any) -> Raw:
    """`run-1` with these messages; its own row's columns by name, the other parts as `agent`, `foreign_steps`, …"""
    parts: Raw = {
        "run_metrics": None,
        "foreign_steps": [],
        "asked_calls": [],
        "step_metrics": [],
        "agent": _row(AGENTS, {"id": "agent-1", "name": "Ada", "agent_type": "letta_v1_agent"}),
        "agent_tags": [],
        "context": None,
        "deleted_at": None,
        "schema_version": SCHEMA_VERSION,
    }
    given = {name: values.pop(name) for name in parts if name in values}
    defaults = {
        "id": "run-1",
        "status": "completed",
        "stop_reason": "end_turn",
        "completed_at": (NOON + timedelta(minutes=5)).replace(tzinfo=None),
        "created_at": NOON,
        "agent_id": "agent-1",
        "organization_id": "org-1",
        "metadata_": {"run_type": "send_message"},
    }
    run = _row(RUNS, {name: _json(value) for name, value in {**defaults, **values}.items()})
    own = [step()] if steps is None else steps
    return {"run_id": run["id"], "run": run, "steps": own, "messages": list(messages), **parts, **given}


def agent(agent_type: str | None) -> Raw:
    return _row(AGENTS, {"id": "agent-1", "name": "Ada", "agent_type": agent_type})


def step_metrics(step_id: str = "step-1", **values: Any) -> Raw:
    return _row(STEP_METRICS, {"id": step_id, **values})


def _json(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def converted(*messages: Raw, **values: Any) -> Row:
    """The trajectory of `raw_run` with the same arguments."""
    return convert_run(raw_run(*messages, **values), HOUR)


def documented(*messages: Raw, **values: Any) -> dict[str, Any]:
    """Its document."""
    return trajectory_document(converted(*messages, **values))


def messages_of(row: Row) -> list[Row]:
    """The messages of a trajectory, or of its document, in order."""
    return [message for turn in row["turns"] for message in turn["messages"]]


def batch_of(*raws: Raw) -> pa.RecordBatch:
    """The runs as the reader returns them."""
    return pa.RecordBatch.from_pylist(list(raws), schema=arrow_schema(TERMINAL_RUNS))


def batch_converted(*raws: Raw) -> Conversion:
    return convert_batch(batch_of(*raws), HOUR)
