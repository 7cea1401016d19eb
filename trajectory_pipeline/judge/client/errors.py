"""Tells the error classes of failed calls apart, by HTTP status, code and message."""

import re
from collections.abc import Sequence
from typing import Any

import aiohttp

from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.response_format import rejects_request_options
from trajectory_pipeline.schema.enums import AttemptResult, ErrorClass

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

_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
"""Errors in which nothing reached the provider: there is nothing to pay for."""

_CONTEXT = re.compile(
    r"context[_ ]length|context window|maximum context|prompt is too long|input is too long|too many (input )?tokens"
    r"|exceeds? the (available )?context|reduce the length of the (messages|input|prompt)"
)
_FILTER = re.compile(r"content[_ ]filter|content management policy|moderation|flagged")
_QUOTA = re.compile(r"insufficient[_ ]quota|exceeded your current quota|insufficient (credits|balance|funds)|billing")
_BY_STATUS = {
    401: ErrorClass.AUTHENTICATION,
    402: ErrorClass.QUOTA_EXCEEDED,
    403: ErrorClass.PERMISSION,
    404: ErrorClass.MODEL_NOT_FOUND,
}
_FORM_STATUSES = frozenset({400, 404, 415, 422, 501})


def classify_error(status: int, text: str) -> ErrorClass:
    """Return the class of an HTTP error, by its status (or the code in an error with status 200) and all its text."""
    text = text.lower()
    if status == 429:
        return ErrorClass.QUOTA_EXCEEDED if _QUOTA.search(text) else ErrorClass.RATE_LIMITED
    # Before the form of the request: "'max_completion_tokens' is too large: the maximum context length is …".
    if 400 <= status < 500 and _CONTEXT.search(text):
        return ErrorClass.CONTEXT_TOO_LONG
    if status in (400, 403, 422) and _FILTER.search(text):
        return ErrorClass.CONTENT_FILTER
    if status in _FORM_STATUSES and rejects_request_options(text):
        return ErrorClass.UNSUPPORTED
    if status >= 500 or status in (408, 409):
        return ErrorClass.SERVER_ERROR
    return _BY_STATUS.get(status, ErrorClass.BAD_REQUEST)


def is_outage(recent: Sequence[str | None], opens_after: int) -> bool:
    """Whether a provider was down when it was called last, by the error classes of recent calls, the newest first.

    The class is None for an answer; so many consecutive failures as ``opens_after`` count as down.
    """
    if recent and recent[0] in FATAL:
        return True
    return len(recent) >= opens_after and all(one in PROVIDER_DOWN for one in recent[:opens_after])


def error_object_text(error: Any) -> tuple[int, str]:
    """Return code and text of an error object that came with status 200, as OpenRouter sends a fault upstream."""
    code = str(error.get("code")) if isinstance(error, dict) else ""
    # An error without an HTTP status counts as a fault of the server.
    status = int(code) if re.fullmatch("[45][0-9]{2}", code) else 500
    return status, f"the answer is an error: {error}"


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
        limit = f"no answer within {timeout_seconds:g} s (TRAJECTORY_JUDGE_TIMEOUT)"
        return sent.failed(AttemptResult.LOST, ErrorClass.TIMEOUT, limit)
    lost = f"the connection was lost before the answer was whole: {text}"
    return sent.failed(AttemptResult.LOST, ErrorClass.CONNECTION, lost)
