"""The lines of a batch's files: writes a request, and finds the replies in whatever comes back.

Lines come in any order. The provider may repeat one, leave one out, or send one that nobody asked for.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import IO, Any

import httpx2

from trajectory_pipeline.budget.prices import CallUsage
from trajectory_pipeline.judge.client.bounded_http import max_response_bytes
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.error_text import describe_error
from trajectory_pipeline.judge.client.errors import embedded_status
from trajectory_pipeline.judge.client.http_call import HttpReply, read_reply
from trajectory_pipeline.schema.enums import AttemptResult, ErrorClass

_CUSTOM_ID = re.compile(rb'"custom_id"\s{0,8}:\s{0,8}"([^"\\]{1,200})"')
_START_BYTES = 4096
_FRAME_BYTES = 64 * 1024
"""Of a line, beside the answer in it."""
_STATUS = re.compile(r"([2-5][0-9]{2})(?:\.0)?")
_ENDED_CODES = frozenset({"batch_expired", "batch_cancelled", "batch_failed"})
"""Codes of lines that a provider did not work on."""


def request_line(call: CallRecord, url: str, body: bytes) -> bytes:
    """Return the line that asks for a call; its custom id is the call's own id."""
    head = json.dumps({"custom_id": call.attempt_id, "method": "POST", "url": url}, separators=(",", ":"))
    return head[:-1].encode() + b',"body":' + body + b"}\n"


@dataclass
class BatchReplies:
    """The replies in a batch's files, by custom id; texts stay in the files until they are wanted.

    Attributes:
        counts: lines by what they are: ``answered``, ``errors``, ``repeated``, ``foreign``, ``malformed``.
        status: of the batch, as the provider says it.
        errors: what the provider says is wrong with the whole batch.
        error_class: of a line that was not worked on.
        all_accounted: whether a line that is in no file cannot have been billed.
        max_response_tokens: of an answer; a line that is longer than one can be is not read.
    """

    status: str
    errors: str = ""
    error_class: ErrorClass = ErrorClass.BATCH_ENDED
    all_accounted: bool = False
    simulated: bool = False
    max_response_tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    _worked_on: set[str] = field(default_factory=set)
    _places: dict[str, list[tuple[IO[bytes], int]]] = field(default_factory=lambda: defaultdict(list))

    def index(self, file: IO[bytes], ours: frozenset[str]) -> None:
        """Take note of the lines of a file; those whose custom id is not ours are counted and left out."""
        file.seek(0)
        while True:
            place = file.tell()
            line, is_whole = self._read_line(file)
            if not line:
                return
            if not line.strip():
                continue
            custom_id, is_worked_on = _custom_id(line) if is_whole else (_custom_id_of_start(line), True)
            if custom_id is None:
                self.counts["malformed"] += 1
            elif custom_id not in ours:
                self.counts["foreign"] += 1
            else:
                self.counts["repeated"] += custom_id in self._places
                self._places[custom_id].append((file, place))
                if is_worked_on:
                    self._worked_on.add(custom_id)

    def _read_line(self, file: IO[bytes]) -> tuple[bytes, bool]:
        """Return a line and whether it is whole: of one that is too long the beginning, and the rest is passed over."""
        most = max_response_bytes(self.max_response_tokens) + _FRAME_BYTES
        line = file.readline(most)
        if len(line) < most or line.endswith(b"\n"):
            return line, True
        while (rest := file.readline(most)) and not rest.endswith(b"\n"):
            pass
        return line, False

    @property
    def worked_on(self) -> int:
        """Calls that have a line with a response of the model's server."""
        return len(self._worked_on)

    def reply(self, sent: CallRecord) -> HttpReply:
        """Return what came of a call. Of several lines, an answer goes before an error; what each cost is added up."""
        replies = [self._read(sent, file, place) for file, place in self._places.get(sent.attempt_id, ())]
        if not replies:
            return self._not_worked_on(sent)
        best = min(replies, key=lambda one: _ORDER.get(one.call.result, 1))
        self.counts["answered" if best.call.result == AttemptResult.ANSWERED else "errors"] += 1
        return replace(best, call=replace(best.call, **_added_up(replies)))

    def _read(self, sent: CallRecord, file: IO[bytes], place: int) -> HttpReply:
        file.seek(place)
        most = max_response_bytes(sent.max_response_tokens)
        text, is_whole = self._read_line(file)
        if not is_whole:
            made = httpx2.Response(200, content=text, extensions={"cut_off": True})
            return read_reply(sent, made, simulated=self.simulated)
        try:
            return self._read_whole(sent, text, most)
        except Exception as error:
            # Whatever is odd in one line costs no other line its verdict.
            odd = f"its line of the batch's file cannot be read: {type(error).__name__}: {error}"
            return HttpReply(sent.failed(AttemptResult.UNUSABLE, ErrorClass.NOT_A_COMPLETION, odd))

    def _read_whole(self, sent: CallRecord, text: bytes, most: int) -> HttpReply:
        line: Any = json.loads(text)
        response, error = line.get("response"), line.get("error")
        if isinstance(response, dict) and (status := _STATUS.fullmatch(str(response.get("status_code")))):
            content = json.dumps(response.get("body")).encode()
            made = httpx2.Response(int(status[1]), content=content[:most])
            made.extensions["cut_off"] = len(content) > most
            reply = read_reply(sent, made, simulated=self.simulated)
            request_id = str(response.get("request_id") or "") or None
            return replace(reply, call=replace(reply.call, request_id=request_id))
        if isinstance(error, dict) and str(error.get("code")) in _ENDED_CODES:
            return self._not_worked_on(sent, str(error.get("message") or error["code"]))
        words = describe_error({"error": error})
        made = httpx2.Response(embedded_status(words), content=json.dumps({"error": error}).encode())
        return read_reply(sent, made, simulated=self.simulated)

    def _not_worked_on(self, sent: CallRecord, message: str = "") -> HttpReply:
        if message or self.all_accounted:
            self.counts["not worked on"] += 1
            why = message or self.errors or f"the batch ended ({self.status}) before it was worked on"
            return HttpReply(sent.failed(AttemptResult.ERROR, self.error_class, why))
        self.counts["missing"] += 1
        missing = f"the batch ended ({self.status}), and its files hold no line of this request: it may be billed"
        return HttpReply(sent.failed(AttemptResult.LOST, ErrorClass.BATCH_ENDED, missing))


