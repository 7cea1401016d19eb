"""All faults of the simulated provider in one table, and which fault a call gets.

``server`` carries out the faults of the HTTP exchange, ``corruptions`` those of an answer's content. A fault is
requested in one of three ways; the first one found applies:

* a request header ``x-simulate: rate_limit;retry_after=2``;
* a suffix of the model's name, ``simulated-judge:rate_limit`` (parameters follow in the same way);
* ``POST /control/faults`` with a list of ``{fault, params, times, every, match}``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from trajectory_pipeline.demo.simulated_judge.provider_cases import provider_cases

Param = bool | int | float | str


class FaultStage(StrEnum):
    """The part of a call that a fault affects."""

    DELAY = "delay"
    """The answer is correct, but late or missing."""
    REFUSED = "refused"
    """An HTTP error instead of an answer; no tokens are spent."""
    WIRE = "wire"
    """The HTTP exchange is faulty."""
    ANSWER = "answer"
    """HTTP is correct, the content is not; tokens are spent and charged."""
    ENVELOPE = "envelope"
    """The content is correct, the object around it is not; tokens are spent and charged."""
    DECISION = "decision"
    """An answer of the decision endpoint is faulty; tokens are spent and charged."""
    EMBEDDING = "embedding"
    """An answer of the embeddings endpoint is faulty; tokens are spent and charged."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table."""

    name: str
    stage: FaultStage
    effect: str
    params: Mapping[str, Param] = field(default_factory=dict)
    status: int = 200
    error_type: str | None = None
    error_code: str | None = None
    error_param: str | None = None
    message: str = ""


def _late(name: str, effect: str, seconds: float) -> Fault:
    return Fault(name, FaultStage.DELAY, effect, {"seconds": seconds})


def _refused(
    name: str,
    status: int,
    effect: str,
    message: str = "",
    error_type: str | None = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    params: Mapping[str, Param] | None = None,
) -> Fault:
    text = f"{message} (simulated)" if message else ""
    return Fault(name, FaultStage.REFUSED, effect, params or {}, status, error_type, code, param, text)


def _rate_limit(name: str, effect: str, params: Mapping[str, Param] | None = None) -> Fault:
    message = "Rate limit reached for simulated-judge on requests per min (RPM). Please try again later."
    return _refused(name, 429, effect, message, "requests", "rate_limit_exceeded", params=params)


def _wire(name: str, effect: str, **params: Param) -> Fault:
    return Fault(name, FaultStage.WIRE, effect, params)


def _answer(name: str, effect: str, **params: Param) -> Fault:
    return Fault(name, FaultStage.ANSWER, effect, params)


def _decision(name: str, effect: str) -> Fault:
    return Fault(name, FaultStage.DECISION, effect)


def _embedding(name: str, effect: str) -> Fault:
    return Fault(name, FaultStage.EMBEDDING, effect)


def _envelope(name: str, effect: str, **params: Param) -> Fault:
    return Fault(name, FaultStage.ENVELOPE, effect, params)


