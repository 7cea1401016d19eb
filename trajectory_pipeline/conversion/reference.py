"""The reference conversion: from the raw rows of one run, of any shape, to its trajectory.

The columnar conversion is faster and must give the same bytes; a run that it does not know is converted here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

from trajectory_pipeline.conversion.digest import content_digest, context_digest
from trajectory_pipeline.conversion.messages import MESSAGE_COLUMNS, convert_message, reply_convention
from trajectory_pipeline.conversion.outcome_rules import LastStep
from trajectory_pipeline.conversion.signals import argument_text
from trajectory_pipeline.conversion.summary import RunFacts, reject_out_of_range, summary_row
from trajectory_pipeline.conversion.tools import Denials, ToolCall, ToolReturn, ToolUse, row_names
from trajectory_pipeline.conversion.turns import Turn, group_into_turns
from trajectory_pipeline.conversion.usage import (
    TOKEN_COLUMNS,
    StepUsage,
    price_of_step,
    step_usage,
    sum_of_prices,
    sum_of_usage,
)
from trajectory_pipeline.lossless_json import (
    ConversionError,
    parse_json,
    parse_object,
    parse_strings,
    write_json,
)
from trajectory_pipeline.partition_keys import source_of_key
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, SIGNALS_VERSION

REQUIRED = {"run": ("id", "status", "agent_id"), "steps": ("id",), "messages": ("id", "role", "sequence_id")}
"""Columns of the raw rows in which a null leaves no trajectory to make."""
_OF_LAST_STEP = ("step_id", "status", "stop_reason", "error")

_RUN_COLUMNS = ("agent_id", "organization_id", "project_id", "ttft_ns", "status", "stop_reason", "background")
RUN_COLUMNS = {"run_id": "id", "start_time": "created_at", **{name: name for name in _RUN_COLUMNS}}
"""Columns of a trajectory that are copied from ``runs``, by the name there; so with the next three."""
AGENT_COLUMNS = {"agent_name": "name", "agent_type": "agent_type"}
STEP_COLUMNS = {
    "timestamp": "created_at",
    "provider": "provider_name",
    "endpoint": "model_endpoint",
    **{name: name for name in ("model", "model_handle", "context_window_limit", "status", "stop_reason", "feedback")},
}
COPIED = {
    "runs": ("completed_at", "conversation_id", *RUN_COLUMNS.values()),
    "agents": tuple(AGENT_COLUMNS.values()),
    "steps": ("id", "run_id", "error_type", *STEP_COLUMNS.values()),
    "messages": ("id", "step_id", "created_at", "conversation_id", "text", "denial_reason", *MESSAGE_COLUMNS),
}
"""Columns of each raw table that get into a trajectory without being parsed."""
_TIMES = frozenset({"created_at", "completed_at"})
"""Text in them is a time that Python cannot hold."""
_NO_TEXT = "holds a NUL character or is no UTF-8, and cannot be stored"
METRICS_COLUMNS = ("step_ns", "llm_request_ns", "tool_execution_ns")

Row = dict[str, Any]


@dataclass(frozen=True)
class QuarantinedRun:
    """A run that could not be converted: what was wrong with which value, and its raw rows as JSON text.

    ``steps`` and ``messages`` count its own steps and its messages among them.
    """

    run_id: str
    json_path: str
    error: str
    raw: str
    steps: int
    messages: int


def convert_run(raw: Mapping[str, Any], partition_key: str) -> Row:
    """Return the trajectory of a run, with the fields of ``TRAJECTORIES`` in Parquet.

    ``raw`` is a row of ``terminal_runs``; the order of the rows in it does not matter.

    Raises:
        ConversionError: a raw value cannot be converted; the error names its row and column.
    """
    _reject_missing(raw)
    _reject_unstorable(raw)
    # Only the run's messages, errors and ending are digested, not the rest of the document.
    digested: list[str] = []
    undigested: list[str] = []
    run, agent = raw["run"], raw["agent"] or {}
    path = f"runs[{run['id']}]"
    metadata = _metadata(run["metadata_"], f"{path}.metadata_", digested, undigested)
    config = parse_object(run["request_config"], f"{path}.request_config", [])
    convention = reply_convention(agent.get("agent_type"), config)
    raw_messages = sorted(raw["messages"], key=lambda message: (message["sequence_id"], message["id"]))
    if run["is_deleted"]:
        # Its messages may lack the mark.
        raw_messages = [{**message, "is_deleted": True} for message in raw_messages]
    converted = [convert_message(message, convention, digested, undigested) for message in raw_messages]
    denials = _denials(raw_messages, converted)
    step_ids = {message["id"]: message["step_id"] for message in raw_messages}
    _mark_denied(converted, step_ids, denials)
    grouped = group_into_turns([*raw["steps"], *raw["foreign_steps"]], converted, step_ids)
    metrics = {row["id"]: row for row in raw["step_metrics"]}
    usage = {step["id"]: step_usage(step) for step in raw["steps"]}
    turns = [_turn_row(turn, run["id"], usage, metrics, digested, undigested) for turn in grouped]
    own = [turn for turn in turns if turn["step_id"] in usage]
    messages = [message for turn in turns for message in turn["messages"]]
    if len(messages) != len(raw["messages"]) or len(own) != len(raw["steps"]):
        raise ConversionError(
            path,
            f"has {len(raw['messages'])} messages and {len(raw['steps'])} steps, of which"
            f" {len(messages)} and {len(own)} are in a turn",
        )
    created, completed = run["created_at"], run["completed_at"] and run["completed_at"].replace(tzinfo=UTC)
    run_ns = (raw["run_metrics"] or {}).get("run_ns")
    used = [usage[turn["step_id"]] for turn in own]
    row = summary_row(
        RunFacts(
            run_id=run["id"],
            agent_id=run["agent_id"],
            organization_id=run["organization_id"],
            status=run["status"],
            stop_reason=run["stop_reason"],
            conversation_id=run["conversation_id"],
            metadata=metadata,
            models=[turn["model"] for turn in own],
            feedback=[turn["feedback"] for turn in own],
            context_fill=max(
                (
                    turn["input_tokens"] / turn["context_window_limit"]
                    for turn in own
                    if turn["input_tokens"] and turn["context_window_limit"]
                ),
                default=None,
            ),
            last_step=LastStep.of(*(own[-1][name] for name in _OF_LAST_STEP)) if own else None,
            conversation_ids=[message["conversation_id"] for message in raw_messages],
            message_count=len(messages),
            person_messages=sum(message["kind"] == "user" for message in messages),
            has_reply=any(message["assistant_text"] for message in messages),
            tools=_tool_use(messages, step_ids, raw["asked_calls"], denials),
            denied=denials.count,
            refusals=sum(any(part["type"] == "refusal" for part in message["content"]) for message in messages),
            empty_final_answer=_is_final_answer_empty(messages),
        )
    )
    row |= sum_of_usage(used)
    row |= {
        "duration_ns": _nanoseconds(created, completed),
        "run_ns": run["total_duration_ns"] if run_ns is None else run_ns,
        "cost_usd": sum_of_prices(
            [
                price_of_step(turn["model"], turn["provider"], turn["timestamp"] or created, of_step)
                for turn, of_step in zip(own, used, strict=True)
            ]
        ),
        "continues_run_id": continued_run(
            run["id"],
            {step["id"]: step["run_id"] for step in raw["foreign_steps"]},
            [message["step_id"] for message in raw_messages],
        ),
        "escaped": list(dict.fromkeys([*digested, *undigested])),
        "schema_version": SCHEMA_VERSION,
        "signals_version": SIGNALS_VERSION,
        "partition_key": partition_key,
        "source": source_of_key(partition_key),
    }
    reject_out_of_range(row, path)
    row |= {name: run[source] for name, source in RUN_COLUMNS.items()}
    row |= {name: agent.get(source) for name, source in AGENT_COLUMNS.items()}
    row |= {
        "tags": raw["agent_tags"],
        "end_time": completed,
        "turns": turns,
        "context": raw["context"],
        "context_digest": context_digest(raw["context"]),
        "deleted_at": raw["deleted_at"],
        "erased": bool(raw.get("erased")),
    }
    return {**row, "content_digest": content_digest(row, digested)}


def quarantined_run(raw: Mapping[str, Any], json_path: str, error: str) -> QuarantinedRun:
    """Return what is stored of a run that cannot be converted."""
    return QuarantinedRun(
        run_id=raw["run_id"],
        json_path=json_path,
        error=error,
        raw=json.dumps(raw, default=str, ensure_ascii=False),
        steps=len(raw["steps"]),
        messages=len(raw["messages"]),
    )


def _reject_missing(raw: Mapping[str, Any]) -> None:
    for name, columns in REQUIRED.items():
        rows = [raw[name]] if name == "run" else raw[name]
        for index, row in enumerate(rows):
            for column in columns:
                if row[column] is None:
                    which = row["id"] or (raw["run_id"] if name == "run" else f"{index} of runs[{raw['run_id']}]")
                    raise ConversionError(f"{name.removesuffix('s')}s[{which}].{column}", "is null")


def _reject_unstorable(raw: Mapping[str, Any]) -> None:
    """Reject what no sink can hold in a column that is copied."""
    for table, rows in (
        ("runs", [raw["run"]]),
        ("steps", [*raw["steps"], *raw["foreign_steps"]]),
        ("messages", raw["messages"]),
        ("agents", [raw["agent"]] if raw["agent"] else []),
    ):
        for row, column in product(rows, COPIED[table]):
            value = row[column]
            if isinstance(value, str) and (column in _TIMES or "\0" in value):
                problem = f"is {value}, and only the years 1 to 9999 can be stored" if column in _TIMES else _NO_TEXT
                raise ConversionError(f"{table}[{row['id']}].{column}", problem)
    if any("\0" in tag for tag in raw["agent_tags"]):
        raise ConversionError(f"runs[{raw['run_id']}].agent_tags", _NO_TEXT)


def _metadata(text: str | None, path: str, digested: list[str], undigested: list[str]) -> dict[str, Any]:
    """Return the run's metadata, of which its error and its type get into the document."""
    found: list[str] = []
    metadata = parse_object(text, path, found)
    in_error = (f"{path}.error.", f"{path}.error[", f"{path}.error (")
    digested += [at for at in found if at == f"{path}.error" or at.startswith(in_error)]
    undigested += [at for at in found if at == f"{path}.run_type"]
    return metadata


