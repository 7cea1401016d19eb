"""Erasing the content of raw rows that were deleted at the source: texts go, ids, counts and times stay.

Whatever may stay is listed, so that a new column is erased unless it is added to the list. The structure stays, with
``[erased]`` instead of texts: how many calls a run made, how many of them failed and how it ended remain true.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.messages import flag_or_none, message_kind, string_or_none
from trajectory_pipeline.conversion.outcome_rules import CAUSE_BY_CODE, REQUEST_REFUSALS
from trajectory_pipeline.lossless_json import ConversionError, canonical_json, parse_json, write_json
from trajectory_pipeline.schema.arrow import arrow_schema, rows_of
from trajectory_pipeline.schema.raw import TERMINAL_RUNS

ERASED_TEXT = "[erased]"

_AUDIT = frozenset({"_created_by_id", "_last_updated_by_id"})
_RETAINED: Mapping[str, frozenset[str]] = {
    "run": _AUDIT
    | {"id", "status", "stop_reason", "agent_id", "conversation_id", "organization_id", "project_id"}
    | {"base_template_id", "template_id", "deployment_id"},
    "steps": _AUDIT
    | {"id", "run_id", "agent_id", "organization_id", "project_id", "provider_id", "provider_name"}
    | {"provider_category", "model", "model_handle", "model_endpoint", "stop_reason", "status", "origin", "tid"}
    | {"trace_id", "request_id"},
    "messages": _AUDIT
    | {"id", "run_id", "step_id", "agent_id", "conversation_id", "organization_id", "role", "tool_call_id"}
    | {"approval_request_id", "model", "otid", "group_id", "sender_id", "batch_item_id"},
    "run_metrics": frozenset({"id"}),
    "step_metrics": frozenset({"id", "run_id"}),
    "agent": frozenset({"id", "agent_type", "project_id"}),
}
"""Text columns that stay: ids, and values from closed lists of Letta's or a provider's."""
_PART_TYPES = frozenset(
    {"text", "reasoning", "summarized_reasoning", "redacted_reasoning", "omitted_reasoning", "image", "refusal"}
    | {"tool_call", "tool_return"}
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
_FROM_AN_AGENT = "[Incoming message from agent with ID"

Row = dict[str, Any]


def erase_deleted(batch: pa.RecordBatch, only: Collection[str] | None = None) -> pa.RecordBatch:
    """Return rows of ``terminal_runs`` without the content of what is deleted: a run or a message.

    ``only``: of these runs; None: of all. Erasing twice changes nothing.
    """
    deleted = has_deleted_content(batch)
    if only is not None:
        deleted = pc.and_(deleted, pc.is_in(batch.column("run_id"), value_set=pa.array(sorted(only), pa.string())))
    if not pc.any(deleted).as_py():
        return batch
    schema = arrow_schema(TERMINAL_RUNS)
    # Times as numbers: Python cannot hold all that Arrow and Postgres can.
    rows = rows_of(batch.cast(_timeless(batch.schema)))
    erased = [_erased(row) if is_deleted else row for row, is_deleted in zip(rows, deleted.to_pylist(), strict=True)]
    return pa.RecordBatch.from_pylist(erased, schema=_timeless(schema)).cast(schema)


def count_kept(batch: pa.RecordBatch) -> int:
    """Return how many raw rows hold content that is deleted at the source and was not erased."""
    kept = pc.and_not(has_deleted_content(batch), _flags(batch.column("erased")))
    return int(pc.sum(kept).as_py() or 0)


def _timeless(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(_without_times(field.type)) for field in schema])


def _without_times(kind: Any) -> Any:
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_times(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_times(kind.value_type)))
    return pa.int64() if pa.types.is_timestamp(kind) else kind


def has_deleted_content(batch: pa.RecordBatch) -> Any:
    """Return for each raw row, as an Arrow array, whether it, or a message of it, is deleted at the source."""
    messages: Any = batch.column("messages")
    run: Any = batch.column("run")
    run_deleted: Any = pc.is_valid(batch.column("deleted_at"))
    owners = pc.list_parent_indices(messages).filter(_flags(messages.flatten().field("is_deleted")))
    by_message: Any = pc.is_in(pa.array(range(batch.num_rows), owners.type), value_set=owners)
    return pc.or_(pc.or_(run_deleted, _flags(run.field("is_deleted"))), by_message)


def _flags(column: Any) -> Any:
    return pc.fill_null(column, False)


def _erased(row: Row) -> Row:
    placeholders = _Placeholders()
    whole = row["deleted_at"] is not None or bool(row["run"]["is_deleted"])
    messages = [
        _unless_odd(lambda one: _message(one, placeholders), message, "messages")
        if whole or message["is_deleted"]
        else message
        for message in row["messages"]
    ]
    if not whole:
        return {**row, "messages": messages, "erased": True}
    return {
        **row,
        "run": _unless_odd(_run, row["run"], "run"),
        "run_metrics": row["run_metrics"] and _texts(row["run_metrics"], "run_metrics"),
        "steps": [_unless_odd(_step, step, "steps") for step in row["steps"]],
        "foreign_steps": [_unless_odd(_step, step, "steps") for step in row["foreign_steps"]],
        "asked_calls": [
            {**call, "name": None if call["name"] is None else placeholders.name(call["name"])}
            for call in row["asked_calls"] or ()
        ],
        "step_metrics": [_texts(metrics, "step_metrics") for metrics in row["step_metrics"]],
        "messages": messages,
        "agent": row["agent"] and _texts(row["agent"], "agent"),
        "agent_tags": [],
        "context": None,
        "erased": True,
    }


def _texts(row: Row, table: str) -> Row:
    """Return a raw row without the texts that are not listed; numbers, flags and times stay."""
    return {
        name: None if isinstance(value, str) and name not in _RETAINED[table] else value for name, value in row.items()
    }


def _unless_odd(erase: Callable[[Row], Row], row: Row, table: str) -> Row:
    """Return a raw row erased; without any text that is not listed if it is so odd that erasing its parts fails."""
    try:
        return erase(row)
    except Exception:
        return _texts(row, table)


def _run(run: Row) -> Row:
    return {**_texts(run, "run"), "metadata_": _json(run["metadata_"], _metadata)}


class _Placeholders:
    """Placeholders that are equal where the texts were, so that distinct tools and repeated calls can be counted."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._arguments: dict[str, str] = {}

    def name(self, text: str) -> str:
        return self._names.setdefault(text, f"[erased {len(self._names) + 1}]")

    def arguments(self, text: str) -> str:
        with contextlib.suppress(ConversionError):
            text = canonical_json(parse_json(text, "", []))
        return self._arguments.setdefault(text, f"[erased {len(self._arguments) + 1}]")