_TABLE = (
    _late("slow", "answers after some seconds, unless the client has left by then", 1.0),
    _late("hang", "never answers: holds the connection until the client leaves or the time is over", 600.0),
    _late("late_answer", "as slow, but the work is done and charged even if the client has left", 1.0),
    _rate_limit("rate_limit", "Retry-After in seconds", {"retry_after": 1.0}),
    _rate_limit("rate_limit_date", "Retry-After as an HTTP date", {"retry_after": 1.0}),
    _rate_limit("rate_limit_ms", "retry-after-ms", {"retry_after_ms": 100}),
    _rate_limit("rate_limit_bare", "does not say when to come back"),
    _refused(
        "insufficient_quota",
        429,
        "no waiting will mend it: the account is empty",
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    _refused(
        "server_error",
        500,
        "an error of the server",
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
    ),
    _refused("bad_gateway", 502, "an HTML page, as a proxy gives it"),
    _refused(
        "unavailable",
        503,
        "overloaded; with Retry-After where retry_after is above 0",
        "The engine is currently overloaded, please try again later.",
        "service_unavailable_error",
        params={"retry_after": 0.0},
    ),
    _refused("gateway_timeout", 504, "an HTML page, as a proxy gives it"),
    _refused("unauthorized", 401, "the key is wrong", "Incorrect API key provided.", code="invalid_api_key"),
    _refused(
        "echoed_key",
        401,
        "the key is wrong, and stands in the message",
        "Incorrect API key provided: {key}. You can find your API key elsewhere.",
        code="invalid_api_key",
    ),
    _refused(
        "payment_required",
        402,
        "the account is empty, as OpenRouter says it",
        "Insufficient credits. Add more and retry the request.",
        error_type=None,
    ),
    _refused(
        "forbidden",
        403,
        "the key may not do this",
        "Country, region, or territory not supported.",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    _refused(
        "context_length_exceeded",
        400,
        "the prompt is too long",
        "This model's maximum context length was exceeded. Please reduce the length of the messages.",
        code="context_length_exceeded",
        param="messages",
    ),
    _refused(
        "content_filter_request",
        400,
        "a content filter refuses the prompt",
        "The response was filtered due to the prompt triggering the content management policy.",
        code="content_filter",
        param="prompt",
    ),
    _refused(
        "unsupported_response_format",
        400,
        "for the response_format types listed (comma between them) only, so that a client can fall back",
        "Invalid parameter: 'response_format' of this type is not supported with this model.",
        param="response_format",
        params={"types": "json_schema"},
    ),
    _refused(
        "unsupported_parameter",
        400,
        "for requests that have the named parameter only",
        "Unsupported parameter: '{param}' is not supported with this model.",
        code="unsupported_parameter",
        params={"param": "temperature"},
    ),
    _refused(
        "unsupported_temperature",
        400,
        "for requests with a temperature only, as OpenAI's reasoning models say it",
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
        code="unsupported_value",
        param="temperature",
    ),
    _refused(
        "unknown_field",
        400,
        "for requests that have the named parameter only, as vLLM says it (not under `error`, a number as code)",
        "[{{'type': 'extra_forbidden', 'loc': ('body', '{param}'), 'msg': 'Extra inputs are not permitted'}}]",
        error_type="BadRequestError",
        params={"param": "max_completion_tokens"},
    ),
    _refused(
        "no_tool_support",
        400,
        "for requests with tools only, as Ollama says it",
        "{model} does not support tools",
        error_type="api_error",
    ),
    _refused(
        "no_tool_endpoint",
        404,
        "for requests with tools only, as OpenRouter says it",
        "No endpoints found that support tool use.",
        error_type=None,
    ),
    _refused(
        "model_not_found",
        404,
        "there is no such model",
        "The model '{model}' does not exist or you do not have access to it.",
        code="model_not_found",
    ),
    _wire("connection_dropped", "closed before any byte of an answer; charged only if billed", billed=False),
    _wire("connection_dropped_mid_body", "closed in the middle of the answer, which is charged", share=0.5),
    _wire("html_body", "an HTML page, as a captive portal gives it; nothing is charged"),
    _wire("slow_drip", "the answer comes in pieces, over so many seconds in all; charged", seconds=600.0),
    _wire("error_body", "status 200, and an error object instead of an answer, as OpenRouter gives it", code=502),
    _wire(
        "limit_used_up", "the right answer, and the rate headers say that nothing is left for some seconds", seconds=1.0
    ),
    _wire(
        "provider",
        "a response as a real provider sends it: the row of `provider_corpus.jsonl` with this name",
        row="mistral_thinking_parts",
    ),
    _wire("wrong_content_type", "the right answer, labelled text/plain"),
    _answer("truncated", "the text stops in the middle, finish_reason is length", share=0.5),
    _answer("content_filter_answer", "the text stops in the middle, finish_reason is content_filter", share=0.3),
    _answer("refusal", "message.refusal is set and content is null"),
    _answer("empty_content", "content is the empty string"),
    _answer("null_content", "content is null, without a refusal"),
    _answer("invalid_json", "the text is no JSON, though finish_reason is stop"),
    _answer("missing_field", "a required field is left out: the first, or the one named", field=""),
    _answer("wrong_enum", "a label that the schema does not list"),
    _answer("extra_field", "a field that the schema does not have", field="simulated_extra_field"),
    _answer("nan_number", "NaN where a number is asked for (not JSON, but some parsers take it)"),
    _answer("number_out_of_range", "a number beyond what the schema allows"),
    _answer("wrong_item_count", "a list with more, or fewer, items than the schema allows"),
    _answer("fenced_json", "the JSON stands in a Markdown fence with a sentence before it"),
    _answer("fenced_whole", "the whole answer is one Markdown fence, as local models give it"),
    _answer("thinking", "a <think> part stands before the answer, as local models give it"),
    _answer("fabricated_quote", "every quote stands in no message"),
    _answer("unknown_message", "every citation names a message that does not exist"),
    _envelope("usage_missing", "the answer has no usage"),
    _envelope("usage_null", "usage is null"),
    _envelope("wrong_model_name", "another model's name is echoed", model="some-other-model-2024-01-01"),
    _envelope("duplicate_choices", "the same choice twice, though one was asked for"),
    _envelope("no_choices", "choices is an empty list"),
    _envelope("tool_ignored", "the answer comes in words where a tool call was asked for, as Ollama gives it"),
    _decision("decision_refused", "the first question is refused, the others are answered"),
    _decision("decision_missing", "there is one answer too few"),
    _decision("decision_nan", "a probability is NaN"),
    _decision("decision_out_of_range", "a probability is above 1"),
    _decision("decision_wrong_name", "an answer has a name that was not asked for"),
    _embedding("embedding_missing", "there is one embedding too few"),
    _embedding("embedding_wrong_size", "the embeddings have other dimensions than the model's"),
    _embedding("embedding_nan", "a number of the first embedding is NaN"),
    _embedding("embedding_zero", "all numbers of the first embedding are 0"),
    _embedding("embedding_text", "the first embedding is text and no list"),
)

FAULTS: Mapping[str, Fault] = MappingProxyType({fault.name: fault for fault in _TABLE})
"""The table, by name."""


class FaultRequestError(ValueError):
    """The requested fault, or one of its parameters, does not exist."""


@dataclass(frozen=True, slots=True)
class ChosenFault:
    """A fault that a call gets, with all its parameters."""

    fault: Fault
    params: Mapping[str, Param]

    @property
    def name(self) -> str:
        """Return the fault's name in the table."""
        return self.fault.name

    def number(self, name: str) -> float:
        """Return a parameter as a number."""
        return float(self.params[name])

    def text(self, name: str) -> str:
        """Return a parameter as text."""
        return str(self.params[name])


def choose_fault(name: str, params: Mapping[str, object] | None = None) -> ChosenFault:
    """Return a fault with all its parameters; raises FaultRequestError that names what is unknown."""
    fault = FAULTS.get(name)
    if fault is None:
        raise FaultRequestError(f"there is no fault {name!r}; known are: {', '.join(FAULTS)}")
    complete: dict[str, Param] = dict(fault.params)
    for key, value in (params or {}).items():
        if key not in complete:
            known = ", ".join(complete) or "none"
            raise FaultRequestError(f"the fault {name!r} has no parameter {key!r}; it has: {known}")
        complete[key] = _convert_param(name, key, value, complete[key])
    if "row" in complete and complete["row"] not in provider_cases():
        raise FaultRequestError(f"there is no row {complete['row']!r} in provider_corpus.jsonl")
    return ChosenFault(fault, complete)


def _convert_param(fault: str, key: str, value: object, default: Param) -> Param:
    try:
        if isinstance(default, bool):
            return value if isinstance(value, bool) else str(value).strip().lower() in ("1", "true", "yes")
        if isinstance(default, int):
            return int(str(value))
        if isinstance(default, float):
            return float(str(value))
    except ValueError:
        raise FaultRequestError(f"{key}={value!r} of the fault {fault!r} is not a number") from None
    return str(value)


def parse_fault(text: str) -> ChosenFault:
    """Parse ``name;key=value;…``, from the ``x-simulate`` header or a model's suffix."""
    name, *pairs = (part.strip() for part in text.split(";"))
    params: dict[str, object] = {}
    for pair in filter(None, pairs):
        key, equals, value = pair.partition("=")
        if not equals:
            raise FaultRequestError(f"{pair!r} is not of the form key=value")
        params[key.strip()] = value.strip()
    return choose_fault(name, params)


@dataclass(slots=True)
class PlannedFault:
    """A fault planned through the control endpoint: for which calls, and how often."""

    chosen: ChosenFault
    times: int | None = None
    every: int | None = None
    match: str | None = None
    seen: int = 0
    fired: int = 0

    def as_json(self) -> dict[str, object]:
        """Return the planned fault, and how often it applied."""
        return {
            "fault": self.chosen.name,
            "params": dict(self.chosen.params),
            "times": self.times,
            "every": self.every,
            "match": self.match,
            "seen": self.seen,
            "fired": self.fired,
        }


_PLAN_KEYS = frozenset({"fault", "params", "times", "every", "match"})


class FaultPlan:
    """The faults planned through the control endpoint; the first that applies to a call is used."""

    def __init__(self) -> None:
        self._planned: list[PlannedFault] = []

    def add(self, faults: object) -> list[PlannedFault]:
        """Append planned faults, all or none; raises FaultRequestError."""
        if isinstance(faults, Mapping):
            faults = [faults]
        if not isinstance(faults, list):
            raise FaultRequestError("a list of {fault, params, times, every, match} is expected")
        added = [_parse_planned(fault) for fault in faults]
        self._planned += added
        return added

    def clear(self) -> None:
        """Remove all planned faults."""
        self._planned.clear()

    def planned(self) -> Sequence[PlannedFault]:
        """Return the planned faults in the sequence in which they are tried."""
        return tuple(self._planned)

    def next_fault(self, prompt: str, applies: Callable[[ChosenFault], bool] = lambda _: True) -> ChosenFault | None:
        """Return the fault that the next call gets, and count it as carried out.

        A fault that cannot strike a call (``applies`` says so) leaves that call uncounted.
        """
        for planned in self._planned:
            if planned.match is not None and planned.match not in prompt:
                continue
            if planned.times is not None and planned.fired >= planned.times:
                continue
            if not applies(planned.chosen):
                continue
            planned.seen += 1
            if planned.every is not None and planned.seen % planned.every:
                continue
            planned.fired += 1
            return planned.chosen
        return None


def _parse_planned(planned: Any) -> PlannedFault:
    if not isinstance(planned, Mapping) or not isinstance(planned.get("fault"), str):
        raise FaultRequestError(f"a planned fault is an object with the key fault; this is not: {planned!r}")
    if unknown := sorted(set(planned) - _PLAN_KEYS):
        raise FaultRequestError(
            f"{unknown[0]!r} is no key of a planned fault; known keys: {', '.join(sorted(_PLAN_KEYS))}"
        )
    params = planned.get("params") or {}
    if not isinstance(params, Mapping):
        raise FaultRequestError(f"params is an object, not {params!r}")
    for name in ("times", "every"):
        count = planned.get(name)
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise FaultRequestError(f"{name} is a whole number from 1 on, or null, not {count!r}")
    match = planned.get("match")
    if match is not None and not isinstance(match, str):
        raise FaultRequestError(f"match is a piece of the prompt, or null, not {match!r}")
    chosen = choose_fault(planned["fault"], params)
    return PlannedFault(chosen, planned.get("times"), planned.get("every"), match)


def fault_table_text(width: int = 110) -> str:
    """Write the table for a terminal."""
    lines = []
    for fault in FAULTS.values():
        params = "".join(f";{key}={value}" for key, value in fault.params.items())
        status = "" if fault.status == 200 else f"[{fault.status}] "
        lines.append(f"  {fault.name + params:<42} {status}{fault.effect}"[: width + 42].rstrip())
    return "\n".join(lines)


def fault_table_markdown() -> str:
    """Write the table for a documentation page."""
    lines = ["| fault | stage | HTTP status | parameters (default) | what happens |", "|---|---|---|---|---|"]
    for fault in FAULTS.values():
        params = ", ".join(f"`{key}={value}`" for key, value in fault.params.items()) or "–"
        lines.append(f"| `{fault.name}` | {fault.stage} | {fault.status} | {params} | {fault.effect} |")
    return "\n".join(lines)