def _denials(raw_messages: Sequence[Mapping[str, Any]], messages: Sequence[Row]) -> Denials:
    """Return what a person denied in these messages."""
    return Denials.made_in(
        (entry["tool_call_id"], raw["step_id"])
        for raw, message in zip(raw_messages, messages, strict=True)
        for entry in message["approvals"]
        if entry["approve"] is False
    )


def _mark_denied(messages: Sequence[Row], step_ids: Mapping[str, str | None], denials: Denials) -> None:
    """Mark the returns of calls that a person denied."""
    for message in messages:
        for item in message["tool_returns"]:
            item["denied"] = denials.cover(item["tool_call_id"], step_ids[message["message_id"]])


def _tool_use(
    messages: Sequence[Row],
    step_ids: Mapping[str, str | None],
    asked: Iterable[Mapping[str, Any]],
    denials: Denials,
) -> ToolUse:
    calls: list[ToolCall] = []
    returns: list[ToolReturn] = []
    for at, message in enumerate(messages):
        waits, step_id = message["role"] == "approval", step_ids[message["message_id"]]
        calls += [
            ToolCall(at, call["id"], call["name"], argument_text(call), waits, denials.cover(call["id"], step_id))
            for call in message["tool_calls"]
        ]
        items = message["tool_returns"]
        names = row_names(message["name"], message["role"], [item["denied"] for item in items])
        returns += [
            ToolReturn(at, item["tool_call_id"], item["status"], item["denied"], name)
            for item, name in zip(items, names, strict=True)
        ]
    return ToolUse(calls, returns, denials.of(asked))


