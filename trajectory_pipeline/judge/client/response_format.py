"""How an answer's form is asked for, and how the text is found again in what comes back.

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
    """Return an answer's JSON schema as strict mode takes it: without ``minLength``, which it does not know."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key != "minLength"}
        return [without(item) for item in value] if isinstance(value, list) else value

    schema: dict[str, Any] = without(answer_type.model_json_schema())
    return schema


@cache
def schema_instructions(answer_type: type[BaseModel]) -> str:
    """Return what asks for an answer's form in the prompt itself."""
    schema = json.dumps(strict_schema(answer_type), ensure_ascii=False, separators=(",", ":"))
    return f"Answer with one JSON object and nothing else, valid by this JSON schema:\n{schema}"


@cache
def format_parameters(answer_type: type[BaseModel], response_format: ResponseFormat) -> Mapping[str, Any]:
    """Return the parameters that ask for an answer's form."""
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
    """What a request has besides model and messages, as far as a server may refuse it.

    Attributes:
        response_format: how the answer's form is asked for.
        temperature: sent where it is not None.
        max_response_tokens: that the answer may have.
        limit_name: the parameter that carries it.
    """

    response_format: ResponseFormat
    temperature: float | None
    max_response_tokens: int
    limit_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"

    def body(self, model: str, messages: Sequence[Mapping[str, str]], answer_type: type[BaseModel]) -> bytes:
        """Return the body of a request.

        Args:
            model: as the provider names it.
            messages: of the chat; the schema joins the first, where the prompt must name it.
            answer_type: what an answer must be valid by.
        """
        body: dict[str, Any] = {"model": model, **format_parameters(answer_type, self.response_format)}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        body[self.limit_name] = self.max_response_tokens
        if self.response_format == "prompt":
            first, *others = messages
            messages = [{**first, "content": f"{first['content']}\n{schema_instructions(answer_type)}"}, *others]
        return json.dumps({**body, "messages": list(messages)}, separators=(",", ":")).encode()

    def after_refusal(self, message_text: str, *, automatic: bool) -> "RequestOptions | None":
        """Return the next simpler options after a server rejected these; None where its message asks for none.

        Args:
            message_text: of the rejection: message, parameter and code.
            automatic: whether the answer's format may change; parameters may in any case.
        """
        for part, simpler in self._simpler(automatic=automatic):
            if _mentions(message_text, part):
                return simpler
        return None

    def _simpler(self, *, automatic: bool) -> list[tuple[str, "RequestOptions"]]:
        options: list[tuple[str, RequestOptions]] = []
        if self.limit_name == "max_completion_tokens":
            options.append(("max_completion_tokens", replace(self, limit_name="max_tokens")))
        if self.temperature is not None:
            options.append(("temperature", replace(self, temperature=None)))
        if automatic and self.response_format in _SIMPLER:
            options.append((self.response_format, replace(self, response_format=_SIMPLER[self.response_format])))
        return options


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


def _mentions(message_text: str, part: str) -> bool:
    return _MENTIONS[part].search(message_text.lower()) is not None


def rejects_request_options(message_text: str) -> bool:
    """Whether an HTTP error is about the options of a request, and not about its content or account."""
    return any(pattern.search(message_text.lower()) for pattern in _MENTIONS.values())


def response_text(message: Mapping[str, Any], response_format: str) -> str | None:
    """Return the text that is to be the answer, as it came in a completion's message; None where it says nothing.

    A server that was asked for a tool call and answers in message_text (Ollama does) is taken at its message_text.
    """
    calls = message.get("tool_calls")
    if response_format == "tool_call" and isinstance(calls, list) and calls:
        function = calls[0].get("function") if len(calls) == 1 and isinstance(calls[0], dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        return arguments if isinstance(arguments, str) else json.dumps(calls)
    content = message.get("content")
    return content if isinstance(content, str) and content else None


def strip_code_fence(text: str, response_format: str) -> str:
    """Return what is to be valid JSON of an answer.

    Where no schema bound the model, a ``<think>`` part before the answer is left out, and a fence where the whole of
    the rest is one fenced block. Nothing else is: text before or after it makes the answer invalid.
    """
    if response_format == "json_schema":
        return text
    rest = text.strip()
    if not rest.startswith(("{", "```")):
        # Some templates open the part themselves, so that only its end stands in the answer.
        before, end, after = rest.partition("</think>")
        rest = after.strip() if end else before
    fenced = _FENCED.match(rest)
    return fenced["inside"] if fenced else rest
