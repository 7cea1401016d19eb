"""Asks an endpoint for embeddings of texts, and checks what comes, number by number."""

import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx2
from openai import AsyncOpenAI

from trajectory_pipeline.budget.prices import CallUsage
from trajectory_pipeline.judge.client.bounded_http import is_cut_off
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.http_call import HttpReply, exchange
from trajectory_pipeline.judge.client.parse import InvalidResponse
from trajectory_pipeline.judge.client.usage import read_billed_usd
from trajectory_pipeline.schema.enums import AttemptResult, ErrorClass

_BYTES_PER_NUMBER = 30
_MOST_NUMBERS = 16_000
_SHOWN_CHARACTERS = 200
_MOST_TOKENS = 2**53


@dataclass(frozen=True)
class EmbeddingsResult:
    """All calls for the embeddings of some texts, and an embedding of each text; None where no answer is usable."""

    calls: tuple[CallRecord, ...]
    embeddings: list[list[float]] | None


def max_embeddings_bytes(texts: int) -> int:
    """Return the size beyond which a response cannot be the embeddings of so many texts."""
    return 2**20 + texts * _MOST_NUMBERS * _BYTES_PER_NUMBER


async def send_embeddings(
    client: AsyncOpenAI, sent: CallRecord, texts: Sequence[str], dimensions: int | None, timeout_seconds: float
) -> HttpReply:
    """Make a call, within a wall-clock limit; ``dimensions`` is how many numbers to ask for."""
    body: dict[str, Any] = {"model": sent.model, "input": list(texts), "encoding_format": "float"}
    if dimensions is not None:
        body["dimensions"] = dimensions

    def post() -> Awaitable[httpx2.Response]:
        return client.post("/embeddings", cast_to=httpx2.Response, body=body)

    return await exchange(sent, post, _read_response, timeout_seconds)


def _read_response(call: CallRecord, response: httpx2.Response) -> HttpReply:
    text = response.content.decode("utf-8", "replace")
    if is_cut_off(response):
        return _unusable(call, response, f"what came is no list of embeddings: it is larger than {len(text)} bytes")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("data"), list):
        return _unusable(call, response, f"what came is no list of embeddings: {text[:_SHOWN_CHARACTERS]!r}")
    usage, model = body.get("usage"), body.get("model")
    call = replace(
        call,
        result=AttemptResult.ANSWERED,
        response_model=model if isinstance(model, str) else None,
        usage=_read_usage(usage),
        billed_usd=read_billed_usd(usage),
    )
    return HttpReply(call, text, response.headers)


def _unusable(call: CallRecord, response: httpx2.Response, message: str) -> HttpReply:
    failed = call.failed(AttemptResult.UNUSABLE, ErrorClass.NOT_A_COMPLETION, message)
    return HttpReply(failed, None, response.headers)


def _read_usage(usage: Any) -> CallUsage | None:
    """Return the tokens of the texts, the largest count that is told; None where there is none."""
    names = ("prompt_tokens", "input_tokens", "total_tokens")
    counts = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    told = [one for one in counts if isinstance(one, int) and not isinstance(one, bool) and 0 < one < _MOST_TOKENS]
    return CallUsage(max(told), None, 0) if told else None


def read_embeddings(text: str, texts: int, dimensions: int | None) -> list[list[float]] | InvalidResponse:
    """Return an embedding of each text, in order, or what is wrong with the answer.

    A number may still be NaN or all may be 0: that is one text's matter.

    Args:
        text: of the answer.
        texts: how many were sent.
        dimensions: numbers that each embedding must have; None where that is not known yet.
    """
    data = json.loads(text)["data"]
    if len(data) != texts:
        return InvalidResponse(ErrorClass.WRONG_COUNT, f"{texts} texts, and {len(data)} embeddings")
    if not all(isinstance(one, dict) for one in data):
        return InvalidResponse(ErrorClass.SCHEMA_VIOLATION, "what it lists are no objects with an embedding")
    indexes = [one.get("index", place) for place, one in enumerate(data)]
    if sorted(map(str, indexes)) != sorted(map(str, range(texts))):
        return InvalidResponse(ErrorClass.SCHEMA_VIOLATION, "its indexes are not those of the texts")
    found = [one.get("embedding") for _, one in sorted(zip(map(int, indexes), data, strict=True), key=lambda x: x[0])]
    for vector in found:
        if not isinstance(vector, list) or not all(type(number) in (int, float) for number in vector):
            return InvalidResponse(ErrorClass.SCHEMA_VIOLATION, "an embedding is no list of numbers")
    sizes = sorted({len(vector) for vector in found})
    if len(sizes) > 1:
        return InvalidResponse(ErrorClass.SCHEMA_VIOLATION, f"its embeddings have {sizes[0]} to {sizes[-1]} numbers")
    if not 1 <= sizes[0] <= _MOST_NUMBERS:
        return InvalidResponse(
            ErrorClass.SCHEMA_VIOLATION, f"its embeddings have {sizes[0]} numbers: 1 to {_MOST_NUMBERS} can be stored"
        )
    if dimensions is not None and sizes[0] != dimensions:
        return InvalidResponse(
            ErrorClass.SCHEMA_VIOLATION,
            f"its embeddings have {sizes[0]} numbers, and those of this model have {dimensions}: another model answers"
            " under the same name, or TRAJECTORY_EMBEDDING_DIMENSIONS asks for what it cannot do",
        )
    return found
