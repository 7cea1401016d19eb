"""One HTTP call to a judge: sends the request and reads the response; no field of it is taken for granted."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI

from trajectory_pipeline.budget.prices import CallUsage
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.errors import classify_error, error_object_text, no_answer_error
from trajectory_pipeline.judge.client.response_format import response_text
from trajectory_pipeline.schema.enums import AttemptResult, ErrorClass

_MAX_TOKENS = 2**53
"""No call has as many: a larger number is no token count."""
_SIMULATED_HEADER = "x-simulated"
"""What a server that is a simulation, and no model, sends with every response."""
_NO_COMPLETION = "what came is no chat completion"


@dataclass(frozen=True)
class HttpReply:
    """Result of one call; ``refusal`` is the provider's text where it answered with an error, empty otherwise."""

    call: CallRecord
    text: str | None = None
    headers: Mapping[str, str] | None = None
    refusal: str = ""


async def send_call(client: AsyncOpenAI, sent: CallRecord, body: bytes, timeout_seconds: float) -> HttpReply:
    """Make a call, within a wall-clock limit.

    The client's own typed method is not used: preparing its parameters and building its objects costs more time than
    all else that a verdict takes here, and the response is checked field by field anyway.
    """
    began = time.monotonic_ns()
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await client.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                content=body,
                options={"headers": {"Content-Type": "application/json"}},
            )
        call, text = _read(_with_status(sent, response), response.content)
        refusal = call.error_message or "" if call.result is AttemptResult.ERROR else ""
        reply = HttpReply(call, text, response.headers, refusal)
    except openai.APIStatusError as error:
        # Servers put the reason in either of them.
        text = f"{error.message} {error.body if isinstance(error.body, dict) else ''}"
        call = sent.failed(AttemptResult.ERROR, classify_error(error.status_code, text), error.message)
        reply = HttpReply(_with_status(call, error.response), headers=error.response.headers, refusal=text)
    except (TimeoutError, openai.APIConnectionError) as error:
        reply = HttpReply(no_answer_error(sent, error, timeout_seconds))
    except ValueError as error:
        # What the HTTP library raises for a URL that it cannot use.
        message = f"the provider could not be asked: {error}"
        reply = HttpReply(sent.failed(AttemptResult.ERROR, ErrorClass.CONNECTION, message))
    simulated = _SIMULATED_HEADER in (reply.headers or {})
    return replace(reply, call=replace(reply.call, duration_ns=time.monotonic_ns() - began, simulated=simulated))


def _with_status(call: CallRecord, response: httpx2.Response) -> CallRecord:
    return replace(call, http_status=response.status_code, request_id=response.headers.get("x-request-id"))


def _read(call: CallRecord, content: bytes) -> tuple[CallRecord, str | None]:
    """Return the call with its usage and its end, and the text of the response or None."""

    def unusable(error_class: ErrorClass, message: str) -> CallRecord:
        return call.failed(AttemptResult.UNUSABLE, error_class, message)

    try:
        # Whatever content type a proxy has put on it: a completion was paid for.
        completion = json.loads(content)
    except (ValueError, RecursionError) as error:
        return unusable(ErrorClass.NOT_A_COMPLETION, f"{_NO_COMPLETION}: {error}"), None
    if not isinstance(completion, dict):
        return unusable(ErrorClass.NOT_A_COMPLETION, _NO_COMPLETION), None
    call = replace(
        call,
        result=AttemptResult.ANSWERED,
        response_model=_string(completion.get("model")),
        usage=_usage(completion.get("usage")),
    )
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if error_object := completion.get("error") or choice.get("error"):
        status, text = error_object_text(error_object)
        return call.failed(AttemptResult.ERROR, classify_error(status, text), text), None
    if not isinstance(choices, list):
        return unusable(ErrorClass.NOT_A_COMPLETION, _NO_COMPLETION), None
    if not isinstance(message, dict):
        return unusable(ErrorClass.NO_ANSWER, "the answer has no choice, or a choice without a message"), None
    call = replace(call, finish_reason=_string(choice.get("finish_reason")))
    response = response_text(message, call.response_format)
    if message.get("refusal"):
        return call.failed(AttemptResult.REFUSED, ErrorClass.REFUSED, str(message["refusal"])), None
    if call.finish_reason == "content_filter":
        withheld = "the provider's filter withheld the answer"
        return call.failed(AttemptResult.REFUSED, ErrorClass.CONTENT_FILTER, withheld), response
    if call.finish_reason == "length":
        return unusable(ErrorClass.CUT_OFF, "the answer was cut off (finish_reason is length)"), response
    if response is None:
        return unusable(ErrorClass.NO_ANSWER, "the answer is empty"), None
    return call, response


def _usage(usage: Any) -> CallUsage | None:
    if not isinstance(usage, dict):
        return None
    prompt, output = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or output is None:
        return None
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return CallUsage(prompt, None if cached is None or cached > prompt else cached, output)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_TOKENS else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
