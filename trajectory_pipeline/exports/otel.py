"""A run as spans of OpenTelemetry: a trace a run, by the GenAI conventions or by those of OpenInference.

Sources: semantic-conventions-genai (in development, as of ``opentelemetry-semantic-conventions`` 0.66), OpenInference
0.1.42, and OTLP's JSON encoding, in which ids are hexadecimal and whole numbers of 64 bits are text. Ids are made from
the ids of run, step and call: the same run gives the same spans, however often it is exported.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from trajectory_pipeline.exports.source import (
    SPOKEN,
    ExportRun,
    Image,
    JsonObject,
    LatestCalls,
    NoPlace,
    Parts,
    Row,
    has_only_text,
    json_bytes,
    parse_arguments,
)

SCOPE = "trajectory-pipeline"
_OWN = "trajectory_pipeline"
"""Namespace of the attributes that no convention has."""
_INTERNAL, _CLIENT = 1, 3
_ERROR = 2
_INFO = 9
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_OF_RUN = (
    *("run_id", "trajectory_id", "agent_type", "organization_id", "project_id", "tags", "status", "stop_reason"),
    *("run_type", "continues_run_id", "execution_status", "execution_cause", "heuristic_outcome"),
    *("heuristic_confidence", "content_digest"),
)


@dataclass
class _Span:
    name: str
    key: str
    kind: int
    start: datetime
    end: datetime
    attributes: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Telemetry:
    """A run in OTLP's JSON encoding.

    Attributes:
        spans: of its trace.
        events: log records: its evaluations, which belong to the first span.
    """

    spans: list[JsonObject]
    events: list[JsonObject]


NO_TIME = NoPlace("no time is known")


def telemetry_of(run: ExportRun, *, openinference: bool) -> Telemetry | NoPlace:
    """Return the spans and evaluation events of a run, or why the run has no place: no time is known.

    A span for the agent, one for each call of the model, one for each call of a tool. A model's call has as its input
    what was new since the call before. With ``openinference`` the attributes are OpenInference's, and evaluations are
    attributes of the agent's span, as that convention has them.
    """
    conventions: _Conventions = _OpenInference() if openinference else _GenAi()
    spans = _Spans(run, conventions).of_run()
    if not spans:
        return NO_TIME
    trace_id = _digest("trace", run.run_id)[:32]
    verdict = run.verdict or {}
    evaluations = list(_evaluations(verdict))
    spans[0].attributes |= conventions.evaluations(evaluations)
    link = run.trajectory["continues_run_id"]
    written = [_span(span, run.run_id, trace_id) for span in spans]
    if link is not None:
        written[0]["links"] = [{"traceId": _digest("trace", link)[:32], "spanId": _span_id(link, "run")}]
    events = [] if openinference else [_event(one, spans[0], run.run_id, trace_id) for one in evaluations]
    return Telemetry(written, events)


def request_of(name: str, records: Sequence[JsonObject], split: str) -> JsonObject:
    """Return an export request of OTLP: ``name`` is ``spans`` or ``events``."""
    outer, inner, records_name = {
        "spans": ("resourceSpans", "scopeSpans", "spans"),
        "events": ("resourceLogs", "scopeLogs", "logRecords"),
    }[name]
    resource = {"attributes": _attributes({"service.name": SCOPE, f"{_OWN}.split": split})}
    return {outer: [{"resource": resource, inner: [{"scope": {"name": SCOPE}, records_name: list(records)}]}]}


class _Spans:
    """The spans of one run."""

    def __init__(self, run: ExportRun, conventions: "_Conventions") -> None:
        self._run = run
        self._conventions = conventions
        self._tools = LatestCalls[_Span]()
        self._parts: dict[str, Parts] = {}

    def of_run(self) -> list[_Span]:
        row = self._run.trajectory
        turns = list(self._run.turns())
        times = [row["start_time"], row["end_time"]]
        times += [turn["timestamp"] for turn, _ in turns]
        times += [message["timestamp"] for _, messages in turns for message in messages]
        known = [time for time in times if isinstance(time, datetime)]
        if not known:
            return []
        start = row["start_time"] if isinstance(row["start_time"], datetime) else min(known)
        end = row["end_time"] if isinstance(row["end_time"], datetime) else max(known)
        self._now = start
        children = [
            span for number, (turn, messages) in enumerate(turns) for span in self._of_turn(turn, messages, number)
        ]
        error = None
        if row["execution_status"] == "failed":
            error = (row["error"] or {}).get("message") or "failed"
        name = row["agent_name"] or row["agent_id"] or "unknown"
        root = _Span(f"invoke_agent {name}", "run", _INTERNAL, start, max(start, end), error=error)
        root.attributes = {
            **self._conventions.agent(self._run, self._inputs_of(turns), self._last_answer(turns)),
            **{f"{_OWN}.{name}": _plain(row[name]) for name in _OF_RUN},
            f"{_OWN}.task_family": self._run.family_id,
            f"{_OWN}.outcome": self._run.outcome,
            f"{_OWN}.outcome_source": self._run.outcome_source,
        }
        if error is not None:
            root.attributes["error.type"] = (row["error"] or {}).get("type") or "_OTHER"
        return [root, *children]

    def _of_turn(self, turn: Row, messages: Sequence[Row], number: int) -> Iterator[_Span]:
        answers = [each for each in messages if each["role"] == "assistant" or each["tool_calls"]]
        self._now = _time(turn["timestamp"], self._now)
        if turn["step_id"] is not None or answers:
            yield self._model_call(turn, messages, answers, number)
        for message in messages:
            self._now = _time(message["timestamp"], self._now)
            self._run.losses["decisions on approvals"] += sum(
                one["approve"] is not None for one in message["approvals"] or ()
            )
            if has_only_text(message):
                self._run.losses[f"texts of role {message['role']}"] += 1
            calls = [
                (call["id"], self._tool_call(message, call, place))
                for place, call in enumerate(message["tool_calls"] or ())
            ]
            self._tools.called(calls)
            yield from (span for _, span in calls)
            for place, one in enumerate(message["tool_returns"] or ()):
                open_span = self._tools.returned(one["tool_call_id"])
                if open_span is None:
                    # Its call was made in another run.
                    key = f"return {message['message_id']} {place}"
                    open_span = _Span("execute_tool", key, _INTERNAL, self._now, self._now, parent="run")
                    open_span.attributes = self._conventions.tool(None, one["tool_call_id"], None)
                    yield open_span
                self._return_to(open_span, one)

    def _model_call(self, turn: Row, messages: Sequence[Row], answers: Sequence[Row], number: int) -> _Span:
        start = self._now
        took = turn["llm_request_ns"] if turn["llm_request_ns"] is not None else turn["step_ns"]
        end = start + timedelta(microseconds=(took or 0) // 1000)
        model = turn["model"] or next((each["model"] for each in answers if each["model"]), None)
        error = None
        if turn["error"] is not None or turn["status"] == "FAILED":
            error = (turn["error"] or {}).get("message") or "failed"
        key = f"step {turn['step_id']}" if turn["step_id"] is not None else f"turn {number}"
        span = _Span(f"chat {model or 'unknown'}", key, _CLIENT, start, end, parent="run", error=error)
        first = answers[0] if answers else None
        before = messages[: messages.index(first)] if first is not None else messages
        span.attributes = {
            **self._conventions.model(
                turn, model, self._inputs(before), [self._answer(each, counted=True) for each in answers]
            ),
            f"{_OWN}.step_id": turn["step_id"],
            f"{_OWN}.step_run_id": turn["step_run_id"],
            f"{_OWN}.message_ids": [each["message_id"] for each in answers],
        }
        if error is not None:
            span.attributes["error.type"] = (turn["error"] or {}).get("type") or "_OTHER"
        return span

    def _tool_call(self, message: Row, call: Row, place: int) -> _Span:
        name = call["name"] or "unknown"
        key = f"call {message['message_id']} {place}"
        span = _Span(f"execute_tool {name}", key, _INTERNAL, self._now, self._now, parent="run")
        span.attributes = self._conventions.tool(name, call["id"], call["arguments"])
        return span

    def _return_to(self, span: _Span, one: Row) -> None:
        span.end = max(span.start, self._now)
        span.attributes |= self._conventions.returned(self._run.returned_parts(one))
        if one["denied"]:
            span.attributes[f"{_OWN}.denied"] = True
        elif one["status"] == "error":
            span.error = "the tool reported an error"
            span.attributes["error.type"] = "_OTHER"

    def _parts_of(self, message: Row) -> Parts:
        """Return the parts of a message, which several spans show: what is lost of it is counted once."""
        if message["message_id"] not in self._parts:
            self._parts[message["message_id"]] = self._run.parts_of(message)
        return self._parts[message["message_id"]]

    def _inputs_of(self, turns: Sequence[tuple[Row, Sequence[Row]]]) -> list["_Message"]:
        return self._inputs([message for _, messages in turns for message in messages])

    def _inputs(self, messages: Sequence[Row]) -> list["_Message"]:
        return [
            _Message("system" if each["role"] == "system" else "user", self._parts_of(each))
            for each in messages
            if each["role"] in SPOKEN
        ]

    def _last_answer(self, turns: Sequence[tuple[Row, Sequence[Row]]]) -> "_Message | None":
        answers = [each for _, messages in turns for each in messages if each["role"] == "assistant"]
        return self._answer(answers[-1], counted=False) if answers else None

    def _answer(self, message: Row, *, counted: bool) -> "_Message":
        reasoning = self._run.reasoning_of(message) if counted else None
        return _Message("assistant", self._parts_of(message), reasoning, message["tool_calls"] or ())


@dataclass(frozen=True)
class _Message:
    role: str
    parts: Parts
    reasoning: str | None = None
    calls: Sequence[Row] = ()


@dataclass(frozen=True)
class _Evaluation:
    name: str
    label: str | None
    score: float | None
    explanation: str | None


def _evaluations(verdict: Mapping[str, Any]) -> Iterator[_Evaluation]:
    """Yield what the judge said; nothing of a heuristic, and nothing where there is no verdict."""
    if verdict.get("outcome") is not None:
        yield _Evaluation("outcome", verdict["outcome"], verdict["outcome_confidence"], verdict.get("summary"))
    if verdict.get("learning_value") is not None:
        yield _Evaluation("learning_value", None, verdict["learning_value"], verdict.get("lesson"))


class _Conventions:
    """Names of attributes; None is left out of a span."""

    def agent(self, run: ExportRun, inputs: Sequence[_Message], answer: _Message | None) -> dict[str, Any]:
        raise NotImplementedError

    def model(
        self, turn: Row, model: str | None, inputs: Sequence[_Message], answers: Sequence[_Message]
    ) -> dict[str, Any]:
        raise NotImplementedError

    def tool(self, name: str | None, call_id: str | None, arguments: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def returned(self, parts: Parts) -> dict[str, Any]:
        raise NotImplementedError

    def evaluations(self, evaluations: Sequence[_Evaluation]) -> dict[str, Any]:
        raise NotImplementedError


_FINISH_REASONS = {"end_turn": "stop", "max_tokens_exceeded": "length", "requires_approval": "tool_calls"}


class _GenAi(_Conventions):
    """OpenTelemetry's conventions for generative AI; content is JSON text, as they ask of spans."""

    def agent(self, run: ExportRun, inputs: Sequence[_Message], answer: _Message | None) -> dict[str, Any]:
        row = run.trajectory
        models = row["models"] or []
        reported = row["usage_reported"]
        prompt = run.system_prompt
        tools = [{"type": "function", **tool["function"]} for tool in run.tool_definitions]
        return {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": run.source,
            "gen_ai.agent.id": row["agent_id"],
            "gen_ai.agent.name": row["agent_name"],
            "gen_ai.conversation.id": row["conversation_id"],
            "gen_ai.request.model": models[0] if len(models) == 1 else None,
            "gen_ai.usage.input_tokens": row["input_tokens"] if reported else None,
            "gen_ai.usage.output_tokens": row["output_tokens"] if reported else None,
            "gen_ai.system_instructions": None if prompt is None else _json([{"type": "text", "content": prompt}]),
            "gen_ai.tool.definitions": _json(tools) if tools else None,
            "gen_ai.input.messages": _json([self._message(each) for each in inputs]) if inputs else None,
            "gen_ai.output.messages": None if answer is None else _json([self._message(answer)]),
        }

    def model(
        self, turn: Row, model: str | None, inputs: Sequence[_Message], answers: Sequence[_Message]
    ) -> dict[str, Any]:
        own = turn["step_run_id"] is None
        finish = _FINISH_REASONS.get(turn["stop_reason"] or "", turn["stop_reason"])
        return {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": turn["provider"] or "unknown",
            "gen_ai.request.model": model,
            "gen_ai.response.finish_reasons": None if finish is None else [finish],
            "gen_ai.usage.input_tokens": turn["input_tokens"] if own else None,
            "gen_ai.usage.output_tokens": turn["output_tokens"] if own else None,
            "gen_ai.usage.cache_read.input_tokens": turn["cached_input_tokens"] if own else None,
            "gen_ai.usage.cache_creation.input_tokens": turn["cache_write_tokens"] if own else None,
            "gen_ai.usage.reasoning.output_tokens": turn["reasoning_tokens"] if own else None,
            "gen_ai.input.messages": _json([self._message(each) for each in inputs]) if inputs else None,
            "gen_ai.output.messages": _json([self._message(each) for each in answers]) if answers else None,
        }

    def tool(self, name: str | None, call_id: str | None, arguments: str | None) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": call_id,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.arguments": arguments,
        }

    def returned(self, parts: Parts) -> dict[str, Any]:
        if any(isinstance(part, Image) for part in parts):
            return {"gen_ai.tool.call.result": _json([self._part(part) for part in parts])}
        return {"gen_ai.tool.call.result": "\n".join(part for part in parts if isinstance(part, str))}

    def evaluations(self, evaluations: Sequence[_Evaluation]) -> dict[str, Any]:  # noqa: ARG002 - they are events
        return {}

    def _message(self, message: _Message) -> JsonObject:
        parts: list[JsonObject] = []
        if message.reasoning is not None:
            parts.append({"type": "reasoning", "content": message.reasoning})
        parts += [self._part(part) for part in message.parts]
        for call in message.calls:
            parsed = parse_arguments(call["arguments"])
            arguments = parsed.text if parsed.value is None else parsed.value
            parts.append(
                {"type": "tool_call", "id": call["id"], "name": call["name"] or "unknown", "arguments": arguments}
            )
        return {"role": message.role, "parts": parts}

    @staticmethod
    def _part(part: str | Image) -> JsonObject:
        if isinstance(part, str):
            return {"type": "text", "content": part}
        return {"type": "blob", "modality": "image", "mime_type": part.media_type, "content": part.data}


