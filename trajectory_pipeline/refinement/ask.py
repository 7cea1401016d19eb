"""Asking a judge over the OpenAI chat API: one call, its answer or its failure, and what it cost.

Belongs here: the call, what can go wrong with it, and which of that may be tried again. Does not belong here: what an
answer means (``assess``), and where attempts are kept (``sinks.verdicts``).

The client library's own retries are off: each HTTP call is an ``Attempt`` of ours, so that all of them are seen and
paid for once.
"""

import asyncio
import json
import math
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ValidationError

from trajectory_pipeline.refinement.pricing import CallUsage, price_usd
from trajectory_pipeline.refinement.render import estimated_tokens

OPENAI_URL = "https://api.openai.com/v1"
_LONGEST_WAIT_SECONDS = 60.0
_TRANSIENT = frozenset({"rate_limited", "server_error", "timeout", "connection", "no_answer"})
_UNUSABLE = frozenset({"cut_off", "invalid_json", "schema_violation"})
_NEVER_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
)
"""Errors in which nothing reached the provider: there is nothing to pay for."""
_SHORTEST_KEY = 8
_TOKENS_AROUND_A_MESSAGE = 10
"""Role and separators of a chat template."""
_MOST_TOKENS = 2**53
"""No call has as many; what says so is no count of tokens."""

Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True)
class Attempt:
    """One HTTP call; see ``schema.verdicts.VERDICT_ATTEMPTS``. Until an end is seen it is ``lost``.

    ``result`` is ``error`` where the provider refused it or was never reached. ``estimated_prompt_tokens`` and
    ``max_answer_tokens`` are what it may take at most, by a conservative estimate: what is reserved for it.
    """

    model: str
    base_url: str
    prompt_characters: int
    estimated_prompt_tokens: int = 0
    max_answer_tokens: int = 0
    attempt_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration_ns: int | None = None
    answered_model: str | None = None
    http_status: int | None = None
    request_id: str | None = None
    finish_reason: str | None = None
    result: str = "lost"
    error_class: str | None = None
    error_message: str | None = None
    usage: CallUsage | None = None
    cost_usd: Decimal | None = None


@dataclass(frozen=True)
class Asked(Generic[Answer]):
    """What came of asking one question.

    Attributes:
        attempts: every HTTP call, in order.
        answer: valid by its schema; None where there is none.
        raw_answer: the text of an answer that could not be used.
    """

    attempts: tuple[Attempt, ...]
    answer: Answer | None
    raw_answer: str | None

    @property
    def unusable(self) -> bool:
        """Whether there is an answer that could not be used: asking the same again would not help."""
        return self.answer is None and self.attempts[-1].error_class in _UNUSABLE


Record = Callable[[Attempt], Awaitable[None]]


@dataclass(frozen=True)
class Judge:
    """An endpoint that speaks the OpenAI chat API, and the model to ask there.

    Attributes:
        model: as the provider names it.
        base_url: of the endpoint.
        api_key: of the provider.
        temperature: of the calls.
        timeout_seconds: wall clock, of one call.
        max_attempts: HTTP calls for one verdict.
        max_answer_tokens: that one answer may have: what bounds the price of a call.
    """

    model: str
    base_url: str = field(repr=False)
    api_key: str = field(repr=False)
    temperature: float = 0.0
    timeout_seconds: float = 120.0
    max_attempts: int = 3
    max_answer_tokens: int = 8000

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        """Open a client for any number of calls."""
        async with AsyncOpenAI(
            api_key=self.api_key,
            base_url=self.base_url,
            max_retries=0,
            timeout=self.timeout_seconds,
            # The default transport gets slower as concurrency grows.
            http_client=DefaultAioHttpClient(),
        ) as client:
            yield Session(self, client)


