"""Asking a judge one question over the OpenAI chat API: the first call, and those that follow from how it ended.

Belongs here: the judge, an open session with it, and the order of calls (again, in a simpler form, to repair). Does not
belong here: one call (``call``), what kind of failure it was (``failures``, ``validation``), when it may be made
(``pace``, ``breaker``), what an answer means (``assess``), and where attempts are kept (``storage.postgres.verdicts``).

The client library's own retries are off: each HTTP call is an ``Attempt`` of ours, so that all of them are seen and
paid for once.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import Generic

import httpx2
from openai import AsyncOpenAI, DefaultAioHttpClient
from pydantic import BaseModel

from trajectory_pipeline.budget.token_estimate import estimated_tokens
from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.client.backoff import (
    LONGEST_PAUSE_SECONDS,
    RequestPacer,
    RequestSlot,
    backoff_seconds,
    requested_wait,
)
from trajectory_pipeline.judge.client.call_record import UNUSABLE_ANSWERS, AskResult, CallRecord, JudgeReply, RecordCall
from trajectory_pipeline.judge.client.circuit_breaker import CircuitBreaker
from trajectory_pipeline.judge.client.errors import TRANSIENT
from trajectory_pipeline.judge.client.http_call import HttpReply, send_call
from trajectory_pipeline.judge.client.parse import InvalidResponse, parse_response
from trajectory_pipeline.judge.client.repair import repair_messages
from trajectory_pipeline.judge.client.response_format import (
    RequestOptions,
    schema_instructions,
    strip_code_fence,
)
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.redaction.egress_policy import require_local
from trajectory_pipeline.urls import endpoint_without_credentials

__all__ = [
    "AskResult",
    "CallRecord",
    "JudgeReply",
    "JudgeSession",
    "RecordCall",
]

_SHORTEST_KEY = 8
_TOKENS_AROUND_A_MESSAGE = 10
"""Role and separators of a chat template."""


@asynccontextmanager
async def open_session(
    config: JudgeConfig, *, request_slot: RequestSlot | None = None, half_open: bool = False
) -> AsyncIterator["JudgeSession"]:
    """Open a client for any number of calls.

    Args:
        config: who is asked, and how.
        request_slot: waits for a slot under a limit that workers share; None for no limit.
        half_open: whether one call must succeed before others are made, as after an outage.

    Raises:
        JudgeError: only a server on this machine may be asked, and this one is not on it.
    """
    if config.local_only:
        require_local(config.base_url)
    async with AsyncOpenAI(
        api_key=config.api_key,
        base_url=config.base_url,
        max_retries=0,
        timeout=config.timeout_seconds,
        # The default transport gets slower as concurrency grows.
        # A redirect would take a transcript and a key to a host that nobody has named, and so would a proxy.
        http_client=DefaultAioHttpClient(
            follow_redirects=False,
            trust_env=not config.local_only,
            verify=_certificates(trust_env=not config.local_only),
        ),
    ) as client:
        breaker = CircuitBreaker(config.breaker_after, half_open=half_open)
        yield JudgeSession(config, client, RequestPacer(request_slot), breaker)


@cache
def _certificates(*, trust_env: bool) -> ssl.SSLContext:
    # Read once a process: it takes longer than opening the client otherwise.
    return httpx2.create_ssl_context(trust_env=trust_env)


class JudgeSession:
    """An open client of a judge, and what its calls have learned of the server so far."""

    def __init__(
        self,
        config: JudgeConfig,
        client: AsyncOpenAI,
        pacer: RequestPacer,
        breaker: CircuitBreaker,
    ) -> None:
        self._config = config
        self._client = client
        self._pacer = pacer
        self._breaker = breaker
        self._concurrency = asyncio.Semaphore(config.concurrency)
        self._form = RequestOptions(
            response_format="json_schema" if config.response_format == "auto" else config.response_format,
            temperature=config.temperature,
            max_response_tokens=config.max_response_tokens,
        )

    async def ask(
        self, messages: Sequence[dict[str, str]], answer_type: type[JudgeReply], began: RecordCall, ended: RecordCall
    ) -> AskResult[JudgeReply]:
        """Ask a question, again where that may help.

        A call that failed in passing is made again until ``max_attempts`` of them were; one whose form the server
        refuses is made in the next simpler form, which the session keeps to; an answer that cannot be used gets one
        repair turn.

        Args:
            messages: of the chat.
            answer_type: what an answer must be valid by.
            began: is awaited before each call, so that one whose end is never seen is known.
            ended: is awaited when the end of a call was seen.

        Raises:
            ProviderDownError: the provider is down, and nothing was asked.
            Exception: whatever ``began`` raises, as it does where there is no room in the budget: nothing is sent then.
        """
        return await _Question(self, list(messages), answer_type, began, ended).asked()

    async def call(
        self, messages: Sequence[dict[str, str]], answer_type: type[BaseModel], purpose: str, began: RecordCall
    ) -> tuple[HttpReply, RequestOptions]:
        """Make one call when it may be made; returns its reply and the form that it had.

        Raises:
            ProviderDownError: nothing may be asked any more.
        """
        config, tokens = self._config, _estimated_tokens(messages, answer_type)
        async with self._concurrency, self._breaker.call() as outcome:
            await self._pacer.wait(tokens + config.max_response_tokens)
            self._breaker.refuse_if_open()
            form = self._form
            sent = CallRecord(
                model=config.model,
                base_url=endpoint_without_credentials(config.base_url),
                prompt_characters=sum(len(message["content"]) for message in messages),
                estimated_prompt_tokens=tokens,
                max_response_tokens=config.max_response_tokens,
                purpose=purpose,
                response_format=form.response_format,
                temperature=form.temperature,
            )
            await began(sent)
            body = form.body(config.model, messages, answer_type)
            reply = self._without_key(await send_call(self._client, sent, body, config.timeout_seconds))
            outcome.record(reply.attempt.error_class, reply.attempt.error_message)
        self._heed(reply)
        return reply, form

    def may_retry(self, failures: int) -> bool:
        """Whether a call that failed in passing may be made again, after so many failures."""
        return failures < self._config.max_attempts and not self._breaker.is_open

    async def back_off(self, reply: HttpReply, failures: int) -> None:
        """Wait before a call is made again, where the provider named no time."""
        if requested_wait(reply.headers) is not None:
            return
        seconds = backoff_seconds(failures, self._config.first_pause_seconds)
        if reply.attempt.error_class == "rate_limited":
            self._pacer.pause(seconds)
        else:
            await asyncio.sleep(seconds)

    def _heed(self, reply: HttpReply) -> None:
        """Let all calls of the session wait where this one was told to."""
        if reply.attempt.error_class is None:
            self._pacer.apply_rate_headers(reply.headers)
            return
        wait = requested_wait(reply.headers)
        if wait is None:
            return
        if wait > LONGEST_PAUSE_SECONDS:
            self._breaker.open(f"it asks to be left in peace for {wait:.0f} s ({reply.attempt.error_class})")
        else:
            self._pacer.pause(wait)

    def takes_simpler_form(self, reply: HttpReply, form: RequestOptions) -> bool:
        """Whether a call is to be made again in another form: the server has refused the one that it had."""
        if reply.attempt.error_class != "unsupported":
            return False
        if self._form != form:
            # Another call was refused before, and has found the next form.
            return True
        simpler = form.after_refusal(reply.refusal, automatic=self._config.response_format == "auto")
        if simpler is None:
            return False
        self._form = simpler
        return True

    def _without_key(self, reply: HttpReply) -> HttpReply:
        """Return a reply that does not repeat our key: some servers do, to say that it is wrong."""
        key = self._config.api_key
        if len(key) < _SHORTEST_KEY:
            return reply

        def clean(text: str | None) -> str | None:
            return None if text is None else text.replace(key, "[our key]")

        attempt = reply.attempt
        return replace(
            reply,
            text=clean(reply.text),
            refusal=reply.refusal.replace(key, "[our key]"),
            attempt=replace(
                attempt,
                response_model=clean(attempt.response_model),
                request_id=clean(attempt.request_id),
                finish_reason=clean(attempt.finish_reason),
                error_message=clean(attempt.error_message),
            ),
        )


class _Question(Generic[JudgeReply]):
    """The calls for one answer, one after the other."""

    def __init__(
        self,
        session: JudgeSession,
        messages: list[dict[str, str]],
        answer_type: type[JudgeReply],
        began: RecordCall,
        ended: RecordCall,
    ) -> None:
        self._session = session
        self._messages = messages
        self._answer_type = answer_type
        self._began = began
        self._ended = ended
        self._attempts: list[CallRecord] = []
        self._failures = 0
        self._repaired = False
        self._raw_answer: str | None = None

    async def asked(self) -> AskResult[JudgeReply]:
        purpose: str | None = "first"
        while purpose is not None:
            try:
                reply, form = await self._session.call(self._messages, self._answer_type, purpose, self._began)
            except ProviderDownError:
                if not self._attempts:
                    raise
                break
            attempt, answer = self._judged(reply)
            await self._ended(attempt)
            self._attempts.append(attempt)
            if answer is not None:
                return AskResult(tuple(self._attempts), answer, None)
            self._raw_answer = reply.text or self._raw_answer
            purpose = await self._next(reply, attempt, form)
        return AskResult(tuple(self._attempts), None, self._raw_answer)

    def _judged(self, reply: HttpReply) -> tuple[CallRecord, JudgeReply | None]:
        """Return the attempt, and the answer where its text is a valid one."""
        attempt = reply.attempt
        if attempt.error_class is not None or reply.text is None:
            return attempt, None
        found = parse_response(strip_code_fence(reply.text, attempt.response_format), self._answer_type)
        if isinstance(found, InvalidResponse):
            return attempt.failed("unusable", found.error_class, found.words), None
        return attempt, found

    async def _next(self, reply: HttpReply, attempt: CallRecord, form: RequestOptions) -> str | None:
        """Return what the next call is for, after any pause before it; None where none would help."""
        if self._session.takes_simpler_form(reply, form):
            return "fallback"
        if attempt.error_class in UNUSABLE_ANSWERS and not self._repaired:
            self._repaired = True
            self._messages = repair_messages(self._messages, attempt, reply.text, self._answer_type)
            return "repair"
        if attempt.error_class not in TRANSIENT:
            return None
        self._failures += 1
        if not self._session.may_retry(self._failures):
            return None
        await self._session.back_off(reply, self._failures)
        return "retry"


def _estimated_tokens(messages: Sequence[dict[str, str]], answer_type: type[BaseModel]) -> int:
    """Return a conservative estimate of a prompt's tokens: its messages, what frames each, and the answer's schema."""
    texts = [message["content"] for message in messages] + [schema_instructions(answer_type)]
    return sum(map(estimated_tokens, texts)) + _TOKENS_AROUND_A_MESSAGE * len(texts)
