"""How the response schema is sent, and how the answer is found in the response.

OpenAI, vLLM, Ollama, LiteLLM and OpenRouter speak the same chat API and differ in what they refuse: strict JSON
schemas, tools, a temperature (reasoning models), or ``max_completion_tokens`` (older servers know ``max_tokens``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from trajectory_pipeline.schema.enums import ResponseFormat

_SIMPLER: Mapping[ResponseFormat, ResponseFormat] = {
    ResponseFormat.JSON_SCHEMA: ResponseFormat.TOOL_CALL,
    ResponseFormat.TOOL_CALL: ResponseFormat.PROMPT,
}

_FENCED = re.compile(r"\A```[a-zA-Z]*[ \t]*\n(?P<inside>(?:(?!\n```).)*)\n```\Z", re.DOTALL)


@cache
def strict_schema(answer_type: type[BaseModel]) -> dict[str, Any]:
    """Return an answer's JSON schema without ``minLength``, which strict mode does not know."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key != "minLength"}
        return [without(item) for item in value] if isinstance(value, list) else value

    schema: dict[str, Any] = without(answer_type.model_json_schema())
    return schema


@cache
def schema_instructions(answer_type: type[BaseModel]) -> str:
    """Return the sentence that gives the schema in the prompt itself."""
    schema = json.dumps(strict_schema(answer_type), ensure_ascii=False, separators=(",", ":"))
    return f"Answer with one JSON object and nothing else, valid by this JSON schema:\n{schema}"


@cache
def _format_parameters(answer_type: type[BaseModel], response_format: ResponseFormat) -> Mapping[str, Any]:
    schema = strict_schema(answer_type)
    # The title, not the class: what the judge is sent must not change with a name in code (see ``response_schema``).
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", schema["title"]).lower()
    if response_format == "json_schema":
        described = {"name": name, "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": described}}
    if response_format == "tool_call":
        function = {"name": name, "description": "Takes your answer.", "strict": True, "parameters": schema}
        return {
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": name}},
        }
    return {}


@dataclass(frozen=True)
class RequestOptions:
    """The parts of a request that a server may reject; ``limit_name`` is the parameter for ``max_response_tokens``."""

    response_format: ResponseFormat
    temperature: float | None
    max_response_tokens: int
    limit_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"

    def body(self, model: str, messages: Sequence[Mapping[str, str]], answer_type: type[BaseModel]) -> bytes:
        """Return the body of a request; for the format ``prompt``, the schema joins the first message."""
        body: dict[str, Any] = {"model": model, **_format_parameters(answer_type, self.response_format)}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        body[self.limit_name] = self.max_response_tokens
        if self.response_format == "prompt":
            first, *others = messages
            messages = [{**first, "content": f"{first['content']}\n{schema_instructions(answer_type)}"}, *others]
        return json.dumps({**body, "messages": list(messages)}, separators=(",", ":")).encode()

    def after_refusal(self, message_text: str, *, automatic: bool) -> "RequestOptions | None":
        """Return the next simpler options after a server rejected these; None where its message asks for none.

        The message includes parameter and code. The response format changes only where ``automatic``.
        """

        def rejected(part: str) -> bool:
            return _MENTIONS[part].search(message_text.lower()) is not None

        if self.limit_name == "max_completion_tokens" and rejected("max_completion_tokens"):
            return replace(self, limit_name="max_tokens")
        if self.temperature is not None and rejected("temperature"):
            return replace(self, temperature=None)
        if automatic and self.response_format in _SIMPLER and rejected(self.response_format):
            return replace(self, response_format=_SIMPLER[self.response_format])
        return None


_MENTIONS = {
    # As the servers word it: OpenAI "Unsupported value: 'temperature' does not support 0 with this model", vLLM
    # "[{'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), …}]", Ollama "… does not support tools",
    # OpenRouter "No endpoints found that support tool use", LiteLLM "UnsupportedParamsError: … response_format".
    "max_completion_tokens": re.compile(r"max_completion_tokens"),
    "temperature": re.compile(r"temperature"),
    "json_schema": re.compile(
        r"response_format|response format|json_schema|json schema|structured[ _]outputs?|guided|grammar"
        r"|requested parameters|invalid schema"
    ),
    "tool_call": re.compile(r"\btools?\b|tool_choice|tool_calls?|\bfunctions?\b|invalid schema|requested parameters"),
}


def rejects_request_options(message_text: str) -> bool:
    """Whether an HTTP error is about the options of a request, and not about its content or account."""
    return any(pattern.search(message_text.lower()) for pattern in _MENTIONS.values())


def response_text(message: Mapping[str, Any], response_format: str) -> str | None:
    """Return the text of the answer in a completion's message; None where there is none.

    Some servers, such as Ollama, answer in the content although a tool call was asked for: then the content counts.
    """
    calls = message.get("tool_calls")
    if response_format == "tool_call" and isinstance(calls, list) and calls:
        function = calls[0].get("function") if len(calls) == 1 and isinstance(calls[0], dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        return arguments if isinstance(arguments, str) else json.dumps(calls)
    content = message.get("content")
    return content if isinstance(content, str) and content else None


def strip_code_fence(text: str, response_format: str) -> str:
    """Return the part of a response that must be valid JSON.

    Where no schema bound the model, a ``<think>`` part before the answer is left out, and a fence where all of the rest
    is one fenced block. Nothing else is: text before or after it makes the answer invalid.
    """
    if response_format == "json_schema":
        return text
    rest = text.strip()
    if not rest.startswith(("{", "```")):
        # Some templates open the part themselves, so that only its end is in the response.
        before, end, after = rest.partition("</think>")
        rest = after.strip() if end else before
    fenced = _FENCED.match(rest)
    return fenced["inside"] if fenced else rest