class Session:
    """An open client of a judge."""

    def __init__(self, judge: Judge, client: AsyncOpenAI) -> None:
        self._judge = judge
        self._client = client

    async def ask(
        self, messages: Sequence[dict[str, str]], answer_type: type[Answer], began: Record, ended: Record
    ) -> Asked[Answer]:
        """Ask a question, again where that may help and attempts are left.

        Args:
            messages: of the chat.
            answer_type: what an answer must be valid by.
            began: is told each attempt before it is sent, so that one whose end is never seen is known.
            ended: is told each attempt when its end was seen.

        Raises:
            Exception: whatever ``began`` raises, as it does where there is no room in the budget: nothing is sent then.
        """
        attempts: list[Attempt] = []
        while True:
            sent = Attempt(
                model=self._judge.model,
                base_url=without_credentials(self._judge.base_url),
                prompt_characters=sum(len(message["content"]) for message in messages),
                estimated_prompt_tokens=_estimated_tokens(messages, answer_type),
                max_answer_tokens=self._judge.max_answer_tokens,
            )
            await began(sent)
            attempt, text, wait = await self._call(sent, messages, answer_type)
            answer: Answer | None = None
            if attempt.error_class is None:
                answer, attempt = _validated(text or "", answer_type, attempt)
            attempt = self._without_key(attempt)
            await ended(attempt)
            attempts.append(attempt)
            if answer is not None:
                return Asked(tuple(attempts), answer, None)
            may_help = attempt.error_class in _TRANSIENT and len(attempts) < self._judge.max_attempts
            # Who asks for more patience than a materialisation has is asked again by a later one.
            if not may_help or (wait or 0) > _LONGEST_WAIT_SECONDS:
                return Asked(tuple(attempts), None, text)
            await asyncio.sleep(wait if wait is not None else _pause(len(attempts)))

    async def _call(
        self, sent: Attempt, messages: Sequence[dict[str, str]], answer_type: type[BaseModel]
    ) -> tuple[Attempt, str | None, float | None]:
        """Make a call; returns the attempt, the text of the answer, and the seconds that the provider asks to wait."""
        began = time.monotonic_ns()
        text: str | None = None
        wait: float | None = None
        create: Any = self._client.chat.completions.with_raw_response.create
        try:
            async with asyncio.timeout(self._judge.timeout_seconds):
                raw = await create(
                    model=self._judge.model,
                    messages=list(messages),
                    temperature=self._judge.temperature,
                    max_completion_tokens=self._judge.max_answer_tokens,
                    response_format=response_format(answer_type),
                )
            attempt, text = _taken_apart(sent, raw)
        except openai.APIStatusError as error:
            wait = _asked_to_wait(error)
            attempt = replace(
                sent,
                http_status=error.status_code,
                request_id=error.response.headers.get("x-request-id"),
                result="error",
                error_class=_class_of_status(error),
                error_message=_short(error.message),
            )
        except (TimeoutError, openai.APIConnectionError) as error:
            attempt = _unanswered(sent, error, self._judge.timeout_seconds)
        except openai.APIError as error:
            attempt = _failed(sent, "unusable", "no_answer", f"not a chat completion: {error}")
        except ValueError as error:
            # What the HTTP library says of a URL that it cannot use.
            attempt = _failed(sent, "error", "connection", f"the provider could not be asked: {error}")
        return replace(attempt, duration_ns=time.monotonic_ns() - began), text, wait

    def _without_key(self, attempt: Attempt) -> Attempt:
        """Return an attempt whose words do not repeat our key: some servers do, to say that it is wrong."""
        key, words = self._judge.api_key, attempt.error_message
        if words is None or len(key) < _SHORTEST_KEY or key not in words:
            return attempt
        return replace(attempt, error_message=words.replace(key, "[our key]"))