def _turn_row(
    turn: Turn,
    run_id: str,
    usage: Mapping[str, StepUsage],
    metrics: Mapping[str, Mapping[str, Any]],
    digested: list[str],
    undigested: list[str],
) -> Row:
    step = turn.step or {}
    own = usage.get(turn.step_id) if turn.step_id is not None else None
    measured = metrics.get(turn.step_id or "", {})
    path = f"steps[{turn.step_id}]"
    owner = step.get("run_id")
    return {
        "step_id": turn.step_id,
        "step_run_id": owner if owner != run_id else None,
        **{name: step.get(source) for name, source in STEP_COLUMNS.items()},
        **{name: own and getattr(own, name) for name in TOKEN_COLUMNS},
        "error": step_error(step, path, digested if own else undigested) if step else None,
        "tags": parse_strings(step.get("tags"), f"{path}.tags", undigested),
        **{name: measured.get(name) for name in METRICS_COLUMNS},
        "messages": turn.messages,
    }


def step_error(step: Mapping[str, Any], path: str, escapes: list[str]) -> Row | None:
    """Return the error of a raw row of ``steps``; None where it has none.

    Raises:
        ConversionError: ``error_data`` is no JSON.
    """
    data = parse_json(step["error_data"], f"{path}.error_data", escapes)
    if step["error_type"] is None and data is None:
        return None
    message = data.get("message") if isinstance(data, dict) else data
    return {
        "type": step["error_type"],
        "message": message if isinstance(message, str) else None,
        "detail": None if data is None else write_json(data),
    }


def _is_final_answer_empty(messages: Sequence[Row]) -> bool | None:
    for message in reversed(messages):
        if message["role"] in ("assistant", "approval") and not message["approvals"]:
            return not message["assistant_text"] and not message["tool_calls"]
    return None


def continued_run(run_id: str, owners: Mapping[str, str | None], step_ids: Iterable[str | None]) -> str | None:
    """Return the run whose step the earliest of this run's messages name, where that is another run.

    ``owners`` are the runs of the foreign steps, by step id; ``step_ids`` are of the messages, in order.
    """
    named = (owners.get(step_id) for step_id in step_ids if step_id is not None)
    return next((owner for owner in named if owner is not None and owner != run_id), None)


def _nanoseconds(start: datetime | None, end: datetime | None) -> int | None:
    return None if start is None or end is None else (end - start) // timedelta(microseconds=1) * 1000
