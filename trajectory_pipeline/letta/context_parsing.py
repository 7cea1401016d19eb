"""The system prompt and tools that an agent had, from a recorded request or from its rows at capture."""

import json
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.lossless_json import storable_text


@dataclass(frozen=True)
class Context:
    """The instructions and tools that an agent had; see ``schema.raw.CONTEXT``."""

    system_prompt: str | None
    tools: str | None
    source: str


def context_from_request(request_json: str) -> Context | None:
    """Return the context of one LLM call as it was sent; None where the request is of no known form.

    Known are OpenAI's chat and Responses forms and Anthropic's (``provider_traces.request_json``, Letta 0.12 to
    0.16.8).
    """
    try:
        request = json.loads(request_json)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict):
        return None
    prompt = _text(request.get("system")) or _text(request.get("instructions"))
    for key in ("messages", "input"):
        first = next(iter(request.get(key) or []), None) if isinstance(request.get(key), list) else None
        if prompt is None and isinstance(first, dict) and first.get("role") in ("system", "developer"):
            prompt = _text(first.get("content"))
    tools = request.get("tools")
    try:
        tools_json = json.dumps(tools) if isinstance(tools, list) and tools else None
    except RecursionError:
        tools_json = None
    if prompt is None and tools_json is None:
        return None
    return Context(prompt and storable_text(prompt), tools_json, "provider_trace")


def context_at_capture(system_content: str | None, agent_system: str | None, tools: list[str]) -> Context | None:
    """Return the context at capture, which may have changed since the run ended.

    Args:
        system_content: ``messages.content`` (JSON text) of the agent's system message, the first of ``message_ids``.
        agent_system: ``agents.system``, the prompt without the memory blocks compiled into it.
        tools: ``tools.json_schema`` (JSON text) of each of its tools, in order.
    """
    prompt = None
    if system_content:
        try:
            prompt = _text(json.loads(system_content))
        except (ValueError, RecursionError):
            prompt = None
    prompt = prompt or agent_system or None
    if prompt is None and not tools:
        return None
    return Context(prompt and storable_text(prompt), f"[{','.join(tools)}]" if tools else None, "at_capture")


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, list):
        texts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "\n\n".join(texts) or None
    return None
