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

from trajectory_pipeline.judge.client.error_patterns import LIMIT_NAME, SCHEMA, TEMPERATURE, TOOLS
from trajectory_pipeline.schema.enums import ResponseFormat

_SIMPLER: Mapping[ResponseFormat, ResponseFormat] = {
    ResponseFormat.JSON_SCHEMA: ResponseFormat.TOOL_CALL,
    ResponseFormat.TOOL_CALL: ResponseFormat.PROMPT,
}

_FENCED = re.compile(r"\A```[a-zA-Z]*[ \t]*\n(?P<inside>(?:(?!\n```).)*)\n```\Z", re.DOTALL)


_STRUCTURE = frozenset(
    {"$ref", "additionalProperties", "anyOf", "const", "enum", "items", "properties", "required", "type"}
)
"""Keywords of JSON schemas that every provider knows. Others, such as ``minItems`` and ``maximum``, some refuse."""


@cache
def strict_schema(answer_type: type[BaseModel]) -> dict[str, Any]:
    """Return an answer's JSON schema: structure alone, each definition that is used once in its place.

    Descriptions and limits stand in the rubric, which every model is shown: not every server shows it the schema.
    Limits need not be sent as keywords, because every answer is validated here.
    """
    whole = answer_type.model_json_schema()
    definitions = whole.get("$defs", {})
    text = json.dumps(whole)
    shared = {name for name in definitions if text.count(f'"#/$defs/{name}"') > 1}

    def structure(schema: Any) -> Any:
        if isinstance(schema, list):
            return [structure(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        name = schema.get("$ref", "").removeprefix("#/$defs/")
        if name and name not in shared:
            return structure(definitions[name])
        branches = schema.get("anyOf", ())
        if branches and all(branch.keys() == {"type"} for branch in branches):
            return {"type": [branch["type"] for branch in branches]}
        return {
            key: {name: structure(item) for name, item in value.items()} if key == "properties" else structure(value)
            for key, value in schema.items()
            if key in _STRUCTURE
        }

    named = {name: structure(definitions[name]) for name in definitions if name in shared}
    return {"$defs": named, **structure(whole)} if named else structure(whole)


@cache
def schema_text(answer_type: type[BaseModel]) -> str:
    """Return the schema as it is sent with a request: no format adds more text to a prompt."""
    return json.dumps(strict_schema(answer_type), separators=(",", ":"))


@cache
def schema_instructions(answer_type: type[BaseModel]) -> str:
    """Return the sentence that gives the schema in the prompt itself: as a type, which is half as long."""
    schema = strict_schema(answer_type)
    return f"Answer with one JSON object and nothing else, of this type:\n{_type_text(schema, schema.get('$defs', {}))}"


def _type_text(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return a schema in the notation of TypeScript."""
    if "$ref" in schema:
        return _type_text(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    if "enum" in schema:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_type_text(branch, definitions) for branch in schema["anyOf"])
    if schema.get("type") == "array":
        return f"Array<{_type_text(schema['items'], definitions)}>"
    if schema.get("type") == "object":
        fields = (f"{name}: {_type_text(field, definitions)}" for name, field in schema["properties"].items())
        return f"{{{', '.join(fields)}}}"
    return " | ".join(schema["type"]) if isinstance(schema["type"], list) else str(schema["type"])


@cache
def _format_parameters(answer_type: type[BaseModel], response_format: ResponseFormat) -> Mapping[str, Any]:
    schema = strict_schema(answer_type)
    # The title, not the class: what the judge is sent must not change with a name in code (see ``response_schema``).
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", answer_type.model_config["title"] or "").lower()
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

    def as_accepted(self, former: Mapping[str, Any], *, automatic: bool) -> "RequestOptions | None":
        """Return these options in the form in which a server accepted former ones.

        None where it may refuse what differs: another temperature, a longer answer, a response format that is not
        ``automatic``.
        """
        if (
            former["temperature"] not in (None, self.temperature)
            or former["max_response_tokens"] < self.max_response_tokens
            or not (automatic or former["response_format"] == self.response_format)
        ):
            return None
        return replace(
            self,
            response_format=ResponseFormat(former["response_format"]),
            temperature=former["temperature"],
            limit_name=former["limit_name"],
        )

    def after_refusal(self, message_text: str, *, automatic: bool, first: bool) -> "RequestOptions | None":
        """Return the next simpler options after a server rejected these; None where its message asks for none.

        The message includes parameter and code. The response format changes only where ``automatic``; whatever the
        message says, where nothing has been answered yet (``first``).
        """
        text = message_text.lower()
        if self.limit_name == "max_completion_tokens" and LIMIT_NAME.search(text):
            return replace(self, limit_name="max_tokens")
        if self.temperature is not None and TEMPERATURE.search(text):
            return replace(self, temperature=None)
        if automatic and self.response_format in _SIMPLER and (first or SCHEMA.search(text) or TOOLS.search(text)):
            return replace(self, response_format=_SIMPLER[self.response_format])
        return None


def rejects_request_options(message_text: str, *, server_error: bool = False) -> bool:
    """Whether an HTTP error is about the options of a request, and not about its content or account.

    A server that fails (500) names functions of its own: only the schema counts there.
    """
    patterns = [SCHEMA] if server_error else [LIMIT_NAME, TEMPERATURE, SCHEMA, TOOLS]
    return any(pattern.search(message_text.lower()) for pattern in patterns)


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
