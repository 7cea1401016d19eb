"""Asks a judge one question over the OpenAI chat API: the first call, and the calls that follow from how it ended.

The client library's own retries are off: each HTTP call is a ``CallRecord``, so that every call is seen and paid for
once.
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
    MAX_PAUSE_SECONDS,
    RequestPacer,
    RequestSlot,
    backoff_seconds,
    requested_wait,
)
from trajectory_pipeline.judge.client.call_record import (
    UNUSABLE_RESPONSES,
    AskResult,
    CallRecord,
    JudgeReply,
    RecordCall,
)
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
from trajectory_pipeline.schema.enums import (
    AttemptPurpose,
    AttemptResult,
    ErrorClass,
    ResponseFormat,
    ResponseFormatChoice,
)
from trajectory_pipeline.urls import endpoint_without_credentials

__all__ = [
    "AskResult",
    "CallRecord",
    "JudgeReply",
    "JudgeSession",
    "RecordCall",
]

_MIN_KEY_CHARACTERS = 8
_TOKENS_PER_MESSAGE = 10
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
    """An open client of a judge, and which request options its server accepts."""

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
        self._options = RequestOptions(
            response_format=ResponseFormat.JSON_SCHEMA
            if config.response_format == ResponseFormatChoice.AUTO
            else ResponseFormat(config.response_format),
            temperature=config.temperature,
            max_response_tokens=config.max_response_tokens,
        )

    async def ask(
        self,
        messages: Sequence[dict[str, str]],
        answer_type: type[JudgeReply],
        on_begin: RecordCall,
        on_end: RecordCall,
    ) -> AskResult[JudgeReply]:
        """Ask a question, again where that may help.

        A transient failure is retried until ``max_attempts`` calls were made. A call whose options the server rejects
        is made with the next simpler options, which the session keeps. An unusable response gets one repair turn.

        Args:
            messages: of the chat.
            answer_type: what an answer must be valid by.
            on_begin: awaited before each call, so that a call whose end is never seen is recorded.
            on_end: awaited when a call has ended.

        Raises:
            ProviderDownError: the provider is down, and no call was made.
            Exception: whatever ``on_begin`` raises, such as BudgetExhausted; then nothing is sent.
        """
        return await _Question(self, list(messages), answer_type, on_begin, on_end).run()

    async def call(
        self,
        messages: Sequence[dict[str, str]],
        answer_type: type[BaseModel],
        purpose: AttemptPurpose,
        on_begin: RecordCall,
    ) -> tuple[HttpReply, RequestOptions]:
        """Make one call as soon as it may be made; returns its reply and its options.

        Raises:
            ProviderDownError: no further call may be made.
        """
        config, tokens = self._config, _estimate_prompt_tokens(messages, answer_type)
        async with self._concurrency, self._breaker.call() as outcome:
            await self._pacer.wait(tokens + config.max_response_tokens)
            self._breaker.refuse_if_open()
            options = self._options
            sent = CallRecord(
                model=config.model,
                base_url=endpoint_without_credentials(config.base_url),
                prompt_characters=sum(len(message["content"]) for message in messages),
                estimated_prompt_tokens=tokens,
                max_response_tokens=config.max_response_tokens,
                purpose=purpose,
                response_format=options.response_format,
                temperature=options.temperature,
            )
            await on_begin(sent)
            body = options.body(config.model, messages, answer_type)
            reply = self._redact_api_key(await send_call(self._client, sent, body, config.timeout_seconds))
            outcome.record(reply.call.error_class, reply.call.error_message)
        self._pause_as_asked(reply)
        return reply, options

    def may_retry(self, failures: int) -> bool:
        """Whether a transient failure may be retried, after so many failures."""
        return failures < self._config.max_attempts and not self._breaker.is_open

    async def back_off(self, reply: HttpReply, failures: int) -> None:
        """Wait before a retry, where the provider named no time."""
        if requested_wait(reply.headers) is not None:
            return
        seconds = backoff_seconds(failures, self._config.first_pause_seconds)
        if reply.call.error_class is ErrorClass.RATE_LIMITED:
            self._pacer.pause(seconds)
        else:
            await asyncio.sleep(seconds)

    def _pause_as_asked(self, reply: HttpReply) -> None:
        """Let all calls of the session wait where the provider asks for it."""
        if reply.call.error_class is None:
            self._pacer.apply_rate_headers(reply.headers)
            return
        wait = requested_wait(reply.headers)
        if wait is None:
            return
        if wait > MAX_PAUSE_SECONDS:
            self._breaker.open(f"it asked for a {wait:.0f} s pause ({reply.call.error_class})")
        else:
            self._pacer.pause(wait)

    def simplify_options(self, reply: HttpReply, options: RequestOptions) -> bool:
        """Whether the call is to be repeated with other options, because the server rejected these."""
        if reply.call.error_class is not ErrorClass.UNSUPPORTED:
            return False
        if self._options != options:
            # Another call was rejected before, and has already taken the next options.
            return True
        simpler = options.after_refusal(
            reply.refusal, automatic=self._config.response_format == ResponseFormatChoice.AUTO
        )
        if simpler is None:
            return False
        self._options = simpler
        return True

    def _redact_api_key(self, reply: HttpReply) -> HttpReply:
        """Return a reply without our API key: some servers repeat it, to say that it is wrong."""
        key = self._config.api_key
        if len(key) < _MIN_KEY_CHARACTERS:
            return reply

        def clean(text: str | None) -> str | None:
            return None if text is None else text.replace(key, "[our key]")

        call = reply.call
        return replace(
            reply,
            text=clean(reply.text),
            refusal=reply.refusal.replace(key, "[our key]"),
            call=replace(
                call,
                response_model=clean(call.response_model),
                request_id=clean(call.request_id),
                finish_reason=clean(call.finish_reason),
                error_message=clean(call.error_message),
            ),
        )


class _Question(Generic[JudgeReply]):
    """The calls for one answer, one after the other."""

    def __init__(
        self,
        session: JudgeSession,
        messages: list[dict[str, str]],
        answer_type: type[JudgeReply],
        on_begin: RecordCall,
        on_end: RecordCall,
    ) -> None:
        self._session = session
        self._messages = messages
        self._answer_type = answer_type
        self._began = on_begin
        self._ended = on_end
        self._attempts: list[CallRecord] = []
        self._failures = 0
        self._repaired = False
        self._raw_response: str | None = None

    async def run(self) -> AskResult[JudgeReply]:
        purpose: AttemptPurpose | None = AttemptPurpose.FIRST
        while purpose is not None:
            try:
                reply, options = await self._session.call(self._messages, self._answer_type, purpose, self._began)
            except ProviderDownError:
                if not self._attempts:
                    raise
                break
            call, answer = self._parse(reply)
            await self._ended(call)
            self._attempts.append(call)
            if answer is not None:
                return AskResult(tuple(self._attempts), answer, None)
            self._raw_response = reply.text or self._raw_response
            purpose = await self._next_purpose(reply, call, options)
        return AskResult(tuple(self._attempts), None, self._raw_response)

    def _parse(self, reply: HttpReply) -> tuple[CallRecord, JudgeReply | None]:
        """Return the call, and its answer where the text is valid."""
        call = reply.call
        if call.error_class is not None or reply.text is None:
            return call, None
        found = parse_response(strip_code_fence(reply.text, call.response_format), self._answer_type)
        if isinstance(found, InvalidResponse):
            return call.failed(AttemptResult.UNUSABLE, found.error_class, found.message), None
        return call, found

    async def _next_purpose(self, reply: HttpReply, call: CallRecord, options: RequestOptions) -> AttemptPurpose | None:
        """Return the purpose of the next call, after any pause before it; None where none would help."""
        if self._session.simplify_options(reply, options):
            return AttemptPurpose.FALLBACK
        if call.error_class in UNUSABLE_RESPONSES and not self._repaired:
            self._repaired = True
            self._messages = repair_messages(self._messages, call, reply.text, self._answer_type)
            return AttemptPurpose.REPAIR
        if call.error_class not in TRANSIENT:
            return None
        self._failures += 1
        if not self._session.may_retry(self._failures):
            return None
        await self._session.back_off(reply, self._failures)
        return AttemptPurpose.RETRY


def _estimate_prompt_tokens(messages: Sequence[dict[str, str]], answer_type: type[BaseModel]) -> int:
    """Return a conservative estimate of a prompt's tokens: its messages, what frames each, and the answer's schema."""
    texts = [message["content"] for message in messages] + [schema_instructions(answer_type)]
    return sum(map(estimated_tokens, texts)) + _TOKENS_PER_MESSAGE * len(texts)