class _OpenInference(_Conventions):
    """OpenInference's conventions: lists are flattened into names with numbers."""

    def agent(self, run: ExportRun, inputs: Sequence[_Message], answer: _Message | None) -> dict[str, Any]:
        row = run.trajectory
        reported = row["usage_reported"]
        instructions = [] if run.system_prompt is None else [run.system_prompt]
        return {
            "openinference.span.kind": "AGENT",
            "agent.name": row["agent_name"],
            "session.id": row["conversation_id"],
            "tag.tags": row["tags"] or None,
            "input.value": "\n".join([*instructions, *map(_text, inputs)]) or None,
            "output.value": None if answer is None else _text(answer),
            "llm.token_count.prompt": row["input_tokens"] if reported else None,
            "llm.token_count.completion": row["output_tokens"] if reported else None,
            "llm.token_count.total": row["total_tokens"] if reported else None,
            **{f"llm.tools.{number}.tool.json_schema": _json(tool) for number, tool in enumerate(run.tool_definitions)},
        }

    def model(
        self, turn: Row, model: str | None, inputs: Sequence[_Message], answers: Sequence[_Message]
    ) -> dict[str, Any]:
        own = turn["step_run_id"] is None
        return {
            "openinference.span.kind": "LLM",
            "llm.model_name": model,
            "llm.provider": turn["provider"],
            "llm.finish_reason": _FINISH_REASONS.get(turn["stop_reason"] or "", turn["stop_reason"]),
            "llm.token_count.prompt": turn["input_tokens"] if own else None,
            "llm.token_count.completion": turn["output_tokens"] if own else None,
            "llm.token_count.total": turn["total_tokens"] if own else None,
            "llm.token_count.prompt_details.cache_read": turn["cached_input_tokens"] if own else None,
            "llm.token_count.prompt_details.cache_write": turn["cache_write_tokens"] if own else None,
            "llm.token_count.completion_details.reasoning": turn["reasoning_tokens"] if own else None,
            **self._messages("llm.input_messages", inputs),
            **self._messages("llm.output_messages", answers),
        }

    def tool(self, name: str | None, call_id: str | None, arguments: str | None) -> dict[str, Any]:
        is_object = parse_arguments(arguments).value is not None
        return {
            "openinference.span.kind": "TOOL",
            "tool.name": name,
            "tool.id": call_id,
            "input.value": arguments,
            "input.mime_type": "application/json" if is_object else None,
        }

    def returned(self, parts: Parts) -> dict[str, Any]:
        images = [part for part in parts if isinstance(part, Image)]
        return {
            "output.value": "\n".join(part for part in parts if isinstance(part, str)),
            **{f"output.images.{number}.image.url": image.data_uri for number, image in enumerate(images)},
        }

    def evaluations(self, evaluations: Sequence[_Evaluation]) -> dict[str, Any]:
        return {
            f"evaluations.{number}.evaluation.{name}": value
            for number, one in enumerate(evaluations)
            for name, value in (
                ("name", one.name),
                ("label", one.label),
                ("score", one.score),
                ("explanation", one.explanation),
                ("annotator_kind", "LLM"),
            )
        }

    @staticmethod
    def _messages(prefix: str, messages: Sequence[_Message]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for number, message in enumerate(messages):
            name = f"{prefix}.{number}.message"
            found[f"{name}.role"] = message.role
            contents = [*([] if message.reasoning is None else [("reasoning", message.reasoning)])]
            contents += [
                ("text", part) if isinstance(part, str) else ("image", part.data_uri) for part in message.parts
            ]
            if all(kind == "text" for kind, _ in contents):
                found[f"{name}.content"] = "\n".join(text for _, text in contents)
            else:
                for place, (kind, value) in enumerate(contents):
                    content = f"{name}.contents.{place}.message_content"
                    found[f"{content}.type"] = kind
                    found[f"{content}.image.image.url" if kind == "image" else f"{content}.text"] = value
            for place, call in enumerate(message.calls):
                made = f"{name}.tool_calls.{place}.tool_call"
                found[f"{made}.id"] = call["id"]
                found[f"{made}.function.name"] = call["name"]
                found[f"{made}.function.arguments"] = call["arguments"]
        return found


def _text(message: _Message) -> str:
    return "\n".join(part for part in message.parts if isinstance(part, str))


def _json(value: Any) -> str:
    return json_bytes(value).decode()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _time(value: Any, otherwise: datetime) -> datetime:
    return value if isinstance(value, datetime) else otherwise


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _span_id(run_id: str, key: str) -> str:
    return _digest("span", run_id, key)[:16]


def _span(span: _Span, run_id: str, trace_id: str) -> JsonObject:
    written: JsonObject = {
        "traceId": trace_id,
        "spanId": _span_id(run_id, span.key),
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": _nanoseconds(span.start),
        "endTimeUnixNano": _nanoseconds(span.end),
        "attributes": _attributes(span.attributes),
    }
    if span.parent is not None:
        written["parentSpanId"] = _span_id(run_id, span.parent)
    if span.error is not None:
        written["status"] = {"code": _ERROR, "message": span.error}
    return written


def _event(one: _Evaluation, span: _Span, run_id: str, trace_id: str) -> JsonObject:
    time = _nanoseconds(span.end)
    return {
        "timeUnixNano": time,
        "observedTimeUnixNano": time,
        "severityNumber": _INFO,
        "eventName": "gen_ai.evaluation.result",
        "traceId": trace_id,
        "spanId": _span_id(run_id, span.key),
        "attributes": _attributes(
            {
                "gen_ai.evaluation.name": one.name,
                "gen_ai.evaluation.score.label": one.label,
                "gen_ai.evaluation.score.value": one.score,
                "gen_ai.evaluation.explanation": one.explanation,
            }
        ),
    }


def _nanoseconds(time: datetime) -> str:
    return str((time - _EPOCH) // timedelta(microseconds=1) * 1000)


def _attributes(values: Mapping[str, Any]) -> list[JsonObject]:
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value is not None]


def _value(value: Any) -> JsonObject:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}
