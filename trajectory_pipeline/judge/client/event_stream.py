"""Puts the chunks of an event stream together to one chat completion: some servers stream though it was not asked."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def is_event_stream(text: str) -> bool:
    """Whether a body is an event stream, whatever content type it was given."""
    first = next((line for line in _lines(text) if line.strip()), "")
    return first.startswith((":", "data:", "event:", "id:", "retry:"))


def assemble(text: str) -> dict[str, Any]:
    """Return the completion that a stream's chunks make; ``ended`` says whether its end is there."""
    completion: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    message: dict[str, Any] = {}
    ended = False
    for data in _events(text):
        if data.strip() == "[DONE]":
            ended = True
            continue
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            continue
        if not isinstance(chunk, dict):
            continue
        completion |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        choices = chunk.get("choices")
        part = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        for name, value in part.items():
            if name in ("delta", "message") and isinstance(value, dict):
                _extend(message, value)
            elif name == "text" and isinstance(value, str):
                choice["text"] = choice.get("text", "") + value
            elif value is not None:
                choice[name] = value
        ended = ended or part.get("finish_reason") is not None
    if choice or message:
        completion["choices"] = [{**choice, "message": message}]
    return {**completion, "ended": ended}


def _events(text: str) -> Iterator[str]:
    data: list[str] = []
    for line in [*_lines(text), ""]:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line.strip() and data:
            yield "\n".join(data)
            data = []


def _lines(text: str) -> list[str]:
    # A JSON text may hold what Python counts as the end of a line.
    return re.split(r"\r\n|\n|\r", text)


def _extend(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Append what a chunk adds: texts to texts, parts to parts, and to each tool call by its index."""
    for name, value in delta.items():
        before = message.get(name)
        if name == "tool_calls" and isinstance(value, list):
            calls = message[name] = before if isinstance(before, list) else []
            for at, call in enumerate(one for one in value if isinstance(one, dict)):
                index = call.get("index", at)
                known = next((one for one in calls if one.get("index") == index), None)
                if known is None:
                    calls.append(known := {"index": index})
                _extend(known, {key: item for key, item in call.items() if key != "index"})
        elif isinstance(value, dict) and isinstance(before, dict):
            _extend(before, value)
        elif isinstance(value, str) and isinstance(before, str) and name not in ("role", "id", "type", "name"):
            message[name] = before + value
        elif isinstance(value, list) and before and isinstance(before, str | list):
            message[name] = [*([before] if isinstance(before, str) else before), *value]
        elif isinstance(value, str) and isinstance(before, list) and before:
            message[name] = [*before, value]
        elif value is not None:
            message[name] = dict(value) if isinstance(value, dict) else value
