"""The HTTP server: routes, the steps of a call, and the faults of the HTTP exchange."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from email.utils import formatdate
from itertools import count
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from trajectory_pipeline.demo.simulated_judge.batches import BatchServer
from trajectory_pipeline.demo.simulated_judge.corruptions import write_json
from trajectory_pipeline.demo.simulated_judge.decisions import decide, read_decision_request
from trajectory_pipeline.demo.simulated_judge.embeddings import embed, read_embedding_request
from trajectory_pipeline.demo.simulated_judge.faults import (
    ChosenFault,
    FaultPlan,
    FaultRequestError,
    FaultStage,
    parse_fault,
)
from trajectory_pipeline.demo.simulated_judge.prices import SIMULATED_PRICES
from trajectory_pipeline.demo.simulated_judge.protocol import (
    CONTEXT_WINDOW,
    ApiError,
    ChatRequest,
    Completion,
    PrefixCache,
    model_entry,
    read_chat_request,
    unknown_model,
)
from trajectory_pipeline.demo.simulated_judge.provider_cases import provider_cases
from trajectory_pipeline.demo.simulated_judge.respond import Reply, answer_request
from trajectory_pipeline.demo.simulated_judge.usage_log import ABANDONED, DROPPED, OpenCall, UsageLog
from trajectory_pipeline.runtime.browser_guard import BrowserGuard

FAULT_HEADER = "x-simulate"

_REQUESTS_A_MINUTE = 100_000
_TOKENS_A_MINUTE = 1_000_000_000

_HTML_PAGE = (
    b"<html>\r\n<head><title>%b</title></head>\r\n<body><center><h1>%b</h1></center><hr>simulated</body>\r\n</html>"
)

_Handler = Callable[[Request, OpenCall], Awaitable[Response]]


class JudgeServer:
    """The simulated provider: its usage_log, its plan of faults, its prompt cache, and its routes."""

    def __init__(self, latency: float = 0.0) -> None:
        self.usage_log = UsageLog()
        self.plan = FaultPlan()
        self._cache = PrefixCache()
        self._latency = latency
        # Ids differ between servers as well as between calls, so that records of two servers can be mixed.
        self._origin = secrets.token_hex(6)
        self._numbers = count(1)
        self._minute = 0
        self._requests = 0
        self._tokens = 0
        self._batches = BatchServer(self._answer_line, _close_request)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._logged(self._chat), methods=["POST"]),
                Route("/v1/embeddings", self._logged(self._embeddings), methods=["POST"]),
                Route("/v1/decisions", self._logged(self._decisions), methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model}", self._model, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/control/faults", self._faults, methods=["GET", "POST", "DELETE"]),
                Route("/control/calls", self._calls, methods=["GET", "DELETE"]),
                *self._batches.routes(_answering_errors),
            ],
            # Its controls change what it answers and show the calls.
            middleware=[Middleware(BrowserGuard)],
            exception_handlers={HTTPException: _no_such_route},
        )

    # ---- the course of a call ---------------------------------------------------------------------------------

    def _logged(self, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
        """Enter each call of an endpoint in the usage_log once, however it ends."""

        async def counted(request: Request) -> Response:
            call_id = f"{self._origin}{next(self._numbers):010x}"
            call = self.usage_log.open(f"chatcmpl-{call_id}", request.headers.get("x-client-request-id"))
            try:
                response = await handler(request, call)
            except ApiError as error:
                call.close(error.status, answered=False)
                response = _json(error.body(), error.status, error.headers)
            except ClientDisconnect:
                call.close(ABANDONED, answered=False)
                response = Response()
            finally:
                call.close(500, answered=False)
            for name, value in self._headers(call_id, call, response.status_code).items():
                response.headers.setdefault(name, value)
            return response

        return counted

    async def _chat(self, request: Request, call: OpenCall) -> Response:
        asked = read_chat_request(await request.body())
        call.record.model, call.record.stream = asked.model, asked.stream

        def applies(fault: ChosenFault) -> bool:
            return _applies(fault, asked)

        chosen = self._choose(request, call, asked.prompt, asked.fault, applies)
        early = await self._before_answer(request, call, chosen, asked.model)
        if early is not None:
            return early
        if asked.prompt_tokens > CONTEXT_WINDOW:
            message = (
                f"This model's maximum context length is {CONTEXT_WINDOW} tokens. However, your messages resulted in "
                f"{asked.prompt_tokens} tokens. Please reduce the length of the messages."
            )
            raise ApiError(400, message, code="context_length_exceeded", param="messages")
        reply = answer_request(asked, chosen)
        if chosen is not None and chosen.name == "provider":
            return self._play(call, chosen, asked, reply)
        completion = self._complete(call, asked, chosen, reply)
        if asked.stream:
            chunks = [corrupt_envelope(chosen, c) for c in completion.chunks(include_usage=asked.include_usage)]
            lines = [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks if chunk is not None]
            body, media_type = b"".join([*lines, b"data: [DONE]\n\n"]), "text/event-stream"
        else:
            body, media_type = orjson.dumps(corrupt_envelope(chosen, completion.as_json())), "application/json"
        return await self._deliver(request, call, chosen, body, media_type)

    def _answer_line(self, body: bytes) -> tuple[int, dict[str, Any] | None]:
        """Work on one line of a batch, with the faults that a plan or the model's name has for it."""
        call = self.usage_log.open(f"chatcmpl-{self._origin}{next(self._numbers):010x}", None)
        call.record.batch = True
        try:
            asked = read_chat_request(body)
            call.record.model = asked.model
            own = asked.fault or self.plan.next_fault(asked.prompt, lambda fault: _applies(fault, asked))
            chosen = own if own is not None and _applies(own, asked) else None
            call.record.fault = chosen.name if chosen is not None else None
            if chosen is not None and chosen.fault.stage is FaultStage.REFUSED:
                refused = _refused(call, chosen, asked.model, "")
                return refused.status_code, None
            completion = self._complete(call, asked, chosen, answer_request(asked, chosen))
        except ApiError as error:
            call.close(error.status, answered=False)
            return error.status, error.body()
        call.close(200, answered=True)
        return 200, corrupt_envelope(chosen, completion.as_json())

    def _complete(self, call: OpenCall, asked: ChatRequest, chosen: ChosenFault | None, reply: Reply) -> Completion:
        """Return the completion of a call, and charge for it."""
        ignored = chosen is not None and chosen.name == "tool_ignored"
        as_tool_call = asked.tool is not None and reply.content is not None and not ignored
        completion = Completion(
            id=call.record.id,
            model=asked.model,
            content=reply.content,
            finish_reason=reply.finish_reason,
            prompt_tokens=asked.prompt_tokens,
            cached_tokens=self._cache.cached_tokens(asked.model, asked.prompt_bytes),
            completion_tokens=reply.tokens() * asked.choices,
            refusal=reply.refusal,
            tool_name=asked.tool.name if asked.tool is not None and as_tool_call else None,
            choices=asked.choices,
        )
        call.charge(completion.prompt_tokens, completion.cached_tokens, completion.completion_tokens)
        self._tokens += completion.prompt_tokens + completion.completion_tokens
        return completion

    async def _decisions(self, request: Request, call: OpenCall) -> Response:
        asked = read_decision_request(await request.body())
        call.record.model = asked.model
        chosen = self._choose(request, call, asked.text, asked.fault, _applies_to_decisions)
        early = await self._before_answer(request, call, chosen, asked.model)
        if early is not None:
            return early
        answer = decide(asked, chosen)
        usage = answer["usage"]
        call.charge(usage["input_tokens"], 0, usage["output_tokens"])
        self._tokens += usage["total_tokens"]
        return await self._deliver(request, call, chosen, write_json(answer).encode(), "application/json")

    async def _embeddings(self, request: Request, call: OpenCall) -> Response:
        asked = read_embedding_request(await request.body())
        call.record.model = asked.model
        chosen = self._choose(request, call, "\n".join(asked.texts), asked.fault, _applies_to_embeddings)
        early = await self._before_answer(request, call, chosen, asked.model)
        if early is not None:
            return early
        answer = embed(asked, chosen)
        call.charge(asked.tokens, 0, 0)
        self._tokens += asked.tokens
        return await self._deliver(request, call, chosen, write_json(answer).encode(), "application/json")

    def _play(self, call: OpenCall, chosen: ChosenFault, asked: ChatRequest, reply: Reply) -> Response:
        """Respond as a row of the provider corpus says."""
        case, output = provider_cases()[chosen.text("row")], reply.tokens()
        if case.is_billed:
            call.charge(asked.prompt_tokens, 0, output + case.reasoning_tokens)
        call.close(case.status, answered=case.is_billed)
        body = case.filled(reply.content or "", asked.model, asked.prompt_tokens, output)
        return Response(body, case.status, headers={"content-type": "application/json", **case.headers})

    def _choose(
        self,
        request: Request,
        call: OpenCall,
        prompt: str,
        suffix: ChosenFault | None,
        applies: Callable[[ChosenFault], bool],
    ) -> ChosenFault | None:
        """Decide which fault a call gets: the header's, the model suffix's, or the plan's."""
        header = request.headers.get(FAULT_HEADER)
        try:
            own = parse_fault(header) if header else suffix
        except FaultRequestError as error:
            raise ApiError(400, f"Invalid '{FAULT_HEADER}' header: {error}", param=FAULT_HEADER) from None
        if own is None:
            own = self.plan.next_fault(prompt, applies)
        chosen = own if own is not None and applies(own) else None
        call.record.fault = chosen.name if chosen is not None else None
        return chosen

    async def _before_answer(
        self, request: Request, call: OpenCall, chosen: ChosenFault | None, model: str
    ) -> Response | None:
        """Carry out the faults that strike before any work is done, and wait as long as was asked for."""
        name = chosen.name if chosen is not None else None
        if chosen is not None and chosen.fault.stage is FaultStage.REFUSED:
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
            return _refused(call, chosen, model, key)
        if chosen is not None and name in ("hang", "slow"):
            if await _client_leaves_within(request, chosen.number("seconds")):
                call.close(ABANDONED, answered=False)
                return Response()
            if name == "hang":
                return await _drop_connection(request, call, answered=False)
        elif chosen is not None and name == "late_answer":
            await asyncio.sleep(chosen.number("seconds"))
        elif self._latency > 0:
            await asyncio.sleep(self._latency)
        if chosen is not None and name == "connection_dropped" and not chosen.params["billed"]:
            return await _drop_connection(request, call, answered=False)
        if chosen is not None and name == "error_body":
            call.close(200, answered=False)
            return _json({"error": {"message": "Upstream is down (simulated)", "code": int(chosen.number("code"))}})
        if name == "html_body":
            call.close(200, answered=False)
            return Response(_HTML_PAGE % (b"Sign in", b"Sign in to continue"), media_type="text/html")
        return None

    async def _deliver(
        self, request: Request, call: OpenCall, chosen: ChosenFault | None, body: bytes, media_type: str
    ) -> Response:
        """Send an answer whose work is done, or the part of it that a fault lets through.

        The usage_log are closed before the first byte leaves, so that a client that has its answer finds it counted.
        """
        name = chosen.name if chosen is not None else None
        if name == "connection_dropped":
            return await _drop_connection(request, call, answered=True)
        call.close(200, answered=True)
        if chosen is not None and name == "limit_used_up":
            used_up = {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": f"{chosen.number('seconds'):g}s",
            }
            return Response(body, headers=used_up, media_type=media_type)
        if chosen is not None and name == "connection_dropped_mid_body":
            return TruncatedResponse(body, chosen.number("share"), media_type)
        if chosen is not None and name == "slow_drip":
            return StreamingResponse(
                _slow_chunks(body, chosen.number("seconds")),
                headers={"content-length": str(len(body))},
                media_type=media_type,
            )
        return Response(body, media_type="text/plain" if name == "wrong_content_type" else media_type)

    def _headers(self, call_id: str, call: OpenCall, status: int) -> Mapping[str, str]:
        minute = int(time.time() // 60)
        if minute != self._minute:
            self._minute, self._requests, self._tokens = minute, 0, 0
        self._requests += 1
        limited = status == 429
        own = {"x-request-id": f"req_{call_id}", "x-simulated": "true"}
        if call.record.fault == "provider":
            # A row's own rate headers are all that it has.
            return own
        return {
            **own,
            "openai-version": "2020-10-01",
            "openai-organization": "simulated",
            "openai-processing-ms": str(int(call.record.seconds * 1000)),
            "x-ratelimit-limit-requests": str(_REQUESTS_A_MINUTE),
            "x-ratelimit-limit-tokens": str(_TOKENS_A_MINUTE),
            "x-ratelimit-remaining-requests": "0" if limited else str(max(0, _REQUESTS_A_MINUTE - self._requests)),
            "x-ratelimit-remaining-tokens": "0" if limited else str(max(0, _TOKENS_A_MINUTE - self._tokens)),
            "x-ratelimit-reset-requests": "1s" if limited else "6ms",
            "x-ratelimit-reset-tokens": "1s" if limited else "0s",
        }

    # ---- the other routes -------------------------------------------------------------------------------------

    async def _models(self, _request: Request) -> Response:
        return _json({"object": "list", "data": [model_entry(model) for model in SIMULATED_PRICES]})

    async def _model(self, request: Request) -> Response:
        model = request.path_params["model"]
        if model not in SIMULATED_PRICES:
            error = unknown_model(model)
            return _json(error.body(), error.status)
        return _json(model_entry(model))

    async def _health(self, _request: Request) -> Response:
        return _json({"status": "ok", "simulated": True})

    async def _faults(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.plan.clear()
        elif request.method == "POST":
            try:
                self.plan.add(orjson.loads(await request.body()))
            except (FaultRequestError, orjson.JSONDecodeError) as error:
                return _json(ApiError(400, f"Invalid planned fault: {error}").body(), 400)
        return _json([planned.as_json() for planned in self.plan.planned()])

    async def _calls(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.usage_log.reset()
        last = request.query_params.get("last", "100")
        if not last.isdigit():
            return _json(ApiError(400, "'last' is a whole number from 0 on.", param="last").body(), 400)
        return _json(self.usage_log.as_json(int(last)))


# ---- faults of the exchange itself --------------------------------------------------------------------------------


_NEEDED_PARAMETER = {
    "unsupported_temperature": "temperature",
    "no_tool_support": "tools",
    "no_tool_endpoint": "tools",
}


_OF_ENDPOINT = (FaultStage.ANSWER, FaultStage.ENVELOPE, FaultStage.DECISION, FaultStage.EMBEDDING)
"""Stages of faults that only one endpoint has."""


def _applies_to_decisions(chosen: ChosenFault) -> bool:
    return _applies_without_chat(chosen, FaultStage.DECISION)


def _applies_to_embeddings(chosen: ChosenFault) -> bool:
    return _applies_without_chat(chosen, FaultStage.EMBEDDING)


def _applies_without_chat(chosen: ChosenFault, own: FaultStage) -> bool:
    of_others = chosen.fault.stage in _OF_ENDPOINT and chosen.fault.stage is not own
    return not of_others and chosen.name != "provider" and chosen.name not in _NEEDED_PARAMETER


def _applies(chosen: ChosenFault, asked: ChatRequest) -> bool:
    """Return whether a fault can strike a call at all: some depend on what the request asks for."""
    if chosen.fault.stage in (FaultStage.DECISION, FaultStage.EMBEDDING):
        return False
    if chosen.name == "unsupported_response_format":
        return asked.response_format in [kind.strip() for kind in chosen.text("types").split(",")]
    if chosen.name == "provider":
        only = provider_cases()[chosen.text("row")].only
        return only is None or only == asked.response_format
    if chosen.name in ("unsupported_parameter", "unknown_field"):
        return chosen.text("param") in asked.given
    needs = _NEEDED_PARAMETER.get(chosen.name)
    return needs is None or needs in asked.given


def _refused(call: OpenCall, chosen: ChosenFault, model: str, key: str) -> Response:
    fault = chosen.fault
    if fault.name in ("bad_gateway", "gateway_timeout"):
        call.close(fault.status, answered=False)
        title = {502: b"502 Bad Gateway", 504: b"504 Gateway Time-out"}[fault.status]
        return Response(_HTML_PAGE % (title, title), fault.status, media_type="text/html")
    parameter = str(chosen.params.get("param", "")) or None
    message = fault.message.format(param=parameter, model=model, key=key)
    if fault.name == "unknown_field":
        call.close(fault.status, answered=False)
        body = {"object": "error", "message": message, "type": fault.error_type, "param": None, "code": fault.status}
        return _json(body, fault.status)
    raise ApiError(
        fault.status,
        message,
        error_type=fault.error_type,
        code=fault.error_code,
        param=fault.error_param or parameter,
        headers=_retry_headers(chosen),
    )


def _retry_headers(chosen: ChosenFault) -> dict[str, str]:
    if chosen.name == "rate_limit_ms":
        return {"retry-after-ms": chosen.text("retry_after_ms")}
    if "retry_after" not in chosen.params:
        return {}
    seconds = chosen.number("retry_after")
    if chosen.name == "rate_limit_date":
        # A date has whole seconds: one more, so that it never lies before the moment that was asked for.
        return {"retry-after": formatdate(int(time.time() + seconds) + 1, usegmt=True)}
    if seconds <= 0 and chosen.name == "unavailable":
        return {}
    return {"retry-after": f"{seconds:g}"}


def corrupt_envelope(chosen: ChosenFault | None, envelope: dict[str, Any]) -> dict[str, Any] | None:
    """Damage a completion object or a chunk; None means that the chunk is left out."""
    name = chosen.name if chosen is not None else None
    if chosen is None or chosen.fault.stage is not FaultStage.ENVELOPE:
        return envelope
    choices = envelope["choices"]
    if name == "usage_missing":
        carried_usage_only = not choices
        envelope.pop("usage", None)
        return None if carried_usage_only else envelope
    if name == "usage_null":
        return {**envelope, "usage": None}
    if name == "wrong_model_name":
        return {**envelope, "model": chosen.text("model")}
    if name == "duplicate_choices":
        return {**envelope, "choices": [*choices, *({**c, "index": c["index"] + len(choices)} for c in choices)]}
    return {**envelope, "choices": []} if name == "no_choices" else envelope


async def _client_leaves_within(request: Request, seconds: float) -> bool:
    """Wait; True as soon as the client closes the connection, False when the time is over."""
    try:
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


async def _drop_connection(request: Request, call: OpenCall, *, answered: bool) -> Response:
    call.close(DROPPED, answered=answered)
    await _close_connection(request.receive)
    return Response()  # goes nowhere: uvicorn drops what is sent to a closed connection


async def _close_connection(receive: Receive) -> None:
    """Close the TCP connection, which ASGI has no word for: uvicorn's ``receive`` belongs to what holds it."""
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:  # its class is no guide: uvloop's is not asyncio's
        raise RuntimeError("dropping a connection needs uvicorn, whose receive() belongs to a cycle with a transport")
    transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _close_request(request: Request) -> Response:
    await _close_connection(request.receive)
    return Response()


def _answering_errors(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
    async def answered(request: Request) -> Response:
        try:
            response: Response = await handler(request)
        except ApiError as error:
            return _json(error.body(), error.status, {"x-simulated": "true", **error.headers})
        return response

    return answered


async def _slow_chunks(body: bytes, seconds: float, pieces: int = 100) -> AsyncIterator[bytes]:
    """Return a body in pieces, with pauses that add up to some seconds; never the whole of it sooner."""
    size = -(-len(body) // pieces)
    for start in range(0, len(body), size):
        await asyncio.sleep(seconds / pieces)
        yield body[start : start + size]


class TruncatedResponse(Response):
    """An answer that promises its whole length and stops in the middle, then the connection closes."""

    def __init__(self, body: bytes, share: float, media_type: str) -> None:
        super().__init__(body, media_type=media_type)
        self._cut = max(1, min(len(body) - 1, int(len(body) * share)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send head and part of the body, then close the connection."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body)[: self._cut], "more_body": True})
        await _close_connection(receive)


# ---- answers ------------------------------------------------------------------------------------------------------


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers=dict(headers or {}), media_type="application/json")


async def _no_such_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    message = (
        f"Invalid URL ({request.method} {request.url.path})"
        if status == 404
        else f"Not allowed to {request.method} on {request.url.path}."
    )
    return _json(ApiError(status, message).body(), status)
