"""From the raw rows of a run to its trajectory, one run at a time: the specification, for a run of any shape.

Belongs here: putting together what the modules beside this one find, and what is kept of a run that cannot be
converted. Does not belong here: any rule about a single message, an ending or a signal; and speed (``ordinary``).
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trajectory_pipeline.lossless_json import (
    ConversionError,
    EscapedPaths,
    parse_json,
    parse_object,
    parse_strings,
    write_json,
)
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, SIGNALS_VERSION
from trajectory_pipeline.trajectories.digest import content_digest
from trajectory_pipeline.trajectories.messages import convert_message, reply_convention
from trajectory_pipeline.trajectories.outcome_rules import LastStep, classify_outcome, last_step, run_error
from trajectory_pipeline.trajectories.signals import trajectory_signals
from trajectory_pipeline.trajectories.turns import Turn, group_into_turns
from trajectory_pipeline.trajectories.usage import MAX_COUNT, StepUsage, cost_usd, step_usage, total_usage

_TRAJECTORY_IDS = uuid.UUID("8f0d9d1e-6f5b-5e0a-9c39-3f0f6a0a7b11")
"""Namespace of trajectory ids; never changed, so that a run's trajectory id is the same for ever."""

_REQUIRED = {"run": ("id", "status", "agent_id"), "steps": ("id",), "messages": ("id", "role", "sequence_id")}
"""Columns of the raw rows in which a null leaves no trajectory to make."""