def without_credentials(url: str) -> str:
    """Return an endpoint as it may be stored and shown: without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _unanswered(sent: Attempt, error: BaseException, timeout_seconds: float) -> Attempt:
    """Say what became of a call without an answer: never sent, or ``lost``, so that nobody saw if it is to be paid."""
    # The client calls every lost connection a timeout; the transport's own error, which it keeps, knows better.
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    words = str(causes[min(1, len(causes) - 1)]) or type(causes[-1]).__name__
    if any(isinstance(cause, _NEVER_SENT) for cause in causes):
        return _failed(sent, "error", "connection", f"the provider could not be reached: {words}")
    if any(isinstance(cause, TimeoutError) for cause in causes):
        limit = f"no answer within {timeout_seconds:g} s (TRAJECTORY_JUDGE_TIMEOUT)"
        return _failed(sent, "lost", "timeout", limit)
    return _failed(sent, "lost", "connection", f"the connection was lost before the answer was whole: {words}")


def _taken_apart(sent: Attempt, raw: Any) -> tuple[Attempt, str | None]:
    attempt = replace(
        sent,
        result="answered",
        http_status=raw.http_response.status_code,
        request_id=raw.headers.get("x-request-id"),
    )
    try:
        completion = raw.parse()
        if isinstance(completion, str):
            # It was paid for, whatever content type a proxy has put on it.
            completion = ChatCompletion.construct(**json.loads(completion))
    except (openai.APIError, ValueError, TypeError, RecursionError) as error:
        return _failed(attempt, "unusable", "no_answer", f"not a chat completion: {error}"), None
    if not isinstance(completion, ChatCompletion):
        return _failed(attempt, "unusable", "no_answer", "not a chat completion"), None
    return _read(attempt, completion)


def _read(attempt: Attempt, completion: ChatCompletion) -> tuple[Attempt, str | None]:
    """Take an answer apart: what it says, what it cost, or why it says nothing. No field is taken for granted."""
    usage = _usage(completion)
    model = _string(getattr(completion, "model", None))
    attempt = replace(attempt, answered_model=model, usage=usage, cost_usd=price_usd(model, usage, attempt.base_url))
    choices: Any = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        # OpenRouter, among others, tells an upstream failure so, with status 200.
        told = (completion.model_extra or {}).get("error")
        words = f"the answer is an error: {told}" if told else "the answer has no choice"
        return _failed(attempt, "unusable", "no_answer", words), None
    attempt = replace(attempt, finish_reason=_string(getattr(choice, "finish_reason", None)))
    text = _string(getattr(message, "content", None))
    refusal = getattr(message, "refusal", None)
    if refusal:
        return _failed(attempt, "refused", "refused", str(refusal)), None
    if attempt.finish_reason == "content_filter":
        return _failed(attempt, "refused", "content_filter", "the provider's filter withheld the answer"), text
    if attempt.finish_reason == "length":
        return _failed(attempt, "unusable", "cut_off", "the answer was cut off (finish_reason is length)"), text
    if not text:
        return _failed(attempt, "unusable", "no_answer", "the answer is empty"), None
    return attempt, text


def _validated(text: str, answer_type: type[Answer], attempt: Attempt) -> tuple[Answer | None, Attempt]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return None, _failed(attempt, "unusable", "invalid_json", f"the answer is not valid JSON: {error}")
    try:
        return answer_type.model_validate(value), attempt
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        words = f"{place}: {first['msg']}" + (
            f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        )
        return None, _failed(attempt, "unusable", "schema_violation", words)


def _failed(attempt: Attempt, result: str, error_class: str, message: str) -> Attempt:
    return replace(attempt, result=result, error_class=error_class, error_message=_short(message))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _usage(completion: ChatCompletion) -> CallUsage | None:
    usage = getattr(completion, "usage", None)
    prompt, output = (_count(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens"))
    if prompt is None or output is None:
        return None
    cached = _count(getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None))
    return CallUsage(prompt, None if cached is None or cached > prompt else cached, output)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _class_of_status(error: openai.APIStatusError) -> str:
    code = error.code or ""
    if error.status_code == 429:
        return "quota_exceeded" if code == "insufficient_quota" else "rate_limited"
    if code in ("context_length_exceeded", "content_filter"):
        return {"context_length_exceeded": "context_too_long"}.get(code, code)
    if error.status_code >= 500 or error.status_code in (408, 409):
        return "server_error"
    return {401: "authentication", 403: "permission", 404: "model_not_found"}.get(error.status_code, "bad_request")


def _asked_to_wait(error: openai.APIStatusError) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for; None without one."""
    headers = error.response.headers
    milliseconds, text = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            seconds = float(milliseconds) / 1000
        elif text is None:
            return None
        elif text.replace(".", "", 1).isdigit():
            seconds = float(text)
        else:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _pause(attempts: int) -> float:
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    return float(min(0.5 * 2**attempts, _LONGEST_WAIT_SECONDS) * jitter)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 1000 else f"{line[:1000]} [… {len(line) - 1000} characters left out …]"


def _estimated_tokens(messages: Sequence[dict[str, str]], answer_type: type[BaseModel]) -> int:
    """Return a conservative estimate of a prompt's tokens: its messages, what frames each, and the answer's schema."""
    texts = [message["content"] for message in messages] + [json.dumps(response_format(answer_type))]
    return sum(map(estimated_tokens, texts)) + _TOKENS_AROUND_A_MESSAGE * len(texts)


@cache
def response_format(answer_type: type[BaseModel]) -> dict[str, Any]:
    """Return what asks for structured output by the pydantic model of an answer.

    The schema is as strict mode takes it: without ``minLength``, which it does not know.
    """

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key != "minLength"}
        return [without(item) for item in value] if isinstance(value, list) else value

    name = re.sub(r"(?<!^)(?=[A-Z])", "_", answer_type.__name__).lower()
    schema = without(answer_type.model_json_schema())
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
