"""Tells the error classes of failed calls apart, by HTTP status, code and message."""

import re
from collections.abc import Sequence
from urllib.parse import urljoin

import aiohttp

from trajectory_pipeline.judge.client import error_patterns as patterns
from trajectory_pipeline.judge.client.backoff import MAX_PAUSE_SECONDS
from trajectory_pipeline.judge.client.call_record import UNUSABLE_RESPONSES, CallRecord
from trajectory_pipeline.judge.client.error_text import ErrorText
from trajectory_pipeline.judge.client.response_format import rejects_request_options
from trajectory_pipeline.schema.enums import AttemptResult, ErrorClass
from trajectory_pipeline.urls import without_credentials

EMBEDDINGS = "embeddings"
"""``response_format`` of a call for embeddings."""
PROVIDER_DOWN = frozenset(
    {ErrorClass.SERVER_ERROR, ErrorClass.TIMEOUT, ErrorClass.CONNECTION, ErrorClass.NOT_A_COMPLETION}
)
"""Classes that mean an outage if they occur several times in a row."""

TRANSIENT = PROVIDER_DOWN | {ErrorClass.RATE_LIMITED, ErrorClass.NO_ANSWER}
"""Classes of calls that may succeed if they are repeated."""

FATAL = frozenset(
    {ErrorClass.AUTHENTICATION, ErrorClass.PERMISSION, ErrorClass.QUOTA_EXCEEDED, ErrorClass.MODEL_NOT_FOUND}
)
"""Classes that every other call would meet as well: one is enough."""

PER_PROMPT = frozenset({ErrorClass.CONTEXT_TOO_LONG, ErrorClass.CONTENT_FILTER})
"""Classes that depend on what was asked."""

_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
"""Errors in which nothing reached the provider: there is nothing to pay for."""

_CHAT_API = "chat", "/chat/completions", "OPENAI_BASE_URL"
_API = {EMBEDDINGS: ("embeddings", "/embeddings", "TRAJECTORY_EMBEDDING_BASE_URL")}
_BY_STATUS = {
    401: ErrorClass.AUTHENTICATION,
    402: ErrorClass.QUOTA_EXCEEDED,
    403: ErrorClass.PERMISSION,
    404: ErrorClass.MODEL_NOT_FOUND,
    405: ErrorClass.MODEL_NOT_FOUND,
    410: ErrorClass.MODEL_NOT_FOUND,
}
FORM_STATUSES = frozenset({400, 404, 415, 422, 500, 501})
"""Statuses with which a server may refuse the form of a request."""
_GATEWAY_STATUSES = frozenset({408, 424, 444, 460, 499})
"""Below 500, and yet said by something on the way, or after the work began."""
_OWN_SERVER_ERRORS = frozenset({500, 501, 503, 505, 529})
_AT_ONCE_SECONDS = 5.0
"""A server that cannot serve says so before a model could have written an answer."""


def classify_error(status: int, text: str, wait: float | None = None) -> ErrorClass:
    """Return the class of an HTTP error, by its status and all its text, which say more than the status alone.

    ``status`` may be the code in an error with status 200; ``wait`` is the time that the error names to wait for.
    """
    text = text.lower()
    if 300 <= status < 400 or (status < 500 and patterns.ENDPOINT.search(text)):
        return ErrorClass.MODEL_NOT_FOUND
    if patterns.GENERATION.search(text):
        return ErrorClass.CUT_OFF if patterns.USED_UP.search(text) else ErrorClass.INVALID_JSON
    if status not in (401, 402) and patterns.CONTEXT.search(text):
        return ErrorClass.CONTEXT_TOO_LONG
    if status < 500 and patterns.NO_CREDIT.search(text):
        return ErrorClass.QUOTA_EXCEEDED
    if status == 429 or (status in (400, 403, 413, 503) and patterns.RATE.search(text)):
        return _class_of_limit(text, wait)
    if status < 500 and status not in (402, 404) and patterns.KEY.search(text):
        return ErrorClass.AUTHENTICATION
    if status in (400, 403, 422, 446, 451) and patterns.FILTER.search(text):
        return ErrorClass.CONTENT_FILTER
    if status in FORM_STATUSES and rejects_request_options(text, server_error=status == 500):
        return ErrorClass.UNSUPPORTED
    if status < 500 and patterns.MODEL.search(text):
        return ErrorClass.MODEL_NOT_FOUND
    if status >= 500 or status == 409 or status in _GATEWAY_STATUSES:
        return ErrorClass.SERVER_ERROR
    return _BY_STATUS.get(status, ErrorClass.BAD_REQUEST)


