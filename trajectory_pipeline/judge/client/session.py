"""Asks a judge one question over the OpenAI chat API: the first call, and the calls that follow from how it ended.

The client library's own retries are off: each HTTP call is a ``CallRecord``, so that every call is seen and paid for
once.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import httpx2
from openai import AsyncOpenAI
from pydantic import BaseModel

from trajectory_pipeline.budget.caps import BudgetExhausted
from trajectory_pipeline.budget.token_estimate import estimated_tokens, share_read
from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.client.backoff import (
    MAX_PAUSE_SECONDS,
    RequestPacer,
    RequestSlot,
    backoff_seconds,
)
from trajectory_pipeline.judge.client.bounded_http import BoundedHttpClient, max_response_bytes
from trajectory_pipeline.judge.client.call_record import (
    UNUSABLE_RESPONSES,
    AskResult,
    CallRecord,
    JudgeReply,
    RecordCall,
)
from trajectory_pipeline.judge.client.circuit_breaker import CircuitBreaker
from trajectory_pipeline.judge.client.decisions import (
    MAX_QUESTIONS,
    DecisionResult,
    Probabilities,
    read_probabilities,
    send_decision,
    status_questions,
)
from trajectory_pipeline.judge.client.embeddings import EmbeddingsResult, read_embeddings, send_embeddings
from trajectory_pipeline.judge.client.errors import EMBEDDINGS, FORM_STATUSES, TRANSIENT
from trajectory_pipeline.judge.client.http_call import HttpReply, send_call
from trajectory_pipeline.judge.client.parse import InvalidResponse, parse_response
from trajectory_pipeline.judge.client.repair import repair_messages
from trajectory_pipeline.judge.client.response_format import RequestOptions, schema_instructions, strip_code_fence
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.redaction.egress_policy import require_local
from trajectory_pipeline.schema.enums import (
    AttemptPurpose,
    AttemptResult,
    ErrorClass,
    JudgeKind,
    ResponseFormat,
    ResponseFormatChoice,
)
from trajectory_pipeline.urls import without_credentials

_Found = TypeVar("_Found")
_MIN_KEY_CHARACTERS = 8
_PROVIDER_TEXTS = ("response_model", "request_id", "finish_reason", "error_message")
_TOKENS_PER_MESSAGE = 10
"""Role and separators of a chat template."""


@asynccontextmanager
async def open_session(
    config: JudgeConfig,
    *,
    request_slot: RequestSlot | None = None,
    half_open: bool = False,
    max_bytes: int | None = None,
) -> AsyncIterator["JudgeSession"]:
    """Open a client for any number of calls; ``half_open`` where one must succeed before others are made.

    A response with more than ``max_bytes`` is no answer; None for as many as a chat completion may have.

    Raises:
        JudgeError: only a server on this machine may be called, and this one is not on it.
    """
    client_class = partial(BoundedHttpClient, max_bytes or max_response_bytes(config.max_response_tokens))
    async with open_client(config, client_class, timeout=config.timeout_seconds) as client:
        breaker = CircuitBreaker(config.breaker_after, half_open=half_open, owner=config.endpoint.owner)
        yield JudgeSession(config, client, RequestPacer(request_slot), breaker)


@asynccontextmanager
async def open_client(
    config: JudgeConfig, http_client: Callable[..., httpx2.AsyncClient], *, timeout: float
) -> AsyncIterator[AsyncOpenAI]:
    """Open a client of the judge's provider that goes nowhere else; ``http_client`` makes its transport.

    Raises:
        JudgeError: only a server on this machine may be called, and this one is not on it.
    """
    url = urlsplit(config.base_url)
    base_url = url._replace(query="").geturl()
    if config.local_only:
        # Both: the one that is set, and the one that the client gets.
        require_local(config.base_url, config.endpoint)
        require_local(base_url, config.endpoint)
    async with AsyncOpenAI(
        api_key=config.api_key,
        base_url=base_url,
        # Azure's ``?api-version=…`` belongs behind the path of each call.
        default_query=dict(parse_qsl(url.query, keep_blank_values=True)),
        max_retries=0,
        timeout=timeout,
        # The default transport gets slower as concurrency grows.
        # A redirect would take a transcript and a key to a host that nobody has named, and so would a proxy.
        http_client=http_client(
            follow_redirects=False,
            trust_env=not config.local_only,
            verify=_certificates(trust_env=not config.local_only),
        ),
    ) as client:
        yield client


@cache
def _certificates(*, trust_env: bool) -> ssl.SSLContext:
    # Read once a process: it takes longer than opening the client otherwise.
    return httpx2.create_ssl_context(trust_env=trust_env)


class JudgeSession:
    """An open client of a judge, and which request options its server accepts."""

    def __init__(self, config: JudgeConfig, client: AsyncOpenAI, pacer: RequestPacer, breaker: CircuitBreaker) -> None:
        self._config = config
        self._client = client
        self._pacer = pacer
        self._breaker = breaker
        self._concurrency = asyncio.Semaphore(config.concurrency)
        self.is_answered = False
        """Whether any call was answered."""
        self._is_auto = config.response_format == ResponseFormatChoice.AUTO
        self._options = RequestOptions(
            ResponseFormat.JSON_SCHEMA if self._is_auto else ResponseFormat(config.response_format),
            config.temperature,
            config.max_response_tokens,
        )

    async def ask(
        self,
        messages: Sequence[dict[str, str]],
        answer_type: type[JudgeReply],
        on_begin: RecordCall,
        on_end: RecordCall,
        answered: HttpReply | None = None,
    ) -> AskResult[JudgeReply]:
        """Ask a question, again where that may help.

        A transient failure is retried until ``max_attempts`` calls were made. A call whose options the server rejects
        is made with the next simpler options, which the session keeps. An unusable response gets one repair turn.

        ``answered`` is the reply to the same question in a batch: it takes the place of the first call, and only an
        unusable response is followed by another.

        ``on_begin`` is awaited before each call, so that a call whose end is never seen is recorded.

        Raises:
            ProviderDownError: the provider is down, and no call was made.
            Exception: whatever ``on_begin`` raises, such as BudgetExhausted; then nothing is sent.
        """
        calls: list[CallRecord] = []
        raw_response: str | None = None
        purpose = AttemptPurpose.FIRST
        while True:
            try:
                if answered is not None and not calls:
                    reply, options = self._seen(answered, messages), self._options
                else:
                    reply, options = await self._call(messages, answer_type, purpose, on_begin)
            except ProviderDownError:
                if not calls:
                    raise
                return AskResult(tuple(calls), None, raw_response)
            except BudgetExhausted as exhausted:
                # Deferred, the calls so far would be paid for again each time, and the next would never fit.
                if not calls or not exhausted.shortfall.exceeds_cap:
                    raise
                return AskResult(tuple(calls), None, raw_response)
            call, answer = _parse(reply, answer_type)
            await on_end(call)
            calls.append(call)
            if answer is not None:
                self._breaker.count_question(call)
                return AskResult(tuple(calls), answer, None)
            raw_response = reply.text or raw_response
            failures = sum(one.error_class in TRANSIENT for one in calls)
            if call.batch_id is not None and call.error_class not in UNUSABLE_RESPONSES:
                return AskResult(tuple(calls), None, raw_response)
            if self._simplify_options(reply, options):
                purpose = AttemptPurpose.FALLBACK
            elif call.error_class in UNUSABLE_RESPONSES and all(one.purpose != AttemptPurpose.REPAIR for one in calls):
                messages = repair_messages(messages, call, reply.text, answer_type)
                purpose = AttemptPurpose.REPAIR
            elif call.error_class in TRANSIENT and failures < self._config.max_attempts and not self._breaker.is_open:
                await self._back_off(reply, failures)
                purpose = AttemptPurpose.RETRY
            else:
                self._breaker.count_question(call)
                return AskResult(tuple(calls), None, raw_response)

    def batch_line(
        self, messages: Sequence[dict[str, str]], answer_type: type[BaseModel], batch_id: str
    ) -> tuple[CallRecord, bytes]:
        """Return a call to be made in a batch, and the body of its request."""
        tokens = _estimate_prompt_tokens(messages, answer_type)
        sent = replace(self._record(messages, tokens, self._options, AttemptPurpose.FIRST), batch_id=batch_id)
        return sent, self._options.body(self._config.model, messages, answer_type)

    @property
    def options(self) -> RequestOptions:
        """The request options that the server accepts, as far as is known."""
        return self._options

    def use_accepted(self, former: Mapping[str, Any]) -> bool:
        """Ask in the form in which the server accepted former calls; returns whether it says how to ask these."""
        options = self._options.as_accepted(former, automatic=self._is_auto)
        self._options = options or self._options
        return options is not None

    def _record(
        self, messages: Sequence[dict[str, str]], tokens: int, options: RequestOptions, purpose: AttemptPurpose
    ) -> CallRecord:
        config = self._config
        return CallRecord(
            model=config.model,
            base_url=without_credentials(config.base_url),
            prompt_characters=sum(len(message["content"]) for message in messages),
            estimated_prompt_tokens=tokens,
            max_response_tokens=config.max_response_tokens,
            purpose=purpose,
            response_format=options.response_format,
            temperature=options.temperature,
        )

    def _seen(self, reply: HttpReply, messages: Sequence[dict[str, str]]) -> HttpReply:
        """Return a reply without our API key, and with the share of the prompt that was read."""
        reply = self._redact_api_key(reply)
        if reply.call.usage is None:
            return reply
        read = share_read("\n".join(message["content"] for message in messages), reply.call.usage.input_tokens)
        return replace(reply, call=replace(reply.call, share_read=read))

    async def _call(
        self,
        messages: Sequence[dict[str, str]],
        answer_type: type[BaseModel],
        purpose: AttemptPurpose,
        on_begin: RecordCall,
    ) -> tuple[HttpReply, RequestOptions]:
        """Make one call as soon as it may be made; returns its reply and its options."""

        async def send(call: CallRecord, options: RequestOptions) -> HttpReply:
            body = options.body(self._config.model, messages, answer_type)
            return await send_call(self._client, call, body, self._config.timeout_seconds)

        return await self._exchange(messages, _estimate_prompt_tokens(messages, answer_type), purpose, send, on_begin)

    async def decide(
        self,
        messages: Sequence[dict[str, str]],
        statements: Sequence[str],
        on_begin: RecordCall,
        on_end: RecordCall,
    ) -> DecisionResult:
        """Ask a decision endpoint for the status of each statement, so many in a request as it takes.

        A transient failure is retried until ``max_attempts`` calls of a request were made. Raises what ``ask`` raises.
        """
        calls: list[CallRecord] = []
        found: list[Probabilities | None] = []
        questions = status_questions(statements)
        for first in range(0, len(questions), MAX_QUESTIONS):
            asked = questions[first : first + MAX_QUESTIONS]
            read = partial(read_probabilities, questions=asked)
            once = partial(self._decide_once, messages, asked, on_begin=on_begin)
            probabilities, raw_response = await self._until_usable(once, read, on_end, calls)
            if probabilities is None:
                return DecisionResult(tuple(calls), None, raw_response)
            found += probabilities
        self._breaker.count_question(calls[-1])
        return DecisionResult(tuple(calls), found)

    async def embed(
        self,
        texts: Sequence[str],
        asked_dimensions: int | None,
        expected_dimensions: int | None,
        on_begin: RecordCall,
        on_end: RecordCall,
    ) -> EmbeddingsResult:
        """Ask for embeddings of texts, in one request: ``expected_dimensions`` is how many numbers each must have.

        A transient failure is retried until ``max_attempts`` calls were made. Raises what ``ask`` raises.
        """
        calls: list[CallRecord] = []
        messages = [{"role": "user", "content": text} for text in texts]

        async def once(purpose: AttemptPurpose) -> HttpReply:
            async def send(call: CallRecord, _: RequestOptions) -> HttpReply:
                call = replace(call, texts=len(texts))
                return await send_embeddings(self._client, call, texts, asked_dimensions, self._config.timeout_seconds)

            async def begin(call: CallRecord) -> None:
                await on_begin(replace(call, texts=len(texts)))

            tokens = sum(map(estimated_tokens, texts))
            reply, _ = await self._exchange(messages, tokens, purpose, send, begin, response_format=EMBEDDINGS)
            return reply

        read = partial(read_embeddings, texts=len(texts), dimensions=expected_dimensions)
        found, _ = await self._until_usable(once, read, on_end, calls)
        if found is not None:
            self._breaker.count_question(calls[-1])
        return EmbeddingsResult(tuple(calls), found)

    async def _until_usable(
        self,
        once: Callable[[AttemptPurpose], Awaitable[HttpReply]],
        read: Callable[[str], _Found | InvalidResponse],
        on_end: RecordCall,
        calls: list[CallRecord],
    ) -> tuple[_Found | None, str | None]:
        """Make a call, again where its failure is transient; returns what was read of its answer, or the text of it.

        Each call is added to ``calls``. Raises ProviderDownError where no call was made.
        """
        failures, purpose = 0, AttemptPurpose.FIRST
        while True:
            try:
                reply = await once(purpose)
            except ProviderDownError:
                if not calls:
                    raise
                return None, None
            call, found = reply.call, None
            if call.error_class is None and reply.text is not None:
                answer = read(reply.text)
                if isinstance(answer, InvalidResponse):
                    call = call.failed(AttemptResult.UNUSABLE, answer.error_class, answer.message)
                else:
                    found = answer
            await on_end(call)
            calls.append(call)
            failures += call.error_class in TRANSIENT
            if found is not None:
                return found, None
            if call.error_class not in TRANSIENT or failures >= self._config.max_attempts or self._breaker.is_open:
                self._breaker.count_question(call)
                return None, reply.text
            await self._back_off(reply, failures)
            purpose = AttemptPurpose.RETRY

    async def _decide_once(
        self,
        messages: Sequence[dict[str, str]],
        questions: Sequence[dict[str, Any]],
        purpose: AttemptPurpose,
        *,
        on_begin: RecordCall,
    ) -> HttpReply:
        async def send(call: CallRecord, _: RequestOptions) -> HttpReply:
            return await send_decision(self._client, call, messages, questions, self._config.timeout_seconds)

        texts = [message["content"] for message in messages] + [json.dumps(list(questions))]
        tokens = sum(map(estimated_tokens, texts)) + _TOKENS_PER_MESSAGE * len(texts)
        reply, _ = await self._exchange(messages, tokens, purpose, send, on_begin, response_format=JudgeKind.DECISIONS)
        return reply

    async def _exchange(
        self,
        messages: Sequence[dict[str, str]],
        tokens: int,
        purpose: AttemptPurpose,
        send: Callable[[CallRecord, RequestOptions], Awaitable[HttpReply]],
        on_begin: RecordCall,
        *,
        response_format: str | None = None,
    ) -> tuple[HttpReply, RequestOptions]:
        """Make one call as soon as it may be made; returns its reply and the options that it was to be made with."""
        async with self._concurrency, self._breaker.call() as outcome:
            await self._pacer.wait(tokens + self._config.max_response_tokens)
            self._breaker.refuse_if_open()
            options = self._options
            sent = self._record(messages, tokens, options, purpose)
            if response_format is not None:
                # Of an endpoint that knows no response format and no temperature.
                sent = replace(sent, response_format=response_format, temperature=None)
            await on_begin(sent)
            reply = self._seen(await send(sent, options), messages)
            outcome.call = reply.call
        self.is_answered = self.is_answered or reply.call.result in (AttemptResult.ANSWERED, AttemptResult.UNUSABLE)
        self._pause_as_asked(reply)
        return reply, options

    async def _back_off(self, reply: HttpReply, failures: int) -> None:
        """Wait before a retry, where the provider named no time."""
        if reply.wait is not None:
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
        elif (wait := reply.wait) is not None:
            if wait > MAX_PAUSE_SECONDS:
                self._breaker.open(f"it asked for a {wait:.0f} s pause ({reply.call.error_class})")
            else:
                self._pacer.pause(wait)

    def _simplify_options(self, reply: HttpReply, options: RequestOptions) -> bool:
        """Whether the call is to be repeated with other options, because the server rejected these."""
        first = not self.is_answered and reply.call.http_status in FORM_STATUSES
        if reply.call.error_class is not ErrorClass.UNSUPPORTED and not (
            first and reply.call.error_class is ErrorClass.BAD_REQUEST
        ):
            return False
        # Where they differ, another call was rejected before, and has already taken the next options.
        if self._options == options:
            simpler = options.after_refusal(reply.refusal, automatic=self._is_auto, first=first)
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

        texts: dict[str, Any] = {name: clean(getattr(reply.call, name)) for name in _PROVIDER_TEXTS}
        refusal = reply.refusal.replace(key, "[our key]")
        return replace(reply, text=clean(reply.text), refusal=refusal, call=replace(reply.call, **texts))


def _parse(reply: HttpReply, answer_type: type[JudgeReply]) -> tuple[CallRecord, JudgeReply | None]:
    """Return the call, and its answer where the text is valid."""
    call = reply.call
    if call.error_class is not None or reply.text is None:
        return call, None
    found = parse_response(strip_code_fence(reply.text, call.response_format), answer_type)
    if isinstance(found, InvalidResponse):
        return call.failed(AttemptResult.UNUSABLE, found.error_class, found.message), None
    return call, found


def _estimate_prompt_tokens(messages: Sequence[dict[str, str]], answer_type: type[BaseModel]) -> int:
    """Return a conservative estimate of a prompt's tokens: its messages, what frames each, and the answer's schema."""
    texts = [message["content"] for message in messages] + [schema_instructions(answer_type)]
    return sum(map(estimated_tokens, texts)) + _TOKENS_PER_MESSAGE * len(texts)
