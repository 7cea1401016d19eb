"""The OpenAI API's formats: parses and checks requests, writes responses, errors and chunks, and estimates tokens."""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from trajectory_pipeline.demo.simulated_judge.faults import ChosenFault, FaultRequestError, parse_fault
from trajectory_pipeline.demo.simulated_judge.prices import (
    EMBEDDING_MODEL,
    SIMULATED_PRICES,
    base_model,
)
from trajectory_pipeline.demo.simulated_judge.strict_schema import strict_violation

Json = Any

SYSTEM_FINGERPRINT = "fp_simulated"
CONTEXT_WINDOW = 400_000

BYTES_PER_TOKEN = 4
CACHE_BLOCK_TOKENS = 128
CACHE_MIN_TOKENS = 1024

_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
_FORMATS = ("json_object", "json_schema", "text")

# Every parameter of the API as of openai 3.54; what only shapes a real model's sampling is taken and ignored.
_CHAT_PARAMETERS = (
    "messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens "
    "max_tokens metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key "
    "prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier "
    "stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity "
    "web_search_options"
)
KNOWN_CHAT_PARAMETERS = frozenset(_CHAT_PARAMETERS.split())


class ApiError(Exception):
    """An error as the API answers it; ``headers`` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str | None = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.error_type, self.code, self.param = status, message, error_type, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """Return the error object of the API."""
        return {"error": {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}}


def count_tokens(size_in_bytes: int) -> int:
    """Estimate tokens from UTF-8 bytes: four to a token, rounded up; the same for the same text, for ever."""
    return -(-size_in_bytes // BYTES_PER_TOKEN)


def tokens_of(text: str) -> int:
    """Estimate the tokens of a text."""
    return count_tokens(len(text.encode("utf-8", "surrogatepass")))


# ---- requests -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ForcedTool:
    """A function that the answer must be given through."""

    name: str
    parameters: Json


@dataclass(slots=True)
class ChatRequest:
    """A chat completion request that has been checked."""

    model: str
    user_texts: list[str]
    prompt: str
    prompt_bytes: bytes
    response_format: str = "text"
    schema: Json = None
    tool: ForcedTool | None = None
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    max_tokens: int | None = None
    fault: ChosenFault | None = None
    given: frozenset[str] = field(default_factory=frozenset)

    @property
    def prompt_tokens(self) -> int:
        """Return the estimate for schema, tools and messages together."""
        return count_tokens(len(self.prompt_bytes))


def read_json(body: bytes) -> dict[str, Any]:
    """Read a request body; raises ApiError 400 where it is not a JSON object."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"We could not parse the JSON body of your request: {error}.") from None
    if not isinstance(request, dict):
        raise ApiError(400, "The JSON body of your request is not an object.")
    return request


def read_chat_request(body: bytes) -> ChatRequest:
    """Read and check a chat completion request; raises ApiError as the API would."""
    request = read_json(body)
    _refuse_unknown(request, KNOWN_CHAT_PARAMETERS)
    model, fault = read_model(request)
    if base_model(model) == EMBEDDING_MODEL:
        raise unknown_model(model, " (it answers no chats)")
    user_texts, prompt = _messages(request)
    response_format, schema = _response_format(request, prompt)
    tool = _forced_tool(request)
    # OpenAI puts schema and tools before the messages, which also makes them part of the prefix that is cached.
    shapes = [request[name] for name in ("response_format", "tools", "functions") if request.get(name)]
    prompt_bytes = (orjson.dumps(shapes) if shapes else b"") + prompt.encode("utf-8", "surrogatepass")
    options = request.get("stream_options") or {}
    return ChatRequest(
        model=model,
        user_texts=user_texts,
        prompt=prompt,
        prompt_bytes=prompt_bytes,
        response_format=response_format,
        schema=schema,
        tool=tool,
        stream=bool(request.get("stream")),
        include_usage=bool(isinstance(options, dict) and options.get("include_usage")),
        choices=_count(request, "n", 128) or 1,
        max_tokens=_count(request, "max_completion_tokens", None) or _count(request, "max_tokens", None),
        fault=fault,
        given=frozenset(name for name, value in request.items() if value is not None),
    )


