"""From a document back to the row that it is the document of: what the document shows is all that is needed."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from trajectory_pipeline.lossless_json import write_json
from trajectory_pipeline.schema.trajectories import MESSAGE, TRAJECTORIES, TURN
from trajectory_pipeline.schema.types import Column, ListOf, Scalar, Struct, Type


def row_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The row's columns that are in the document; every part, call, return and approval as its JSON text."""
    row = {}
    for column in TRAJECTORIES.columns:
        if column.document is None or column.name == "turns":
            continue
        value: Any = document
        for name in column.document.split("."):
            value = value[name]
        row[column.name] = _typed(value, column.type)
    row["turns"] = [_turn(turn) for turn in document["turns"]]
    return row


def _typed(value: Any, kind: Type) -> Any:
    if value is None:
        return None
    if kind is Scalar.TIMESTAMP:
        return datetime.fromisoformat(value)
    if kind is Scalar.MONEY:
        return Decimal(repr(value))
    if isinstance(kind, Struct):
        return {field.name: _typed(value[field.name], field.type) for field in kind.fields}
    return value


def _fields(values: Mapping[str, Any], columns: tuple[Column, ...], but: set[str]) -> dict[str, Any]:
    return {
        column.name: _typed(values.get(column.name, [] if isinstance(column.type, ListOf) else None), column.type)
        for column in columns
        if column.name not in but
    }


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {**_fields(turn, TURN, {"messages"}), "messages": [_message(message) for message in turn["messages"]]}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_fields(message, MESSAGE, {"content", "tool_calls", "tool_returns", "approvals"}),
        "content": [{"json": write_json(part)} for part in message["content"]],
        "tool_calls": [{"json": write_json(call)} for call in message.get("tool_calls", [])],
        "tool_returns": [_tool_return(item) for item in message.get("tool_returns", [])],
        "approvals": [{"json": write_json(entry)} for entry in message.get("approvals", [])],
    }


def _tool_return(item: Mapping[str, Any]) -> dict[str, Any]:
    stored = {name: value for name, value in item.items() if name not in ("text", "denied")}
    if item["text"] is not None:
        stored["func_response"] = item["text"]
    return {
        "tool_call_id": item["tool_call_id"] if isinstance(item["tool_call_id"], str) else None,
        "status": item["status"] if isinstance(item["status"], str) else None,
        "text": item["text"],
        "denied": item.get("denied", False),
        "json": write_json(stored),
    }
