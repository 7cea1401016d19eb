"""The text of a response to a checked request: plain text or JSON, corrupted if a fault asks for it.

An answer is always a valid ``JudgeResponse`` or ``PartFindings`` unless a fault corrupts it. The same request and fault
always give the same text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel

from trajectory_pipeline.demo.simulated_judge import prices
from trajectory_pipeline.demo.simulated_judge.corruptions import (
    REFUSAL_TEXT,
    corrupt_data,
    corrupt_text,
    write_json,
)
from trajectory_pipeline.demo.simulated_judge.faults import ChosenFault
from trajectory_pipeline.demo.simulated_judge.injection import obey
from trajectory_pipeline.demo.simulated_judge.prices import base_model
from trajectory_pipeline.demo.simulated_judge.protocol import (
    BYTES_PER_TOKEN,
    ChatRequest,
    tokens_of,
)
from trajectory_pipeline.demo.simulated_judge.rules import SUMMARY_MARK, Answer, judge, quotes
from trajectory_pipeline.demo.simulated_judge.scripted import scripted_answer
from trajectory_pipeline.demo.simulated_judge.transcript import (
    Transcript,
    find_transcript,
    parse_transcript,
)
from trajectory_pipeline.demo.simulated_judge.window_findings import findings_in_window
from trajectory_pipeline.judge.response_schema import JudgeResponse, PartFindings

_IN_PROMPT = "JSON object and nothing else, of this type:\n"
NO_TRANSCRIPT_TEXT = f"{SUMMARY_MARK}There is no transcript in this request, so there is nothing to judge."


@dataclass(frozen=True, slots=True)
class Reply:
    """The text of the model's response, and why it stopped."""

    content: str | None
    finish_reason: str = "stop"
    refusal: str | None = None

    def tokens(self) -> int:
        """Estimate the tokens of content and refusal."""
        return tokens_of((self.content or "") + (self.refusal or ""))


def answer_request(request: ChatRequest, chosen: ChosenFault | None) -> Reply:
    """Return what the model says: plain text, or JSON where the request asks for it in any of the three ways."""
    if chosen is not None and chosen.name == "refusal":
        return Reply(None, refusal=REFUSAL_TEXT)
    if chosen is not None and chosen.name == "null_content":
        return Reply(None)
    transcript = _transcript(request)
    if _asks_for_json(request):
        text = _json_text(request, transcript, chosen)
    else:
        text = str(_answer(request, transcript)["summary"]) if transcript is not None else NO_TRANSCRIPT_TEXT
    finish_reason = "stop"
    if chosen is not None:
        text = corrupt_text(chosen, text)
        finish_reason = {"truncated": "length", "content_filter_answer": "content_filter"}.get(chosen.name, "stop")
    if request.max_tokens is not None and tokens_of(text) > request.max_tokens:
        text = text.encode()[: request.max_tokens * BYTES_PER_TOKEN].decode("utf-8", "ignore")
        finish_reason = "length"
    return Reply(text, finish_reason)


def _asks_for_json(request: ChatRequest) -> bool:
    return request.tool is not None or request.response_format != "text" or _IN_PROMPT in request.prompt


def _transcript(request: ChatRequest) -> Transcript | None:
    # The last one: a request to repair an answer repeats the conversation, and may show the transcript again.
    for text in reversed(request.user_texts):
        block = find_transcript(text)
        if block is not None:
            return parse_transcript(block, text)
    return None


def _answer(request: ChatRequest, transcript: Transcript) -> Answer:
    match base_model(request.model):
        case prices.SCRIPTED_MODEL:
            return scripted_answer(transcript)
        case prices.OBEDIENT_MODEL:
            return obey(transcript, judge(transcript))
        case _:
            return judge(transcript)


def _asks_for_findings(request: ChatRequest) -> bool:
    if schema := _schema(request):
        return "findings" in (schema.get("properties") or {})
    # Where no schema binds the answer, it stands in the prompt.
    return f"{_IN_PROMPT}{{findings:" in request.prompt


def _json_text(request: ChatRequest, transcript: Transcript | None, chosen: ChosenFault | None) -> str:
    shown = transcript or Transcript()
    model: type[BaseModel]
    if _asks_for_findings(request):
        model, answer = PartFindings, findings_in_window(shown)
    else:
        model, answer = JudgeResponse, _answer(request, shown)
    shaped = model.model_validate(answer).model_dump() | _other_fields(request, model)
    if chosen is None:
        return orjson.dumps(shaped).decode()
    return write_json(corrupt_data(chosen, shaped, model.model_json_schema(), _true_citation(transcript)))


def _schema(request: ChatRequest) -> Mapping[str, Any]:
    schema = request.tool.parameters if request.tool is not None else request.schema
    return schema if isinstance(schema, Mapping) else {}


def _other_fields(request: ChatRequest, model: type[BaseModel]) -> dict[str, Any]:
    """Return the least value of each field that a schema adds to the ones known here."""
    schema = _schema(request)
    return {
        name: _least_value(field, schema.get("$defs", {}))
        for name, field in schema.get("properties", {}).items()
        if name not in model.model_fields
    }


def _least_value(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return _least_value(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    if "anyOf" in schema:
        return _least_value(schema["anyOf"][0], definitions)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][0]
    if kind == "object":
        return {name: _least_value(field, definitions) for name, field in schema.get("properties", {}).items()}
    return {"string": "simulated", "boolean": False, "integer": 0, "number": 0, "array": []}.get(kind)


def _true_citation(transcript: Transcript | None) -> Mapping[str, str]:
    for message in transcript.messages if transcript is not None else ():
        for quote in quotes(message.text):
            return {"message_id": message.message_id, "quote": quote}
    return {"message_id": "message-simulated", "quote": "simulated"}
