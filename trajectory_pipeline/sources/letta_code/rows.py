"""Rows of a run of Letta Code: each answer of the model is a step, each message a message."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trajectory_pipeline.sources.letta_code.transcript import NOT_RECORDED, Line, TranscriptRun, read_lines, time_of
from trajectory_pipeline.sources.raw_rows import (
    Row,
    RunRows,
    json_text,
    naive,
    reasoning_part,
    shown_columns,
    text_part,
    texts,
    tool_call,
    tool_return,
    unreadable_message,
    whole,
)

REMINDER = "<system-reminder>"
"""Begins a part of the user's message that the program wrote, and no person."""
SHOWN_COLUMNS = shown_columns(
    runs="id status completed_at stop_reason agent_id conversation_id created_at",
    steps="id run_id agent_id provider_name model prompt_tokens completion_tokens total_tokens cached_input_tokens"
    " cache_write_tokens reasoning_tokens stop_reason status error_data created_at",
    messages="id run_id step_id sequence_id agent_id conversation_id role content tool_calls tool_call_id tool_returns"
    " name model otid created_at",
    agents="id name system",
)


@dataclass(frozen=True)
class Conversation:
    """What surrounds the messages: when it was made, the agent's file, the system prompt, and a digest of both."""

    agent_id: str
    conversation_id: str
    created_at: datetime | None
    agent: Row | None
    system_prompt: str | None
    digest: str

    @property
    def key(self) -> str:
        """Names the conversation among those of all agents."""
        return f"{self.agent_id}:{self.conversation_id}"

    @property
    def thread(self) -> str | None:
        """The conversation's id; None for the agent's default thread."""
        return None if self.conversation_id == "default" else self.conversation_id


def run_rows(native_id: str, conversation: Conversation, path: Path, run: TranscriptRun) -> RunRows:
    """Return the rows of a run. Raises ``SourceError`` if the file was rewritten meanwhile."""
    lines = list(read_lines(path, run))
    # Unique within the conversation, which is all that a judge is shown at once; and short, because it cites them.
    answers = [line.message_id for line, message, _ in lines if message and _is_answer(line)]
    steps: list[Row] = []
    messages: list[Row] = []
    step_of_call: dict[Any, str] = {}
    for line, message, text in lines:
        if message is None:
            messages.append(unreadable_message(f"{path}:{line.number}", "is no message", text))
            continue
        message_id = line.message_id
        if _is_answer(line):
            steps.append(_step(message_id, message, is_last=message_id == answers[-1]))
            step_of_call.update((call, message_id) for call in _call_ids(message))
        own = message_id if _is_answer(line) else step_of_call.get(message.get("toolCallId"))
        # As Letta does: what the user sent belongs to the first step, a return to the step that called.
        step_id = own or (answers[0] if answers else None)
        for row in _messages(line, message):
            row["id"] = f"{message_id}{row.pop('suffix', '')}"
            messages.append(
                {
                    **row,
                    "step_id": step_id,
                    "agent_id": conversation.agent_id,
                    "conversation_id": conversation.thread,
                    "created_at": time_of(message),
                }
            )
    status, stop_reason = run.ended or NOT_RECORDED
    agent = conversation.agent or {}
    return RunRows(
        run={
            "id": native_id,
            "status": status,
            "stop_reason": stop_reason,
            "agent_id": conversation.agent_id,
            "conversation_id": conversation.thread,
            "created_at": run.began_at,
            "completed_at": naive(run.last_at),
        },
        steps=[{**step, "agent_id": conversation.agent_id} for step in steps],
        messages=messages,
        agent={"id": conversation.agent_id, "name": _text(agent.get("name")), "system": _text(agent.get("system"))}
        if conversation.agent is not None
        else None,
        agent_tags=list(texts(agent.get("tags"))),
        system_prompt=conversation.system_prompt,
    )


def _is_answer(line: Line) -> bool:
    return line.role == "assistant"


