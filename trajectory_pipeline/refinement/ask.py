"""Asking a judge over the OpenAI chat API: one call, its answer or its failure, and what it cost.

Belongs here: the call, what can go wrong with it, and which of that may be tried again. Does not belong here: what an
answer means (``assess``), and where attempts are kept (``sinks.verdicts``).

The client library's own retries are off: each HTTP call is an ``Attempt`` of ours, so that all of them are seen and paid for once.
"""

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from openai import AsyncOpenAI, DefaultAioHttpClient
from pydantic import ValidationError

from trajectory_pipeline.refinement.answer import JudgeAnswer
from trajectory_pipeline.refinement.pricing import CallUsage, price_usd

OPENAI_URL = "https://api.openai.com/v1"
_LONGEST_WAIT_SECONDS = 60.0
_TRANSIENT = frozenset({"rate_limited", "server_error", "timeout", "connection", "no_answer"})
_UNUSABLE = frozenset({"cut_off", "invalid_json", "schema_violation"})


@dataclass(frozen=True)
class Attempt:
    """One HTTP call; see ``schema.verdicts.VERDICT_ATTEMPTS``. Until an end is seen it is ``lost``."""

    model: str
    base_url: str
    prompt_characters: int
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
class Asked:
    """What came of asking for one verdict.

    Attributes:
        attempts: every HTTP call, in order.
        answer: valid by its schema; None where there is none.
        raw_answer: the text of an answer that could not be used.
    """

    attempts: tuple[Attempt, ...]
    answer: JudgeAnswer | None
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
    """

    model: str
    base_url: str
    api_key: str = field(repr=False)
    temperature: float = 0.0
    timeout_seconds: float = 120.0
    max_attempts: int = 3

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

    async def ask(self, messages: Sequence[dict[str, str]], began: Record, ended: Record) -> Asked:
        """Ask for a verdict, again where that may help and attempts are left.

        Args:
            messages: of the chat.
            began: is told each attempt before it is sent, so that one whose end is never seen is known.
            ended: is told each attempt when its end was seen.
        """
        attempts: list[Attempt] = []
        while True:
            sent = Attempt(
                model=self._judge.model,
                base_url=self._judge.base_url,
                prompt_characters=sum(len(message["content"]) for message in messages),
            )
            await began(sent)
            attempt, text, wait = await self._call(sent, messages)
            answer: JudgeAnswer | None = None
            if attempt.error_class is None:
                answer, attempt = _validated(text or "", attempt)
            await ended(attempt)
            attempts.append(attempt)
            if answer is not None:
                return Asked(tuple(attempts), answer, None)
            if attempt.error_class not in _TRANSIENT or len(attempts) >= self._judge.max_attempts:
                return Asked(tuple(attempts), None, text)
            await asyncio.sleep(wait if wait is not None else _pause(len(attempts)))

    async def _call(
        self, sent: Attempt, messages: Sequence[dict[str, str]]
    ) -> tuple[Attempt, str | None, float | None]:
        """Make one call; returns the attempt, the text of the answer, and the seconds that the provider asks to wait."""
        began = time.monotonic_ns()
        text: str | None = None
        wait: float | None = None
        try:
            async with asyncio.timeout(self._judge.timeout_seconds):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self._judge.model,
                    messages=list(messages),  # type: ignore[arg-type]
                    temperature=self._judge.temperature,
                    response_format=RESPONSE_FORMAT,  # type: ignore[arg-type]
                )
                completion = raw.parse()
            attempt = replace(
                sent, http_status=raw.http_response.status_code, request_id=raw.headers.get("x-request-id")
            )
            attempt, text = _read(attempt, completion)
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
        except (TimeoutError, openai.APITimeoutError):
            # It may have been answered, and may have to be paid for: nobody saw.
            attempt = replace(
                sent,
                error_class="timeout",
                error_message=f"no answer within {self._judge.timeout_seconds:g} s (TRAJECTORY_JUDGE_TIMEOUT)",
            )
        except openai.APIConnectionError as error:
            attempt = replace(sent, error_class="connection", error_message=_short(str(error.__cause__ or error)))
        except (openai.APIError, ValueError, TypeError, AttributeError) as error:
            # Something came back that is no chat completion at all: a proxy's page, another API.
            attempt = replace(
                sent,
                result="unusable",
                error_class="no_answer",
                error_message=_short(f"not a chat completion: {error}"),
            )
        return replace(attempt, duration_ns=time.monotonic_ns() - began), text, wait


def _read(attempt: Attempt, completion: Any) -> tuple[Attempt, str | None]:
    """Take an answer apart: what it says, what it cost, or why it says nothing."""
    usage = _usage(completion)
    attempt = replace(
        attempt,
        answered_model=completion.model,
        usage=usage,
        cost_usd=price_usd(completion.model, usage, attempt.base_url),
        result="answered",
    )
    if not completion.choices:
        return _failed(attempt, "unusable", "no_answer", "the answer has no choice"), None
    choice = completion.choices[0]
    attempt = replace(attempt, finish_reason=choice.finish_reason)
    text = choice.message.content
    if choice.message.refusal:
        return _failed(attempt, "refused", "refused", choice.message.refusal), None
    if choice.finish_reason == "content_filter":
        return _failed(attempt, "refused", "content_filter", "the provider's filter withheld the answer"), text
    if choice.finish_reason == "length":
        return _failed(attempt, "unusable", "cut_off", "the answer was cut off (finish_reason is length)"), text
    if not text:
        return _failed(attempt, "unusable", "no_answer", "the answer is empty"), None
    return attempt, text


def _validated(text: str, attempt: Attempt) -> tuple[JudgeAnswer | None, Attempt]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        return None, _failed(attempt, "unusable", "invalid_json", f"the answer is not valid JSON: {error}")
    try:
        return JudgeAnswer.model_validate(value), attempt
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


def _usage(completion: Any) -> CallUsage | None:
    usage = completion.usage
    if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    details = usage.prompt_tokens_details
    return CallUsage(usage.prompt_tokens, details.cached_tokens if details else None, usage.completion_tokens)


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
    """Return the seconds that a ``Retry-After`` header asks for, at most a minute; None without one."""
    headers = error.response.headers
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            seconds = float(milliseconds) / 1000
        elif (text := headers.get("retry-after")) is None:
            return None
        elif text.replace(".", "", 1).isdigit():
            seconds = float(text)
        else:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS)


def _pause(attempts: int) -> float:
    return min(0.5 * 2**attempts, _LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 1000 else f"{line[:1000]} [… {len(line) - 1000} characters left out …]"


def _strict_schema() -> dict[str, Any]:
    """Return the answer's JSON schema as strict mode takes it: without ``minLength``, which it does not know."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key != "minLength"}
        return [without(item) for item in value] if isinstance(value, list) else value

    schema = without(JudgeAnswer.model_json_schema())
    assert isinstance(schema, dict)
    return schema


RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "judge_answer", "strict": True, "schema": _strict_schema()},
}
"""Structured output, by the pydantic model of the answer."""
