"""What one row of ``messages`` means: its kind, its parts, its calls, returns and approvals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.lossless_json import (
    ConversionError,
    exact_numbers,
    parse_array_of_objects,
    parse_json,
    storable_text,
    write_json,
)

SEND_MESSAGE_AGENT_TYPES = frozenset(
    {"memgpt_agent", "memgpt_v2_agent", "react_agent", "workflow_agent", "split_thread_agent"}
)
"""Agent types whose text is the inner thought, and whose reply is an argument of a call (Letta's loop v2)."""

MESSAGE_COLUMNS = ("role", "sequence_id", "name", "model", "sender_id", "tool_call_id")
"""Columns of ``messages`` that a trajectory's messages have under the same name."""
_PART_FIELDS = {
    "text": ("type", "text", "signature"),
    "reasoning": ("type", "is_native", "reasoning", "signature"),
}
"""Fields of a content part as Letta writes it, in order; of all other types the type and the signature."""
_KINDS_IN_TEXT = frozenset({"heartbeat", "system_alert", "login"})
_FROM_AN_AGENT = ("[Incoming message from agent with ID", "<system-reminder>\nYou are a sleeptime agent")

Row = dict[str, Any]


@dataclass(frozen=True)
class ReplyConvention:
    """How an agent's reply is distinguished from its thoughts: an argument of a tool is a reply.

    ``text_is_thought`` is None where the agent's type is not known.
    """

    text_is_thought: bool | None
    tool_name: str
    tool_argument: str


def reply_convention(agent_type: str | None, config: Mapping[str, Any]) -> ReplyConvention:
    """Return how the replies of a run are found: ``runs.request_config`` may name another tool than ``send_message``.

    ``agents.agent_type`` is None where the agent is gone.
    """
    name, argument = config.get("assistant_message_tool_name"), config.get("assistant_message_tool_kwarg")
    return ReplyConvention(
        None if agent_type is None else agent_type in SEND_MESSAGE_AGENT_TYPES,
        name if isinstance(name, str) and name else "send_message",
        argument if isinstance(argument, str) and argument else "message",
    )


def convert_message(raw: Mapping[str, Any], convention: ReplyConvention, escapes: list[str], derived: list[str]) -> Row:
    """Return the message of a raw row, with the fields of ``schema.trajectories.MESSAGE``.

    ``denied`` of its tool returns is left False: only the run as a whole shows what was denied.

    ``escapes`` collects the JSON paths at which the source's text was escaped, ``derived`` those at which text derived
    from it was.

    Raises:
        ConversionError: a JSON column holds what cannot be read.
    """
    path = f"messages[{raw['id']}]"
    content = parse_array_of_objects(raw["content"], f"{path}.content", escapes)
    if not content and raw["text"]:
        content = legacy_content(raw["text"])
    calls = parse_array_of_objects(raw["tool_calls"], f"{path}.tool_calls", escapes)
    returns = parse_array_of_objects(raw["tool_returns"], f"{path}.tool_returns", escapes)
    approvals = parse_array_of_objects(raw["approvals"], f"{path}.approvals", escapes) or legacy_approval(raw)
    reply, thought = split_reply_and_thought(raw["role"], content, calls, convention)
    if reply is not None and (storable := storable_text(reply)) is not reply:
        # It came out of an argument string, which holds NUL and surrogates as escapes and stays as it is.
        derived.append(f"{path}.assistant_text")
        reply = storable
    return {
        "message_id": raw["id"],
        **{name: raw[name] for name in MESSAGE_COLUMNS},
        "kind": message_kind(raw["role"], content),
        "timestamp": raw["created_at"],
        "is_deleted": bool(raw["is_deleted"]),
        "assistant_text": reply,
        "inner_thought": thought,
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
        envelope = _read(text)
        if isinstance(envelope, dict) and isinstance(envelope.get("type"), str) and envelope["type"] in _KINDS_IN_TEXT:
            return str(envelope["type"])
    return role


def _read(text: str) -> Any:
    """Return the value of JSON text; None where it is no JSON, or is nested too deeply to be read."""
    try:
        return exact_numbers(text)
    except (ValueError, RecursionError):
        return None


def _argument_of(arguments: Any, name: str) -> str | None:
    if isinstance(arguments, str):
        arguments = _read(arguments)
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


def legacy_content(text: str) -> list[dict[str, Any]]:
    """Return the content of Letta before 0.6, which has a column of text."""
    return [{"type": "text", "text": text}]


def legacy_approval(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the decision of Letta before 0.14, which has columns of its own."""
    if raw["approve"] is None:
        return []
    recorded = {name: raw[name] for name in ("approval_request_id", "approve")}
    return [{"type": "approval", **recorded, "reason": raw["denial_reason"]}]


def string_or_none(value: Any) -> str | None:
    """Return the value if it is a string."""
    return value if isinstance(value, str) else None


def flag_or_none(value: Any) -> bool | None:
    """Return the value if it is a boolean."""
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
    source = part.get("source") if kind == "image" else None
    signature = string_or_none(part.get("signature"))
    row: Row = {
        "type": string_or_none(kind),
        "text": string_or_none(part.get("text")) if kind == "text" else None,
        "reasoning": _reasoning(part),
        "signature": string_or_none(part.get("encrypted_content")) if signature is None else signature,
        "is_native": flag_or_none(part.get("is_native")),
        "media_type": string_or_none(source.get("media_type"))
        if kind == "image" and isinstance(source, dict)
        else None,
        "json": None,
    }
    row["json"] = _verbatim(part, part_of(row))
    return row


def _reasoning(part: dict[str, Any]) -> str | None:
    if part.get("type") == "reasoning":
        return string_or_none(part.get("reasoning"))
    if part.get("type") == "summarized_reasoning" and isinstance(part.get("summary"), list):
        texts = [item.get("text") for item in part["summary"] if isinstance(item, dict)]
        return "\n\n".join(text for text in texts if isinstance(text, str))
    return None


def part_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content part that a row holds, all its fields in order."""
    if row["json"] is not None:
        return _parsed(row["json"])
    names = _PART_FIELDS.get(row["type"], ("type", "signature"))
    return {name: row[name] for name in names}


def tool_call_row(call: dict[str, Any]) -> Row:
    """Return a tool call with the fields of ``schema.trajectories.TOOL_CALL``; ``tool_call_of`` is its inverse."""
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    row: Row = {
        "id": string_or_none(call.get("id")),
        "type": string_or_none(call.get("type")),
        "name": string_or_none(function.get("name")),
        "arguments": string_or_none(function.get("arguments")),
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
        "tool_call_id": string_or_none(item.get("tool_call_id")),
        "status": string_or_none(item.get("status")),
        "denied": False,
        "text": _returned_text(item.get("func_response")),
        "stdout": _strings(item.get("stdout")),
        "stderr": _strings(item.get("stderr")),
        "json": None,
    }
    row["json"] = _verbatim(item, tool_return_of(row))
    return row


def _returned_text(response: Any) -> str | None:
    """Return what a tool returned as text: of content parts the texts, joined as Letta joins them for a model.

    Source: Letta 0.16.8, ``tool_return_to_text`` in letta/schemas/message.py. Its placeholder for images is left out:
    it is no text of the tool's.
    """
    if isinstance(response, list):
        parts = [part for part in response if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        return "\n".join(filter(None, texts)) or None
    return string_or_none(response)


def tool_return_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tool return that a row holds, as Letta stored it."""
    if row["json"] is not None:
        return _parsed(row["json"])
    typed = {name: row[name] for name in ("tool_call_id", "status", "stdout", "stderr")}
    return {**typed, "func_response": row["text"]}


def approval_row(entry: dict[str, Any]) -> Row:
    """Return a decision with the fields of ``schema.trajectories.APPROVAL``; ``approval_of`` is its inverse."""
    row: Row = {
        "type": string_or_none(entry.get("type")),
        "tool_call_id": string_or_none(entry.get("tool_call_id")),
        "approve": flag_or_none(entry.get("approve")),
        "reason": string_or_none(entry.get("reason")),
        "json": None,
    }
    row["json"] = _verbatim(entry, approval_of(row))
    return row


def approval_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decision that a row holds."""
    if row["json"] is not None:
        return _parsed(row["json"])
    return {name: row[name] for name in ("type", "tool_call_id", "approve", "reason")}


def _parsed(text: str) -> dict[str, Any]:
    value = parse_json(text, "json", [])
    if not isinstance(value, dict):
        raise ConversionError("json", "is no object")
    return value
