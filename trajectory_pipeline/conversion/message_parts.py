"""The pieces of a message of a trajectory document, as a person reads them: in a terminal or on a page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trajectory_pipeline.lossless_json import as_text, list_or_empty, object_or_empty

MessagePartKind = Literal["text", "reasoning", "call", "return", "error", "approval", "other"]


@dataclass(frozen=True)
class MessagePart:
    """One piece of a message.

    Attributes:
        kind: ``error`` is a return that failed; ``other`` is a content part of a type without text.
        name: a call's tool, a return's status, a decision, or the type of another part; else empty.
        text: what was said, a call's arguments, a return's text, or a decision's reason.
        call_id: the call that a decision is about; else empty.
        summarized: whether reasoning is the provider's summary.
    """

    kind: MessagePartKind
    name: str
    text: str
    call_id: str = ""
    summarized: bool = False


def message_parts(message: Mapping[str, Any]) -> Iterator[MessagePart]:
    """Yield the pieces of a message, in order; any JSON value is read. Content beside tool returns repeats them."""
    if not message.get("tool_returns"):
        for part in message["content"]:
            yield _content_part(part)
    for call in message.get("tool_calls", ()):
        function = object_or_empty(call.get("function"))
        yield MessagePart("call", as_text(function.get("name")), as_text(function.get("arguments")))
    for item in message.get("tool_returns", ()):
        status = "denied" if item.get("denied") else as_text(item["status"])
        text = item["text"] if item["text"] is not None else as_text(item.get("func_response"))
        yield MessagePart("error" if status == "error" else "return", status, text)
    for entry in message.get("approvals", ()):
        approve = entry.get("approve")
        decision = "approved" if approve is True else "denied" if approve is False else "returned by the client"
        reason = as_text(entry["reason"]) if entry.get("reason") else ""
        yield MessagePart("approval", decision, reason, as_text(entry.get("tool_call_id")))


def tools_by_call(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the tool of each call in a trajectory document, by call id."""
    calls = (
        call for turn in document["turns"] for message in turn["messages"] for call in message.get("tool_calls", ())
    )
    named = ((call.get("id"), object_or_empty(call.get("function")).get("name")) for call in calls)
    return {call_id: name for call_id, name in named if isinstance(call_id, str) and isinstance(name, str)}


def message_role(message: Mapping[str, Any]) -> str:
    """Return a message's role, with its kind where the role does not say it: ``user (heartbeat)``."""
    role, kind = message["role"], message["kind"]
    return str(kind) if kind == role else f"{role} ({kind})"


def _content_part(part: Mapping[str, Any]) -> MessagePart:
    match part.get("type"):
        case "text":
            return MessagePart("text", "", as_text(part.get("text")))
        case "reasoning":
            return MessagePart("reasoning", "", as_text(part.get("reasoning")))
        case "summarized_reasoning":
            texts = (as_text(object_or_empty(item).get("text")) for item in list_or_empty(part.get("summary")))
            return MessagePart("reasoning", "", "\n".join(texts), summarized=True)
        case other:
            return MessagePart("other", as_text(other), "")