def _class_of_limit(text: str, wait: float | None) -> ErrorClass:
    """Tell a limit that a pause mends from a quota that is used up: providers word both as quota."""
    if not patterns.QUOTA.search(text) or patterns.SHORT_LIMIT.search(text):
        return ErrorClass.RATE_LIMITED
    # A quota of a day is not mended within a minute, whatever time to wait it names.
    if wait is None or (wait <= MAX_PAUSE_SECONDS and patterns.DAILY_LIMIT.search(text) and "current quota" in text):
        return ErrorClass.QUOTA_EXCEEDED
    return ErrorClass.RATE_LIMITED


def error_result(status: int, error_class: ErrorClass, seconds: float) -> AttemptResult:
    """Return how a call with an HTTP error ended: ``error`` only where nothing can have been billed for it.

    That is the provider's own refusal, or a failure of its server that came at once. A gateway's error, or one after a
    long time, may stand for an answer that was written and billed. So may an answer that the provider could not use,
    and a prompt that its filter read.
    """
    if error_class in UNUSABLE_RESPONSES:
        return AttemptResult.UNUSABLE
    if error_class is ErrorClass.CONTENT_FILTER:
        return AttemptResult.REFUSED
    if error_class is not ErrorClass.SERVER_ERROR or status == 409:
        return AttemptResult.ERROR
    at_once = status in _OWN_SERVER_ERRORS and seconds < _AT_ONCE_SECONDS
    return AttemptResult.ERROR if at_once else AttemptResult.LOST


def is_outage(recent: Sequence[str | None], opens_after: int) -> bool:
    """Whether a provider was down when it was called last, by the error classes of recent calls, the newest first.

    The class is None for an answer; so many consecutive failures as ``opens_after`` count as down.
    """
    if recent and recent[0] in FATAL:
        return True
    return len(recent) >= opens_after and all(one in PROVIDER_DOWN for one in recent[:opens_after])


def embedded_status(error: ErrorText) -> int:
    """Return the HTTP status of an error that came with status 200, as OpenRouter sends it.

    It is the code that the error names, 400 where only its words say what was refused, else 502.
    """
    codes = (str(value) for name, value in error.fields if name in ("code", "status", "status_code", "statusCode"))
    named = next((int(code) for code in codes if re.fullmatch("[45][0-9]{2}", code)), None)
    return named or (502 if classify_error(400, error.words) is ErrorClass.BAD_REQUEST else 400)


def endpoint_hint(error_class: ErrorClass, words: str, call: CallRecord, location: str | None) -> str:
    """Return what to change where the URL is wrong: a redirect, or a path without such an API."""
    api, path, setting = _API.get(call.response_format, _CHAT_API)
    called = f"{without_credentials(call.base_url).rstrip('/')}{path}"
    if location is not None:
        target = without_credentials(urljoin(called, location))
        return f". {called} redirects to {target}: set {setting} to that address, without {path}"
    if error_class is not ErrorClass.MODEL_NOT_FOUND or "model" in words.lower():
        return ""
    advice = f"{setting} is the part before {path}, and mostly ends in /v1"
    return f". There is no {api} API at {called}: {advice}"


def no_answer_error(sent: CallRecord, error: BaseException, timeout_seconds: float) -> CallRecord:
    """Return a call without a response as failed: never sent, or ``lost``, where the provider may bill it."""
    # The client calls every lost connection a timeout. The transport's own error, its cause, tells them apart.
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = str(causes[min(1, len(causes) - 1)]) or type(causes[-1]).__name__
    if any(isinstance(cause, _NEVER_SENT) for cause in causes):
        return sent.failed(AttemptResult.ERROR, ErrorClass.CONNECTION, f"the provider could not be reached: {text}")
    if any(isinstance(cause, TimeoutError) for cause in causes):
        setting = "EMBEDDING" if sent.response_format == EMBEDDINGS else "JUDGE"
        limit = f"no answer within {timeout_seconds:g} s (TRAJECTORY_{setting}_TIMEOUT)"
        return sent.failed(AttemptResult.LOST, ErrorClass.TIMEOUT, limit)
    lost = f"the connection was lost before the answer was whole: {text}"
    return sent.failed(AttemptResult.LOST, ErrorClass.CONNECTION, lost)