def _step(step_id: str, message: Row, *, is_last: bool) -> Row:
    usage = message.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    given, read, written = (whole(counts.get(name)) for name in ("input", "cacheRead", "cacheWrite"))
    stop_reason, error = message.get("stopReason"), message.get("errorMessage")
    failed = stop_reason == "error"
    endings = {"stop": "end_turn", "length": "max_tokens_exceeded", "error": "error", "aborted": "cancelled"}
    return {
        "id": step_id,
        "created_at": time_of(message),
        "model": _text(message.get("model")),
        "provider_name": _text(message.get("provider")),
        # The program counts cached tokens beside the others; Letta counts them among them.
        "prompt_tokens": None if given is None else given + (read or 0) + (written or 0),
        "completion_tokens": whole(counts.get("output")),
        "total_tokens": whole(counts.get("totalTokens")),
        "cached_input_tokens": read,
        "cache_write_tokens": written,
        "reasoning_tokens": whole(counts.get("reasoning")),
        "status": "FAILED" if failed else None,
        "stop_reason": endings.get(str(stop_reason)) if is_last else None,
        "error_data": json_text({"message": error}) if failed and isinstance(error, str) else None,
    }


def _call_ids(message: Row) -> Iterator[Any]:
    for part in _parts(message):
        if part.get("type") == "toolCall":
            yield part.get("id")


def _parts(message: Row) -> list[Row]:
    content = message.get("content")
    if isinstance(content, str):
        return [text_part(content)]
    return [part if isinstance(part, dict) else {"type": None, "value": part} for part in content or ()]


def _messages(line: Line, message: Row) -> Iterator[Row]:
    parts = _parts(message)
    row: Row = {"tool_calls": "[]", "tool_returns": "[]", "otid": line.otid, "model": _text(message.get("model"))}
    if line.role == "summary":
        yield {**row, "role": "summary", "content": json_text([text_part(str(message.get("summary") or ""))])}
    elif line.role == "user":
        reminders = [part for part in parts if _is_reminder(part)]
        said = [part for part in parts if not _is_reminder(part)]
        if reminders:
            yield {**row, "role": "system", "content": json_text(reminders), "suffix": "-reminders"}
        if said or not reminders:
            yield {**row, "role": "user", "content": json_text(list(map(_part, said)))}
    elif line.role == "assistant":
        calls = [
            tool_call(part.get("id"), part.get("name"), part.get("arguments"))
            for part in parts
            if part.get("type") == "toolCall"
        ]
        content = [_part(part) for part in parts if part.get("type") != "toolCall"]
        first = calls[0]["id"] if calls else None
        yield {
            **row,
            "role": "assistant",
            "content": json_text(content),
            "tool_calls": json_text(calls),
            "tool_call_id": _text(first),
        }
    elif line.role == "toolResult":
        call_id, is_error = message.get("toolCallId"), message.get("isError")
        said_texts = [
            part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str)
        ]
        # False says nothing: a command that ended with code 2 has it too.
        status = "error" if is_error is True else None
        yield {
            **row,
            "role": "tool",
            "name": _text(message.get("toolName")),
            "tool_call_id": _text(call_id),
            "content": json_text(list(map(_part, parts))),
            "tool_returns": json_text([tool_return(call_id, "\n".join(said_texts), status, isError=is_error)]),
        }
    else:
        yield {**row, "role": line.role, "content": json_text(parts)}


def _is_reminder(part: Row) -> bool:
    text = part.get("text")
    return part.get("type") == "text" and isinstance(text, str) and text.lstrip().startswith(REMINDER)


def _part(part: Row) -> Row:
    """Return a content part as Letta has it; one of an unknown type as it is."""
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part.get("text"), "signature": part.get("textSignature")}
    if kind == "thinking":
        return reasoning_part(part.get("thinking") or "", part.get("thinkingSignature"))
    if kind == "image" and "data" in part:
        source = {"type": "base64", "media_type": part.get("mimeType"), "data": part.get("data")}
        return {"type": "image", "source": source}
    return part


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
