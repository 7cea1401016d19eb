"""From a checked request to what the model says: which answer, in which form, damaged or not.

Belongs here: putting transcript, rules, schema and fault together. Does not belong here: each of these, and HTTP.
Pure but for nothing: the same request and fault always give the same words.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from trajectory_pipeline.demo.simulated_judge.corruptions import (
    REFUSAL_TEXT,
    damage_data,
    damage_text,
    write_json,
)
from trajectory_pipeline.demo.simulated_judge.faults import ChosenFault
from trajectory_pipeline.demo.simulated_judge.injection import obey
from trajectory_pipeline.demo.simulated_judge.prices import OBEDIENT_MODEL, base_model
from trajectory_pipeline.demo.simulated_judge.protocol import (
    BYTES_PER_TOKEN,
    ApiError,
    ChatRequest,
    tokens_of,
)
from trajectory_pipeline.demo.simulated_judge.rules import SUMMARY_MARK, Answer, judge
from trajectory_pipeline.demo.simulated_judge.schema_instances import (
    SchemaUnsupportedError,
    fit,
    minimal_instance,
)
from trajectory_pipeline.demo.simulated_judge.transcript import (
    Transcript,
    find_transcript,
    parse_transcript,
)
from trajectory_pipeline.demo.simulated_judge.window_findings import find

NO_TRANSCRIPT_TEXT = f"{SUMMARY_MARK}There is no transcript in this request, so there is nothing to judge."


@dataclass(frozen=True, slots=True)
class Words:
    """What the model says, and why it stopped."""

    content: str | None
    finish_reason: str = "stop"
    refusal: str | None = None

    def tokens(self) -> int:
        """Estimate the tokens of all that was said."""
        return tokens_of((self.content or "") + (self.refusal or ""))


def answer_request(request: ChatRequest, chosen: ChosenFault | None) -> Words:
    """Say what the model says; raises ApiError 400 for a schema that no answer can be made for."""
    if chosen is not None and chosen.name == "refusal":
        return Words(None, refusal=REFUSAL_TEXT)
    if chosen is not None and chosen.name == "null_content":
        return Words(None)
    schema = request.tool.parameters if request.tool is not None else request.schema
    if schema is None and request.response_format == "text":
        schema = schema_in_words(request.prompt)
    transcript = _transcript(request)
    answer = _answer(request, transcript)
    if schema is None and request.response_format == "text" and answer is not None:
        text = str(answer["summary"])
    elif schema is None and request.response_format == "text":
        text = NO_TRANSCRIPT_TEXT
    else:
        text = _json_text(answer, schema, transcript, chosen)
    finish_reason = "stop"
    if chosen is not None:
        text = damage_text(chosen, text)
        finish_reason = {"truncated": "length", "content_filter_answer": "content_filter"}.get(chosen.name, "stop")
    if request.max_tokens is not None and tokens_of(text) > request.max_tokens:
        text = text.encode()[: request.max_tokens * BYTES_PER_TOKEN].decode("utf-8", "ignore")
        finish_reason = "length"
    return Words(text, finish_reason)


def schema_in_words(prompt: str) -> Any:
    """Give the schema that the words of a prompt ask for, the object on the line after "JSON schema:"; else None."""
    _, found, rest = prompt.partition("JSON schema:\n{")
    if not found:
        return None
    try:
        schema, _ = json.JSONDecoder().raw_decode("{" + rest)
    except ValueError:
        return None
    return schema


def _transcript(request: ChatRequest) -> Transcript | None:
    # The last one: a request to mend an answer repeats the conversation, and may show the transcript anew.
    for text in reversed(request.user_texts):
        block = find_transcript(text)
        if block is not None:
            return parse_transcript(block)
    return None


def _answer(request: ChatRequest, transcript: Transcript | None) -> Answer | None:
    if transcript is None:
        return None
    if _asks_for_findings(request):
        return find(transcript)
    answer = judge(transcript)
    return obey(transcript, answer) if base_model(request.model) == OBEDIENT_MODEL else answer


def _asks_for_findings(request: ChatRequest) -> bool:
    schema = request.tool.parameters if request.tool is not None else request.schema
    if isinstance(schema, Mapping):
        return "findings" in (schema.get("properties") or {})
    # Where no schema binds the answer, it stands in the prompt.
    return '"findings":{' in request.prompt


def _json_text(answer: Answer | None, schema: Any, transcript: Transcript | None, chosen: ChosenFault | None) -> str:
    shaped: Any
    if schema is None:
        shaped = answer if answer is not None else {"text": NO_TRANSCRIPT_TEXT}
    else:
        try:
            shaped = minimal_instance(schema) if answer is None else fit(schema, answer)
        except SchemaUnsupportedError as problem:
            message = f"Invalid schema for response_format: {problem} (simulated judge)"
            raise ApiError(400, message, param="response_format") from None
    if chosen is None:
        return orjson.dumps(shaped).decode()
    return write_json(damage_data(chosen, shaped, schema, _true_citation(transcript)))


def _true_citation(transcript: Transcript | None) -> Mapping[str, str]:
    for message in transcript.messages if transcript is not None else ():
        for line in message.text:
            if line.strip():
                return {"message_id": message.message_id, "quote": line.strip()[:200]}
    return {"message_id": "message-simulated", "quote": "simulated"}
