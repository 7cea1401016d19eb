"""A folder of Letta Code's local backend, written as the program writes it."""

import base64
import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trajectory_pipeline_tests.sources.conformance import IMAGE, PLAIN, Shape

Row = dict[str, Any]
AGENT = "agent-local-00000000-0000-4000-8000-000000000001"
REMINDER = "<system-reminder>Permission mode active: unrestricted.</system-reminder>"


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def otid(conversation: str, message_id: str) -> str:
    """The id that a client gives to what a user sends: the same nowhere else."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{conversation} {message_id}"))


def stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def user(number: int, text: str, at: datetime, **more: Any) -> Row:
    return {
        "id": f"ui-msg-{number}",
        "role": "user",
        "metadata": {"created_at": stamp(at), "updated_at": stamp(at)},
        "content": [{"type": "text", "text": REMINDER}, {"type": "text", "text": text}],
        **more,
    }


def answer(number: int, text: str, at: datetime, *calls: Row, stop: str | None = None, **more: Any) -> Row:
    return {
        "id": f"ui-msg-{number}",
        "role": "assistant",
        "content": [*([{"type": "text", "text": text}] if text else []), *calls],
        "api": "openai-completions",
        "provider": "openai-compatible",
        "model": "fake-1",
        "usage": {"input": 100, "output": 20, "cacheRead": 40, "cacheWrite": 0, "reasoning": 3, "totalTokens": 160},
        "stopReason": stop or ("toolUse" if calls else "stop"),
        "timestamp": int(at.timestamp() * 1000),
        "metadata": {"created_at": stamp(at), "updated_at": stamp(at)},
        **more,
    }


def call(call_id: str = "call_1", name: str = "look", **arguments: Any) -> Row:
    return {"type": "toolCall", "id": call_id, "name": name, "arguments": arguments}


def result(number: int, text: str, at: datetime, call_id: str = "call_1", *, is_error: bool = False) -> Row:
    return {
        "id": f"ui-msg-{number}",
        "role": "toolResult",
        "toolCallId": call_id,
        "toolName": "look",
        "content": [{"type": "text", "text": text}],
        "isError": is_error,
        "timestamp": int(at.timestamp() * 1000),
        "metadata": {"created_at": stamp(at), "updated_at": stamp(at)},
    }


def entry(message: Row, parent: str | None = None) -> Row:
    return {
        "type": "message",
        "id": uuid.uuid4().hex[:8],
        "parentId": parent,
        "timestamp": message["metadata"]["created_at"],
        "message": message,
    }


def compaction(number: int, summary: str, at: datetime) -> Row:
    message = user(number, f"packed: {summary}", at)
    message["metadata"]["compaction"] = {"summary": summary}
    return {
        "type": "compaction",
        "id": uuid.uuid4().hex[:8],
        "parentId": None,
        "timestamp": stamp(at),
        "summary": summary,
        "firstKeptEntryId": None,
        "tokensBefore": 1000,
        "message": message,
    }


def finished(asked: str, answered: str, at: datetime, first: int = 1, shape: Shape = PLAIN) -> list[Row]:
    """Return the messages of a run with a tool call that ended at a time."""
    began, between = at - shape.took, at - shape.took / 2
    rows = [user(first, asked, began)]
    for number in range(shape.rounds):
        call_id = f"call_{number + 1}"
        rows.append(answer(first + len(rows), "I look.", between, call(call_id, folder="/")))
        if shape.has_return:
            text = f"Exit code: 2\n{shape.returned(number)}"
            rows.append(result(first + len(rows), text, between, call_id))
    rows.append(answer(first + len(rows), answered, at))
    if shape.has_image:
        rows[0]["content"].append({"type": "image", "data": IMAGE, "mimeType": "image/png"})
    if shape.extra:
        rows[0][shape.extra] = "odd"
    return rows


def lines(rows: Sequence[Row]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def write_conversation(
    folder: Path,
    conversation_id: str,
    rows: Sequence[Row],
    *,
    version: int = 2,
    agent: str = AGENT,
    name: str = "Blank",
    created_at: datetime | None = None,
) -> Path:
    """Write an agent and a conversation with these lines; returns the file of its messages.

    What a user sent gets an id of this conversation, unless it has one.
    """
    agents = folder / "agents"
    agents.mkdir(parents=True, exist_ok=True)
    record = {"id": agent, "name": name, "system": "Be brief.", "tags": ["origin:letta-code"], "model": "fake-1"}
    (agents / f"{encoded(agent)}.json").write_text(json.dumps(record))
    conversation = folder / "conversations" / encoded(f"conversation:{conversation_id}")
    conversation.mkdir(parents=True, exist_ok=True)
    about = {"id": conversation_id, "agent_id": agent, "created_at": created_at and stamp(created_at)}
    (conversation / "conversation.json").write_text(json.dumps(about))
    formats = {1: "pi-ai-message-jsonl", 2: "pi-session-entry-jsonl"}
    manifest = {"schema_version": version, "message_format": formats.get(version, "later"), "provider_stack": "pi-ai"}
    (conversation / "manifest.json").write_text(json.dumps(manifest))
    (conversation / "system-prompt.json").write_text(json.dumps({"content": "You are a coder."}))
    header = [{"type": "session", "version": 3, "id": conversation_id}] if version == 2 else []
    path = conversation / "messages.jsonl"
    path.write_text(lines([*header, *(_sent(row, conversation_id) for row in rows)]))
    return path


def _sent(row: Row, conversation: str) -> Row:
    message = row.get("message", row)
    if message.get("role") != "user" or "otid" in message:
        return row
    own = {**message, "otid": otid(conversation, message["id"])}
    return {**row, "message": own} if "message" in row else own