def _custom_id(line: bytes) -> tuple[str | None, bool]:
    """Return a line's custom id, None where it is no line of a batch, and whether it has a response."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None, False
    custom_id = value.get("custom_id") if isinstance(value, dict) else None
    return (custom_id, isinstance(value.get("response"), dict)) if isinstance(custom_id, str) else (None, False)


def _custom_id_of_start(start: bytes) -> str | None:
    """Return the custom id of a line by its beginning; None where it is not there."""
    found = _CUSTOM_ID.search(start, 0, _START_BYTES)
    return found[1].decode("utf-8", "replace") if found else None


_ORDER = {AttemptResult.ANSWERED: 0, AttemptResult.ERROR: 2}
"""Of several replies the one to go by: an answer, else one that may be billed (1), else a refusal."""


def _added_up(replies: Sequence[HttpReply]) -> dict[str, Any]:
    """Return the usage of all lines of one call: a request that a provider worked on twice is billed twice.

    Of several, one whose usage is not told counts at its reservation.
    """
    calls = {(one.call.request_id or str(number)): one.call for number, one in enumerate(replies)}.values()
    usages = [usage for call in calls if (usage := _usage_of(call) if len(calls) > 1 else call.usage) is not None]
    billed = [call.billed_usd for call in calls if call.billed_usd is not None]
    cached = [usage.cached_input_tokens for usage in usages if usage.cached_input_tokens is not None]
    usage = CallUsage(
        sum(usage.input_tokens for usage in usages),
        sum(cached) if cached else None,
        sum(usage.output_tokens for usage in usages),
        sum(usage.cache_write_tokens for usage in usages),
    )
    return {"usage": usage if usages else None, "billed_usd": sum(billed, Decimal(0)) if billed else None}


def _usage_of(call: CallRecord) -> CallUsage | None:
    if call.usage is None and call.result is not AttemptResult.ERROR:
        return CallUsage(call.estimated_prompt_tokens, None, call.max_response_tokens)
    return call.usage