_COUNTS = (
    "duration_ns",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
_MAX_COST = 10**9
"""``cost_usd`` has nine digits before the point."""

Row = dict[str, Any]


@dataclass(frozen=True)
class QuarantinedRun:
    """A run that could not be converted, whole.

    Attributes:
        run_id: the run.
        place: which row and column.
        error: what was wrong with it.
        raw: its raw rows as JSON text.
        steps: own steps among them.
        messages: messages among them.
    """

    run_id: str
    json_path: str
    error: str
    raw: str
    steps: int
    messages: int


def convert_run(raw: Mapping[str, Any], partition_key: str) -> Row:
    """Return the trajectory of a run, with the fields of ``TRAJECTORIES`` in Parquet.

    The order in which the raw rows stand does not matter.

    Args:
        raw: a row of ``terminal_runs``.
        partition_key: Dagster's key of the partition that it belongs to.

    Raises:
        ConversionError: a raw value cannot be converted; the error names its row and column.
    """
    _refuse_missing(raw)
    # Of what the run said and did, and of the rest that gets into the document: only the first is digested.
    escapes, beside = EscapedPaths(), EscapedPaths()
    run = raw["run"]
    place = f"runs[{run['id']}]"
    metadata = _metadata(run["metadata_"], f"{place}.metadata_", escapes, beside)
    agent = raw["agent"] or {}
    how = reply_convention(
        agent.get("agent_type"), parse_object(run["request_config"], f"{place}.request_config", EscapedPaths())
    )
    raw_messages = sorted(raw["messages"], key=lambda message: (message["sequence_id"], message["id"]))
    messages = [convert_message(message, how, escapes, beside) for message in raw_messages]
    denied = _mark_denied(raw_messages, messages)
    ordered = group_into_turns(
        [*raw["steps"], *raw["foreign_steps"]],
        messages,
        {message["id"]: message["step_id"] for message in raw_messages},
    )
    metrics = {row["id"]: row for row in raw["step_metrics"]}
    usage = {step["id"]: step_usage(step) for step in raw["steps"]}
    turns = [_turn_row(turn, run["id"], usage, metrics, escapes, beside) for turn in ordered]
    own = [turn for turn in turns if turn["step_id"] in usage]
    own_steps = [turn.step for turn in ordered if turn.step is not None and turn.step_id in usage]
    last = last_step([_last_step(turn) for turn in own])
    error = run_error(metadata.get("error"), last)
    how_it_ended = classify_outcome(
        run["status"],
        run["stop_reason"],
        last,
        error,
        has_steps=bool(own),
        says_or_calls=any(message["assistant_text"] or message["tool_calls"] for message in messages),
    )
    in_order = [message for turn in turns for message in turn["messages"]]
    tools = [call["name"] for message in in_order for call in message["tool_calls"]]
    started, ended = run["created_at"], _aware(run["completed_at"])
    run_metrics = raw["run_metrics"] or {}
    used = list(usage.values())
    row: Row = {
        "run_id": run["id"],
        "trajectory_id": trajectory_id(run["id"]),
        "agent_id": run["agent_id"],
        "agent_name": agent.get("name"),
        "agent_type": agent.get("agent_type"),
        "organization_id": run["organization_id"],
        "conversation_id": run["conversation_id"] or _agreed(raw_messages, "conversation_id"),
        "project_id": run["project_id"],
        "tags": raw["agent_tags"],
        "start_time": started,
        "end_time": ended,
        "duration_ns": _nanoseconds(started, ended),
        "run_ns": _first(run_metrics.get("run_ns"), run["total_duration_ns"]),
        "ttft_ns": run["ttft_ns"],
        "status": run["status"],
        "stop_reason": run["stop_reason"],
        "run_type": metadata["run_type"] if isinstance(metadata.get("run_type"), str) else None,
        "background": run["background"],
        "error": None
        if error is None
        else {"type": error.type, "message": error.message, "detail": error.detail, "step_id": error.step_id},
        "step_count": len(usage),
        "message_count": len(in_order),
        "tools_used": _in_order_of_first_use(tools),
        "models": _in_order_of_first_use(turn["model"] for turn in own),
        "input_tokens": sum(step.input_tokens for step in used),
        "output_tokens": sum(step.output_tokens for step in used),
        "total_tokens": sum(step.total_tokens for step in used),
        "cached_input_tokens": total_usage(step.cached for step in used),
        "cache_write_tokens": total_usage(step.cache_write for step in used),
        "reasoning_tokens": total_usage(step.reasoning for step in used),
        "usage_reported": any(step.reported for step in used),
        "cost_usd": cost_usd(((step, usage[step["id"]]) for step in own_steps), started),
        "continues_run_id": _continues(raw["foreign_steps"], raw_messages, run["id"]),
        "execution_status": how_it_ended.status,
        "execution_cause": how_it_ended.cause,
        "heuristic_outcome": how_it_ended.outcome,
        "heuristic_confidence": how_it_ended.confidence,
        "heuristic_reasoning": list(how_it_ended.reasoning),
        "signals": trajectory_signals(
            turns,
            _context_fills(own),
            [turn["feedback"] for turn in own],
            denied,
        ),
        "turns": turns,
        "context": raw["context"],
        "escaped": list(dict.fromkeys([*escapes.paths, *beside.paths])),
        "schema_version": SCHEMA_VERSION,
        "signals_version": SIGNALS_VERSION,
        "partition_key": partition_key,
        "deleted_at": raw["deleted_at"],
        "erased": bool(raw.get("erased")),
    }
    row["content_digest"] = content_digest(row, escapes.paths)
    if row["message_count"] != len(raw["messages"]) or len(own) != len(raw["steps"]):
        raise ConversionError(
            place,
            f"has {len(raw['messages'])} messages and {len(raw['steps'])} steps, of which"
            f" {row['message_count']} and {len(own)} found a place in a turn",
        )
    reject_out_of_range_times(row, place)
    return row


def trajectory_id(run_id: str) -> str:
    """Return the trajectory id of a run: a UUID made of its id, the same for ever."""
    return str(uuid.uuid5(_TRAJECTORY_IDS, run_id))


def _refuse_missing(raw: Mapping[str, Any]) -> None:
    for name, columns in _REQUIRED.items():
        rows = [raw[name]] if name == "run" else raw[name]
        for index, row in enumerate(rows):
            for column in columns:
                if row[column] is None:
                    which = row["id"] or (raw["run_id"] if name == "run" else f"{index} of runs[{raw['run_id']}]")
                    raise ConversionError(f"{name.removesuffix('s')}s[{which}].{column}", "is null")


def reject_out_of_range_times(row: Mapping[str, Any], place: str) -> None:
    """Refuse what is within bounds in every raw row, but not in their sum.

    Raises:
        ConversionError: a count or the cost is more than the sinks can hold.
    """
    for name in _COUNTS:
        if row[name] is not None and abs(row[name]) > MAX_COUNT:
            raise ConversionError(place, f"has {row[name]} as {name}, more than the sinks can hold")
    if row["cost_usd"] is not None and abs(row["cost_usd"]) >= _MAX_COST:
        raise ConversionError(place, f"cost {row['cost_usd']} dollars, more than the sinks can hold")


def _metadata(text: str | None, place: str, escapes: EscapedPaths, beside: EscapedPaths) -> dict[str, Any]:
    """Return the run's metadata, of which its error and its type get into the document."""
    found = EscapedPaths()
    metadata = parse_object(text, place, found)
    of_error = (f"{place}.error.", f"{place}.error[", f"{place}.error (")
    escapes.paths += [at for at in found.paths if at == f"{place}.error" or at.startswith(of_error)]
    beside.paths += [at for at in found.paths if at == f"{place}.run_type"]
    return metadata


def _mark_denied(raw_messages: Sequence[Mapping[str, Any]], messages: Sequence[Row]) -> int:
    """Mark the returns of calls that a person denied, and return how many calls were denied."""
    denied: set[str] = set()
    legacy_steps: set[str] = set()
    legacy = 0
    for raw, message in zip(raw_messages, messages, strict=True):
        for entry in message["approvals"]:
            if entry["approve"] is not False:
                continue
            if entry["tool_call_id"] is not None:
                denied.add(entry["tool_call_id"])
            else:
                # Before Letta 0.14 a decision names the request's message, and one step asks for one call.
                legacy += 1
                legacy_steps.add(raw["step_id"])
    for raw, message in zip(raw_messages, messages, strict=True):
        for item in message["tool_returns"]:
            item["denied"] = item["tool_call_id"] in denied or (
                raw["step_id"] is not None and raw["step_id"] in legacy_steps
            )
    return len(denied) + legacy


def _turn_row(
    turn: Turn,
    run_id: str,
    usage: Mapping[str, StepUsage],
    metrics: Mapping[str, Mapping[str, Any]],
    escapes: EscapedPaths,
    beside: EscapedPaths,
) -> Row:
    step = turn.step or {}
    own = usage.get(turn.step_id) if turn.step_id is not None else None
    measured = metrics.get(turn.step_id or "", {})
    place = f"steps[{turn.step_id}]"
    owner = step.get("run_id")
    return {
        "step_id": turn.step_id,
        "step_run_id": owner if owner != run_id else None,
        "timestamp": step.get("created_at"),
        "model": step.get("model"),
        "model_handle": step.get("model_handle"),
        "provider": step.get("provider_name"),
        "endpoint": step.get("model_endpoint"),
        "context_window_limit": step.get("context_window_limit"),
        "input_tokens": own and own.input_tokens,
        "output_tokens": own and own.output_tokens,
        "total_tokens": own and own.total_tokens,
        "cached_input_tokens": own and own.cached,
        "cache_write_tokens": own and own.cache_write,
        "reasoning_tokens": own and own.reasoning,
        "status": step.get("status"),
        "stop_reason": step.get("stop_reason"),
        "error": step_error(step, place, escapes if own else beside) if step else None,
        "feedback": step.get("feedback"),
        "tags": parse_strings(step.get("tags"), f"{place}.tags", beside),
        "step_ns": measured.get("step_ns"),
        "llm_request_ns": measured.get("llm_request_ns"),
        "tool_execution_ns": measured.get("tool_execution_ns"),
        "messages": turn.messages,
    }


def step_error(step: Mapping[str, Any], place: str, escapes: EscapedPaths) -> Row | None:
    """Return the error of a raw row of ``steps``; None where it has none.

    Raises:
        ConversionError: ``error_data`` is no JSON.
    """
    data = parse_json(step["error_data"], f"{place}.error_data", escapes)
    if step["error_type"] is None and data is None:
        return None
    message = data.get("message") if isinstance(data, dict) else data
    return {
        "type": step["error_type"],
        "message": message if isinstance(message, str) else None,
        "detail": None if data is None else write_json(data),
    }


def _last_step(turn: Row) -> LastStep:
    error = turn["error"] or {}
    return LastStep(
        step_id=turn["step_id"],
        error_type=error.get("type"),
        error_message=error.get("message"),
        stop_reason=turn["stop_reason"],
        failed=bool(error) or turn["status"] == "FAILED",
    )


def _context_fills(own: Sequence[Row]) -> list[float]:
    return [
        turn["input_tokens"] / turn["context_window_limit"]
        for turn in own
        if turn["input_tokens"] and turn["context_window_limit"]
    ]


def _continues(
    foreign_steps: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]], run_id: str
) -> str | None:
    """Return the run whose step the earliest of this run's messages name, where that is another run."""
    owners = {step["id"]: step["run_id"] for step in foreign_steps}
    for message in messages:
        owner = owners.get(message["step_id"])
        if owner is not None and owner != run_id:
            return str(owner)
    return None


def _agreed(rows: Sequence[Mapping[str, Any]], name: str) -> str | None:
    values = {row[name] for row in rows}
    return str(values.pop()) if len(values) == 1 and None not in values else None


def _in_order_of_first_use(names: Any) -> list[str]:
    return list(dict.fromkeys(name for name in names if name is not None))


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _aware(naive_utc: datetime | None) -> datetime | None:
    return None if naive_utc is None else naive_utc.replace(tzinfo=UTC)


def _nanoseconds(start: datetime | None, end: datetime | None) -> int | None:
    if start is None or end is None:
        return None
    elapsed = end - start
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000_000 + elapsed.microseconds * 1000


def quarantined_run(raw: Mapping[str, Any], place: str, problem: str) -> QuarantinedRun:
    """Return what is kept of a run that cannot be converted."""
    return QuarantinedRun(
        run_id=raw["run_id"],
        json_path=place,
        error=problem,
        raw=json.dumps(raw, default=str, ensure_ascii=False),
        steps=len(raw["steps"]),
        messages=len(raw["messages"]),
    )
