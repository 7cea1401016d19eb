"""What one row of ``messages`` means: its kind, its parts, its calls, returns and approvals."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.lossless_json import (
    ConversionError,
    EscapedPaths,
    parse_array_of_objects,
    parse_json,
    storable_text,
    write_json,
)

SEND_MESSAGE_AGENT_TYPES = frozenset(
    {"memgpt_agent", "memgpt_v2_agent", "react_agent", "workflow_agent", "split_thread_agent"}
)
"""Agent types whose text is the inner thought, and whose reply is an argument of a call (Letta's loop v2)."""

_KINDS_IN_TEXT = frozenset({"heartbeat", "system_alert", "login"})
_FROM_AN_AGENT = ("[Incoming message from agent with ID", "<system-reminder>\nYou are a sleeptime agent")

Row = dict[str, Any]


@dataclass(frozen=True)
class ReplyConvention:
    """How an agent's reply is distinguished from its thoughts.

    Attributes:
        text_is_thought: whether its text is the inner thought; None where the agent's type is not known.
        tool_name: the tool whose argument is a reply.
        tool_argument: that argument.
    """

    text_is_thought: bool | None
    tool_name: str = "send_message"
    tool_argument: str = "message"


def reply_convention(agent_type: str | None, config: Mapping[str, Any]) -> ReplyConvention:
    """Return how the replies of a run are found.

    Args:
        agent_type: ``agents.agent_type``; None where the agent is gone.
        config: ``runs.request_config``, which may name another tool than ``send_message``.
    """
    name, argument = config.get("assistant_message_tool_name"), config.get("assistant_message_tool_kwarg")
    return ReplyConvention(
        None if agent_type is None else agent_type in SEND_MESSAGE_AGENT_TYPES,
        name if isinstance(name, str) and name else "send_message",
        argument if isinstance(argument, str) and argument else "message",
    )


def convert_message(
    raw: Mapping[str, Any], convention: ReplyConvention, escapes: EscapedPaths, derived: EscapedPaths
) -> Row:
    """Return the message of a raw row, with the fields of ``schema.trajectories.MESSAGE``.

    ``denied`` of its tool returns is left False: only the run as a whole shows what was denied.

    Args:
        raw: a row of ``messages``.
        convention: how a reply is distinguished from a thought.
        escapes: collects the JSON paths at which the source's text was escaped.
        derived: collects those at which text derived from it was escaped.

    Raises:
        ConversionError: a JSON column holds what cannot be read.
    """
    message_id = raw["id"]
    path = f"messages[{message_id}]"
    content = parse_array_of_objects(raw["content"], f"{path}.content", escapes)
    if not content and raw["text"]:
        content = [{"type": "text", "text": raw["text"]}]
    calls = parse_array_of_objects(raw["tool_calls"], f"{path}.tool_calls", escapes)
    returns = parse_array_of_objects(raw["tool_returns"], f"{path}.tool_returns", escapes)
    approvals = parse_array_of_objects(raw["approvals"], f"{path}.approvals", escapes) or _legacy_approval(raw)
    reply, thought = split_reply_and_thought(raw["role"], content, calls, convention)
    if reply is not None and (storable := storable_text(reply)) is not reply:
        # It came out of an argument string, which holds NUL and surrogates as escapes and stays as it is.
        derived.paths.append(f"{path}.assistant_text")
        reply = storable
    return {
        "message_id": message_id,
        "role": raw["role"],
        "kind": message_kind(raw["role"], content),
        "timestamp": raw["created_at"],
        "sequence_id": raw["sequence_id"],
        "name": raw["name"],
        "model": raw["model"],
        "sender_id": raw["sender_id"],
        "is_deleted": bool(raw["is_deleted"]),
        "assistant_text": reply,
        "inner_thought": thought,
        "tool_call_id": raw["tool_call_id"],
        "content": [part_row(part) for part in content],
        "tool_calls": [tool_call_row(call) for call in calls],
        "tool_returns": [tool_return_row(item) for item in returns],
        "approvals": [approval_row(entry) for entry in approvals],
    }


def message_kind(role: str, content: list[dict[str, Any]]) -> str:
    """Return what a row is where its role does not say: see ``kind`` in the data dictionary."""
    if role not in ("user", "system"):
        return role
    text = next((part["text"] for part in content if isinstance(part.get("text"), str)), "")
    if text.startswith(_FROM_AN_AGENT):
        return "agent"
    if role == "user" and text.lstrip().startswith("{"):
        try:
            envelope = json.loads(text)
        except (ValueError, RecursionError):
            return role
        if isinstance(envelope, dict) and isinstance(envelope.get("type"), str) and envelope["type"] in _KINDS_IN_TEXT:
            return str(envelope["type"])
    return role


def _argument_of(arguments: Any, name: str) -> str | None:
    """Return one string argument of a call; None where the arguments are no JSON object or lack it."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    value = arguments.get(name) if isinstance(arguments, dict) else None
    return value if isinstance(value, str) else None


def split_reply_and_thought(
    role: str, content: list[dict[str, Any]], calls: list[dict[str, Any]], convention: ReplyConvention
) -> tuple[str | None, str | None]:
    """Return a message's reply and its agent's thought: see the data dictionary."""
    if role not in ("assistant", "approval"):
        return None, None
    texts = [part["text"] for part in content if part.get("type") == "text" and isinstance(part.get("text"), str)]
    text = "\n\n".join(filter(None, texts)) or None
    replies = []
    sends = False
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and function.get("name") == convention.tool_name:
            sends = True
            reply = _argument_of(function.get("arguments"), convention.tool_argument)
            if reply:
                replies.append(reply)
    thought_in_text = sends if convention.text_is_thought is None else convention.text_is_thought
    if thought_in_text:
        return "\n\n".join(replies) or None, text
    return "\n\n".join(filter(None, [text, *replies])) or None, None


def _legacy_approval(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the decision of Letta before 0.14, which has columns of its own."""
    if raw["approve"] is None:
        return []
    return [
        {
            "type": "approval",
            "approval_request_id": raw["approval_request_id"],
            "approve": raw["approve"],
            "reason": raw["denial_reason"],
        }
    ]


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _strings(value: Any) -> list[str] | None:
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _verbatim(entry: dict[str, Any], typed: dict[str, Any]) -> str | None:
    """Return the whole entry as JSON text, unless what the typed fields give is exactly the same, keys in order."""
    return None if _same(entry, typed) else write_json(entry)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def part_row(part: dict[str, Any]) -> Row:
    """Return a content part with the fields of ``schema.trajectories.CONTENT_PART``; ``part_of`` is its inverse."""
    kind = part.get("type")
    source = part.get("source")
    signature = _string(part.get("signature"))
    row: Row = {
        "type": _string(kind),
        "text": _string(part.get("text")) if kind == "text" else None,
        "reasoning": _reasoning(part),
        "signature": _string(part.get("encrypted_content")) if signature is None else signature,
        "is_native": _flag(part.get("is_native")),
        "media_type": _string(source.get("media_type")) if kind == "image" and isinstance(source, dict) else None,
        "json": None,
    }
    row["json"] = _verbatim(part, part_of(row))
    return row


def _reasoning(part: dict[str, Any]) -> str | None:
    if part.get("type") == "reasoning":
        return _string(part.get("reasoning"))
    if part.get("type") == "summarized_reasoning" and isinstance(part.get("summary"), list):
        texts = [item.get("text") for item in part["summary"] if isinstance(item, dict)]
        return "\n\n".join(text for text in texts if isinstance(text, str))
    return None


def part_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content part that a row holds, all its fields in order."""
    if row["json"] is not None:
        return _parsed(row["json"])
    if row["type"] == "text":
        return {"type": "text", "text": row["text"], "signature": row["signature"]}
    if row["type"] == "reasoning":
        return {
            "type": "reasoning",
            "is_native": row["is_native"],
            "reasoning": row["reasoning"],
            "signature": row["signature"],
        }
    return {"type": row["type"], "signature": row["signature"]}


def tool_call_row(call: dict[str, Any]) -> Row:
    """Return a tool call with the fields of ``schema.trajectories.TOOL_CALL``; ``tool_call_of`` is its inverse."""
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    row: Row = {
        "id": _string(call.get("id")),
        "type": _string(call.get("type")),
        "name": _string(function.get("name")),
        "arguments": _string(function.get("arguments")),
        "json": None,
    }
    row["json"] = _verbatim(call, tool_call_of(row))
    return row


def tool_call_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tool call that a row holds."""
    if row["json"] is not None:
        return _parsed(row["json"])
    return {"id": row["id"], "function": {"arguments": row["arguments"], "name": row["name"]}, "type": row["type"]}


def tool_return_row(item: dict[str, Any]) -> Row:
    """Return a tool return with the fields of ``schema.trajectories.TOOL_RETURN``: inverse of ``tool_return_of``."""
    row: Row = {
        "tool_call_id": _string(item.get("tool_call_id")),
        "status": _string(item.get("status")),
        "denied": False,
        "text": _string(item.get("func_response")),
        "stdout": _strings(item.get("stdout")),
        "stderr": _strings(item.get("stderr")),
        "json": None,
    }
    row["json"] = _verbatim(item, tool_return_of(row))
    return row


def tool_return_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tool return that a row holds, as Letta stored it."""
    if row["json"] is not None:
        return _parsed(row["json"])
    return {
        "tool_call_id": row["tool_call_id"],
        "status": row["status"],
        "stdout": row["stdout"],
        "stderr": row["stderr"],
        "func_response": row["text"],
    }


def approval_row(entry: dict[str, Any]) -> Row:
    """Return a decision with the fields of ``schema.trajectories.APPROVAL``; ``approval_of`` is its inverse."""
    row: Row = {
        "type": _string(entry.get("type")),
        "tool_call_id": _string(entry.get("tool_call_id")),
        "approve": _flag(entry.get("approve")),
        "reason": _string(entry.get("reason")),
        "json": None,
    }
    row["json"] = _verbatim(entry, approval_of(row))
    return row


def approval_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decision that a row holds."""
    if row["json"] is not None:
        return _parsed(row["json"])
    return {
        "type": row["type"],
        "tool_call_id": row["tool_call_id"],
        "approve": row["approve"],
        "reason": row["reason"],
    }


def _parsed(text: str) -> dict[str, Any]:
    value = parse_json(text, "json", EscapedPaths())
    if not isinstance(value, dict):
        raise ConversionError("json", "is no object")
    return value