def _json(text: str | None, erase: Callable[[Any], Any], unreadable: str | None = None) -> str | None:
    """Return JSON text with its texts erased; ``unreadable`` where it is no JSON."""
    if text is None:
        return None
    try:
        value = parse_json(text, "", [])
    except ConversionError:
        return unreadable
    return write_json(erase(value))


def _entries(text: str | None, erase: Callable[[Row], Row]) -> str | None:
    """Return a JSON array of objects with the texts of each erased."""

    def each(value: Any) -> Any:
        return [erase(entry) for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []

    return _json(text, each, "[]")


def _message(message: Row, placeholders: _Placeholders) -> Row:
    parts = _parsed_parts(message)
    kind = message_kind(message["role"], parts)
    return {
        **_texts(message, "messages"),
        "content": write_json([_part(part, kind) for part in parts]) if parts else message["content"] and "[]",
        "tool_calls": _entries(message["tool_calls"], lambda call: _call(call, placeholders)),
        "tool_returns": _entries(message["tool_returns"], _return),
        "approvals": _entries(message["approvals"], _approval),
    }


def _parsed_parts(message: Row) -> list[Row]:
    value = None
    with contextlib.suppress(ConversionError):
        value = parse_json(message["content"], "", [])
    parts = [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
    return parts or ([{"type": "text", "text": message["text"]}] if message["text"] else [])


def _part(part: Row, kind: str) -> Row:
    kind_of_part = part.get("type")
    name = kind_of_part if isinstance(kind_of_part, str) and kind_of_part in _PART_TYPES else "erased"
    if name == "text":
        return {"type": name, "text": _text_placeholder(part.get("text"), kind), "signature": None}
    if name == "reasoning":
        return {
            "type": name,
            "is_native": flag_or_none(part.get("is_native")),
            "reasoning": ERASED_TEXT if part.get("reasoning") else "",
            "signature": None,
        }
    if name == "summarized_reasoning":
        summary = part.get("summary")
        count = len(summary) if isinstance(summary, list) else 0
        return {"type": name, "summary": [{"index": index, "text": ERASED_TEXT} for index in range(count)]}
    return {"type": name, "signature": None}


def _text_placeholder(text: Any, kind: str) -> str:
    """Return the placeholder of a text; for an envelope of Letta's own it still gives the kind."""
    if not text:
        return ""
    if kind in ("heartbeat", "system_alert", "login"):
        return write_json({"type": kind})
    return f"{_FROM_AN_AGENT} {ERASED_TEXT}" if kind == "agent" else ERASED_TEXT


def _call(call: Row, placeholders: _Placeholders) -> Row:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments")
    return {
        "id": string_or_none(call.get("id")),
        "function": {
            "arguments": None if arguments is None else placeholders.arguments(_as_text(arguments)),
            "name": None if name is None else placeholders.name(_as_text(name)),
        },
        "type": "function",
    }


def _return(item: Row) -> Row:
    return {
        "tool_call_id": string_or_none(item.get("tool_call_id")),
        "status": item["status"] if item.get("status") in ("success", "error") else None,
        "stdout": None,
        "stderr": None,
        "func_response": ERASED_TEXT,
    }


def _approval(entry: Row) -> Row:
    return {
        "type": "approval" if entry.get("type") == "approval" else None,
        "tool_call_id": string_or_none(entry.get("tool_call_id")),
        "approve": flag_or_none(entry.get("approve")),
        "reason": ERASED_TEXT if entry.get("reason") else None,
    }


def _step(step: Row) -> Row:
    return {
        **_texts(step, "steps"),
        "prompt_tokens_details": _json(step["prompt_tokens_details"], _numbers),
        "completion_tokens_details": _json(step["completion_tokens_details"], _numbers),
        "error_type": _class_name(step["error_type"]),
        "error_data": _json(step["error_data"], _error_data),
        "feedback": step["feedback"] if step["feedback"] in ("positive", "negative") else None,
    }


def _metadata(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    retained = {"run_type": value["run_type"]} if _class_name(value.get("run_type")) else {}
    error = value.get("error")
    if error is None:
        return retained
    if not isinstance(error, dict):
        return {**retained, "error": _coded(error)}
    coded = {name: _coded(error.get(name)) for name in ("message", "detail")}
    return {**retained, "error": {"error_type": _class_name(error.get("error_type")), **coded}}


def _error_data(value: Any) -> Any:
    if isinstance(value, dict):
        return {"message": _coded(value.get("message"))} if isinstance(value.get("message"), str) else {}
    return None if value is None else ERASED_TEXT


def _coded(value: Any) -> str | None:
    """Return the placeholder, after the code or phrase of Letta's that gives the cause."""
    if value is None:
        return None
    text = value if isinstance(value, str) else ""
    code = next((known for known in (*REQUEST_REFUSALS, *CAUSE_BY_CODE) if text.startswith(known)), None)
    return f"{code}: {ERASED_TEXT}" if code else ERASED_TEXT


def _numbers(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    numbers = {name: number for name, number in value.items() if isinstance(number, int | float | Decimal)}
    return {name: number for name, number in numbers.items() if _class_name(name)}


def _class_name(value: Any) -> str | None:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else write_json(value)