def _refuse_unknown(request: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in request:
        if name not in known:
            raise ApiError(400, f"Unrecognized request argument supplied: {name}", code="unknown_parameter", param=name)


def read_model(request: Mapping[str, Any]) -> tuple[str, ChosenFault | None]:
    """Return the model that a request names, and the fault that its suffix asks for."""
    if "model" not in request:
        raise ApiError(400, "you must provide a model parameter", param="model", code="missing_required_parameter")
    model = request["model"]
    if not isinstance(model, str):
        raise ApiError(400, "Invalid type for 'model': expected a string.", param="model", code="invalid_type")
    _, _, suffix = model.partition(":")
    if base_model(model) not in SIMULATED_PRICES:
        raise unknown_model(model)
    if not suffix:
        return model, None
    try:
        return model, parse_fault(suffix)
    except FaultRequestError as error:
        raise unknown_model(model, f" ({error})") from None


def unknown_model(model: str, reason: str = "") -> ApiError:
    """Return the API's error for a model that does not exist."""
    return ApiError(
        404, f"The model `{model}` does not exist or you do not have access to it.{reason}", code="model_not_found"
    )


def _messages(request: Mapping[str, Any]) -> tuple[list[str], str]:
    if "messages" not in request:
        raise ApiError(
            400, "Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter"
        )
    messages = request["messages"]
    if not isinstance(messages, list):
        raise ApiError(
            400, "Invalid type for 'messages': expected an array of objects.", param="messages", code="invalid_type"
        )
    if not messages:
        raise ApiError(
            400,
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    user_texts: list[str] = []
    pieces: list[str] = []
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        if not isinstance(message, dict):
            raise ApiError(400, f"Invalid type for '{where}': expected an object.", param=where, code="invalid_type")
        role = message.get("role")
        if role not in _ROLES:
            supported = ", ".join(f"'{name}'" for name in _ROLES)
            raise ApiError(
                400,
                f"Invalid value: {role!r}. Supported values are: {supported}.",
                param=f"{where}.role",
                code="invalid_value",
            )
        text = _content(message, where)
        if role == "user":
            user_texts.append(text)
        pieces.append(f"{role}\n{text}\n")
    return user_texts, "".join(pieces)


def _content(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    calls = message.get("tool_calls") or message.get("function_call")
    calls_text = orjson.dumps(calls).decode() if calls else ""
    if isinstance(content, str):
        return content + calls_text
    if content is None and (calls or message.get("role") == "assistant"):
        return calls_text
    if not isinstance(content, list):
        raise ApiError(
            400,
            f"Invalid value for 'content': expected a string, got {'null' if content is None else 'another type'}.",
            param=f"{where}.content",
            code="invalid_type",
        )
    texts: list[str] = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal") and isinstance(part.get(kind), str):
            texts.append(part[kind])
        elif kind in ("image_url", "input_audio", "file"):
            texts.append(f"({kind})")
        else:
            raise ApiError(
                400,
                f"Invalid value: {kind!r}. Supported values are: 'text', 'image_url', 'input_audio', 'refusal', "
                "and 'file'.",
                param=f"{where}.content[{number}].type",
                code="invalid_value",
            )
    return "\n".join(texts) + calls_text


def _response_format(request: Mapping[str, Any], prompt: str) -> tuple[str, Json]:
    wanted = request.get("response_format")
    if wanted is None:
        return "text", None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in _FORMATS:
        raise ApiError(
            400,
            f"Invalid value: {kind!r}. Supported values are: 'json_object', 'json_schema', and 'text'.",
            param="response_format.type",
            code="invalid_value",
        )
    if kind == "json_object" and "json" not in prompt.lower():
        raise ApiError(
            400,
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            param="messages",
        )
    if kind != "json_schema":
        return kind, None
    described = wanted.get("json_schema")
    for name in ("name", "schema"):
        if not isinstance(described, dict) or name not in described:
            raise ApiError(
                400,
                f"Missing required parameter: 'response_format.json_schema.{name}'.",
                param=f"response_format.json_schema.{name}",
                code="missing_required_parameter",
            )
    _check_schema(described["schema"], described["name"], bool(described.get("strict")), "response_format")
    return kind, described["schema"]


def _check_schema(schema: Json, name: object, strict: bool, param: str) -> None:
    problem = None
    if not isinstance(schema, dict):
        problem = "schema must be a JSON Schema object."
    elif strict:
        problem = _strict_problem(orjson.dumps(schema))
    if problem is not None:
        raise ApiError(
            400, f"Invalid schema for {param} '{name}': {problem}", param=param, code="invalid_function_parameters"
            if param != "response_format" else None,
        )  # fmt: skip


@lru_cache(maxsize=64)
def _strict_problem(schema_text: bytes) -> str | None:
    # A client sends the same schema with every request, and walking through it costs as much as answering.
    schema = orjson.loads(schema_text)
    if (problem := strict_violation(schema)) is not None:
        return problem
    return None if schema.get("type") == "object" else "schema must be a JSON Schema of type 'object'."


def _forced_tool(request: Mapping[str, Any]) -> ForcedTool | None:
    """Return the function that the answer must come through: the one named, or the first where one is required."""
    tools = request.get("tools")
    choice = request.get("tool_choice")
    if not tools:
        if isinstance(choice, dict) or choice == "required":
            raise ApiError(
                400, "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
                param="tool_choice",
            )  # fmt: skip
        return None
    functions: dict[str, Json] = {}
    for at, tool in enumerate(tools if isinstance(tools, list) else [tools]):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ApiError(400, f"Invalid value for 'tools[{at}]': a function with a name is expected.",
                           param=f"tools[{at}]", code="invalid_value")  # fmt: skip
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        _check_schema(parameters, function["name"], bool(function.get("strict")), "function")
        functions[function["name"]] = parameters
    if choice == "required":
        name = next(iter(functions))
        return ForcedTool(name, functions[name])
    if not isinstance(choice, dict):
        return None
    wanted = (choice.get("function") or {}).get("name")
    if wanted not in functions:
        raise ApiError(
            400, f"Tool choice 'function' not found in 'tools' parameter: {wanted!r}.", param="tool_choice.function",
            code="invalid_value",
        )  # fmt: skip
    return ForcedTool(wanted, functions[wanted])


def _count(request: Mapping[str, Any], name: str, most: int | None) -> int | None:
    value = request.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ApiError(400, f"Invalid type for '{name}': expected an integer.", param=name, code="invalid_type")
    if value < 1 or (most is not None and value > most):
        raise ApiError(
            400, f"Invalid '{name}': integer outside of the allowed range.", param=name,
            code="integer_below_min_value" if value < 1 else "integer_above_max_value",
        )  # fmt: skip
    return value


# ---- prompt cache -------------------------------------------------------------------------------------------------


class PrefixCache:
    """A simulated prompt cache: how much of a prompt's beginning an earlier prompt had, in whole blocks of tokens.

    As OpenAI documents it: from 1,024 tokens on, in steps of 128. One number per block is stored, and the
    least recently used are dropped, so memory is bounded.
    """

    def __init__(self, max_blocks: int = 100_000) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._max_blocks = max_blocks

    def cached_tokens(self, model: str, prompt: bytes) -> int:
        """Return the tokens that are cached, and remember the prompt."""
        size = CACHE_BLOCK_TOKENS * BYTES_PER_TOKEN
        shared = 0
        sharing = True
        chain = hash(base_model(model))
        for start in range(0, len(prompt) - size + 1, size):
            # Each number stands for all that came before it, too: equal numbers mean equal prefixes.
            chain = hash((chain, prompt[start : start + size]))
            if chain in self._blocks:
                shared += sharing
                self._blocks.move_to_end(chain)
            else:
                sharing = False
                self._blocks[chain] = None
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)
        tokens = shared * CACHE_BLOCK_TOKENS
        return tokens if tokens >= CACHE_MIN_TOKENS else 0


# ---- answers ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Completion:
    """All that a chat completion object is written from."""

    id: str
    model: str
    content: str | None
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    refusal: str | None = None
    tool_name: str | None = None
    choices: int = 1
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, object]:
        """Return the usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def as_json(self) -> dict[str, Any]:
        """Return the chat completion object."""
        message: dict[str, object] = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        message["annotations"] = []
        if self.tool_name is not None:
            message["content"] = None
            message["tool_calls"] = [self._tool_call()]
        return {
            **self._head("chat.completion"),
            "choices": [
                {"index": at, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
                for at in range(self.choices)
            ],
            "usage": self.usage(),
        }

    def chunks(self, *, include_usage: bool, piece: int = 200) -> Iterator[dict[str, Any]]:
        """Return the chunks of the same answer as they are streamed."""
        head = self._head("chat.completion.chunk")
        if include_usage:
            head["usage"] = None

        def chunk(at: int, delta: Mapping[str, object], finish_reason: str | None = None) -> dict[str, Any]:
            choice = {"index": at, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return {**head, "choices": [choice]}

        for at in range(self.choices):
            opening: dict[str, object] = {"role": "assistant", "content": "", "refusal": None}
            text = self.content or ""
            if self.tool_name is not None:
                call = self._tool_call()
                call["function"] = {"name": self.tool_name, "arguments": ""}
                opening |= {"content": None, "tool_calls": [{"index": 0, **call}]}
            yield chunk(at, opening)
            for start in range(0, len(text), piece):
                part = text[start : start + piece]
                if self.tool_name is not None:
                    yield chunk(at, {"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
                else:
                    yield chunk(at, {"content": part})
            if self.refusal is not None:
                yield chunk(at, {"refusal": self.refusal})
            yield chunk(at, {}, self.finish_reason)
        if include_usage:
            yield {**head, "choices": [], "usage": self.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }

    def _tool_call(self) -> dict[str, Any]:
        function = {"name": self.tool_name, "arguments": self.content or ""}
        return {"id": f"call_{self.id.removeprefix('chatcmpl-')[:24]}", "type": "function", "function": function}


def model_entry(model: str) -> dict[str, object]:
    """Return an entry of ``GET /v1/models``, with the listed price that OpenAI's own entries lack."""
    return {
        "id": model,
        "object": "model",
        "created": 1735689600,
        "owned_by": "simulated",
        "context_window": CONTEXT_WINDOW,
        "pricing": SIMULATED_PRICES[base_model(model)].as_json(),
    }
