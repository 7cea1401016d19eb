"""One HTTP call to a judge: sends the request and reads the response; no field of it is taken for granted."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI

from trajectory_pipeline.judge.client.answer_text import find_answer, is_completion, unwrapped
from trajectory_pipeline.judge.client.backoff import requested_wait
from trajectory_pipeline.judge.client.bounded_http import is_cut_off
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.error_text import ErrorText, describe_error, read_error
from trajectory_pipeline.judge.client.errors import (
    TRANSIENT,
    classify_error,
    embedded_status,
    endpoint_hint,
    error_result,
    no_answer_error,
)
from trajectory_pipeline.judge.client.event_stream import assemble, is_event_stream
from trajectory_pipeline.judge.client.usage import read_billed_usd, read_usage
from trajectory_pipeline.schema.enums import AttemptResult, ErrorClass

SIMULATED_HEADER = "x-simulated"
"""What a server that is a simulation, and no model, sends with every response."""
_NO_COMPLETION = "what came is no chat completion"
_SHOWN_CHARACTERS = 200
_ERROR_KEYS = ("error", "errors", "detail", "message", "msg", "error_msg", "errmsg", "status_msg")


@dataclass(frozen=True)
class HttpReply:
    """Result of one call.

    Attributes:
        headers: of the response.
        refusal: all that the provider says where it answered with an error.
        wait: the seconds that it asks to wait.
    """

    call: CallRecord
    text: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""
    wait: float | None = None


async def send_call(client: AsyncOpenAI, sent: CallRecord, body: bytes, timeout_seconds: float) -> HttpReply:
    """Make a call for a chat completion, within a wall-clock limit.

    The client's own typed method is not used: preparing its parameters and building its objects costs more time than
    all else that a verdict takes here, and the response is checked field by field anyway.
    """

    def post() -> Awaitable[httpx2.Response]:
        return client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            content=body,
            options={"headers": {"Content-Type": "application/json"}},
        )

    return await exchange(sent, post, _read_response, timeout_seconds)


async def exchange(
    sent: CallRecord,
    post: Callable[[], Awaitable[httpx2.Response]],
    read: Callable[[CallRecord, httpx2.Response], HttpReply],
    timeout_seconds: float,
) -> HttpReply:
    """Post a request and read its response, or how it failed, within a wall-clock limit."""
    began = time.monotonic_ns()
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await post()
        reply = read(_with_status(sent, response), response)
    except openai.APIStatusError as error:
        call = _with_status(sent, error.response)
        seconds = (time.monotonic_ns() - began) / 1e9
        reply = _refused(call, error.response, read_error(error.response.content), error.status_code, seconds)
    except (TimeoutError, openai.APIConnectionError) as error:
        reply = HttpReply(no_answer_error(sent, error, timeout_seconds))
    except ValueError as error:
        # What the HTTP library raises for a URL that it cannot use.
        message = f"the provider could not be asked: {error}"
        reply = HttpReply(sent.failed(AttemptResult.ERROR, ErrorClass.CONNECTION, message))
    simulated = SIMULATED_HEADER in reply.headers
    return replace(reply, call=replace(reply.call, duration_ns=time.monotonic_ns() - began, simulated=simulated))


def read_reply(sent: CallRecord, response: httpx2.Response, *, simulated: bool) -> HttpReply:
    """Return what came of a call that was made in a batch, from the response that its file holds."""
    call = _with_status(sent, response)
    if response.is_success:
        reply = _read_response(call, response)
    else:
        reply = _refused(call, response, read_error(response.content), response.status_code, 0.0)
    return replace(reply, call=replace(reply.call, simulated=simulated))


def _with_status(call: CallRecord, response: httpx2.Response) -> CallRecord:
    return replace(call, http_status=response.status_code, request_id=response.headers.get("x-request-id"))


def _refused(call: CallRecord, response: httpx2.Response, error: ErrorText, status: int, seconds: float) -> HttpReply:
    """Return a call that the provider answered with an error, as an HTTP status or inside an answer."""
    wait = requested_wait(response.headers, error.words, error.fields)
    error_class = classify_error(status, error.words, wait)
    hint = endpoint_hint(error_class, error.words, call, response.headers.get("location"))
    message = f"HTTP {status}: {error.words or 'without a word'}{hint}"
    result = error_result(status, error_class, seconds)
    if call.usage is not None and result in (AttemptResult.ERROR, AttemptResult.LOST):
        # Tokens that it counted are billed.
        result = AttemptResult.UNUSABLE
    failed = call.failed(result, error_class, message)
    return HttpReply(failed, error.generated, response.headers, message, wait if error_class in TRANSIENT else None)


def _read_response(call: CallRecord, response: httpx2.Response) -> HttpReply:
    """Return the call with its usage and its end, and the text of the answer or None."""

    def unusable(call: CallRecord, error_class: ErrorClass, message: str, text: str | None = None) -> HttpReply:
        return HttpReply(call.failed(AttemptResult.UNUSABLE, error_class, message), text, response.headers)

    content = response.content
    if is_cut_off(response):
        limit = f"it is larger than {len(content)} bytes, and an answer has at most {call.max_response_tokens} tokens"
        return unusable(call, ErrorClass.NOT_A_COMPLETION, f"{_NO_COMPLETION}: {limit}")
    try:
        # Whatever content type a proxy has put on it: a completion was paid for.
        completion = json.loads(content)
    except (ValueError, RecursionError) as error:
        text = content.decode("utf-8-sig", "replace")
        if not is_event_stream(text):
            shown = read_error(content).words[:_SHOWN_CHARACTERS]
            return unusable(call, ErrorClass.NOT_A_COMPLETION, f"{_NO_COMPLETION}: {error}. It begins with: {shown!r}")
        completion = _without_comments(text) or assemble(text)
    if isinstance(completion, list) and len(completion) == 1:
        completion = completion[0]
    if not isinstance(completion, dict):
        return unusable(call, ErrorClass.NOT_A_COMPLETION, _NO_COMPLETION)
    completion = unwrapped(completion)
    answer = find_answer(completion, call.response_format)
    usage = _usage_of(completion)
    has_text = bool(answer and answer.text)
    counted = read_usage(usage, call.estimated_prompt_tokens, call.max_response_tokens, has_text=has_text)
    tier = _string(completion.get("service_tier")) or _string(usage.get("service_tier"))
    call = replace(
        call,
        result=AttemptResult.ANSWERED,
        response_model=_string(completion.get("model")),
        usage=counted and replace(counted, service_tier=tier and tier.lower()),
        billed_usd=read_billed_usd(usage),
        finish_reason=answer.finish_reason if answer else None,
    )
    if (embedded := _embedded_error(completion)) is not None:
        # Status 200 was sent because the work had begun.
        return _refused(call, response, embedded, embedded_status(embedded), math.inf)
    if completion.get("ended") is False:
        ended = "the event stream ended before the answer was whole"
        return HttpReply(call.failed(AttemptResult.LOST, ErrorClass.CONNECTION, ended), None, response.headers)
    if not is_completion(completion):
        shown = describe_error(completion).words[:_SHOWN_CHARACTERS]
        return unusable(call, ErrorClass.NOT_A_COMPLETION, f"{_NO_COMPLETION}: {shown!r}")
    if answer is None:
        return unusable(call, ErrorClass.NO_ANSWER, "the answer has no choice, or a choice without a message")
    if answer.refusal:
        refused = call.failed(AttemptResult.REFUSED, ErrorClass.REFUSED, answer.refusal)
        return HttpReply(refused, None, response.headers)
    if answer.is_withheld:
        withheld = call.failed(
            AttemptResult.REFUSED, ErrorClass.CONTENT_FILTER, "the provider's filter withheld the answer"
        )
        return HttpReply(withheld, answer.text, response.headers)
    if answer.is_cut_off:
        cut_off = f"the answer was cut off (finish_reason is {answer.finish_reason})"
        return unusable(call, ErrorClass.CUT_OFF, cut_off, answer.text)
    if answer.is_failed:
        broken = f"the server broke off while it answered (finish_reason is {answer.finish_reason})"
        return unusable(call, ErrorClass.SERVER_ERROR, broken)
    if answer.text is None:
        return unusable(call, ErrorClass.NO_ANSWER, "the answer is empty")
    return HttpReply(call, answer.text, response.headers)


def _without_comments(text: str) -> Any:
    """Return a body that a gateway kept alive with comments of an event stream before it; None for a stream."""
    try:
        return json.loads("\n".join(line for line in text.split("\n") if not line.startswith(":")))
    except (ValueError, RecursionError):
        return None


def _usage_of(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usage object, or the counts that stand beside the answer where there is none."""
    found = (completion.get(name) for name in ("usage", "usageMetadata", "usage_metadata", "x_groq"))
    beside = {name: value for name, value in completion.items() if isinstance(value, int | float)}
    return next((one for one in found if isinstance(one, dict)), beside)


def _embedded_error(completion: Mapping[str, Any]) -> ErrorText | None:
    """Return the error in a response with status 200: an error object, also in a choice, or words without an answer."""
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    if error := completion.get("error") or first.get("error"):
        return describe_error(
            {"error": error, **{key: completion[key] for key in ("code", "status") if key in completion}}
        )
    if is_completion(completion):
        return None
    if isinstance(feedback := completion.get("promptFeedback"), dict) and feedback.get("blockReason"):
        return describe_error(completion)
    status = completion.get("base_resp")  # as MiniMax sends it
    held = {**completion, **(status if isinstance(status, dict) else {})}
    has_words = any(isinstance(held.get(name), str | list) and held[name] for name in _ERROR_KEYS)
    return describe_error(completion) if has_words else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
