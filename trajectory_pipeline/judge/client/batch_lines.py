"""The lines of a batch's files: writes a request, and finds the replies in whatever comes back.

Lines come in any order. The provider may repeat one, leave one out, or send one that nobody asked for.
"""

import json
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
    """

    status: str
    errors: str = ""
    error_class: ErrorClass = ErrorClass.BATCH_ENDED
    all_accounted: bool = False
    simulated: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    _worked_on: set[str] = field(default_factory=set)
    _places: dict[str, list[tuple[IO[bytes], int]]] = field(default_factory=lambda: defaultdict(list))

    def index(self, file: IO[bytes], ours: frozenset[str]) -> None:
        """Take note of the lines of a file; those whose custom id is not ours are counted and left out."""
        file.seek(0)
        while True:
            place = file.tell()
            line = file.readline()
            if not line:
                return
            if not line.strip():
                continue
            custom_id, is_worked_on = _custom_id(line)
            if custom_id is None:
                self.counts["malformed"] += 1
            elif custom_id not in ours:
                self.counts["foreign"] += 1
            else:
                self.counts["repeated"] += custom_id in self._places
                self._places[custom_id].append((file, place))
                if is_worked_on:
                    self._worked_on.add(custom_id)

    @property
    def worked_on(self) -> int:
        """Calls that have a line with a response of the model's server."""
        return len(self._worked_on)

    def reply(self, sent: CallRecord) -> HttpReply:
        """Return what came of a call. Of several lines, an answer goes before an error; what each cost is added up."""
        replies = [self._read(sent, file, place) for file, place in self._places.get(sent.attempt_id, ())]
        if not replies:
            return self._not_worked_on(sent)
        best = min(replies, key=lambda one: one.call.result != AttemptResult.ANSWERED)
        self.counts["answered" if best.call.result == AttemptResult.ANSWERED else "errors"] += 1
        return replace(best, call=replace(best.call, **_added_up(replies)))

    def _read(self, sent: CallRecord, file: IO[bytes], place: int) -> HttpReply:
        file.seek(place)
        most = max_response_bytes(sent.max_response_tokens)
        line: Any = json.loads(file.readline())
        response, error = line.get("response"), line.get("error")
        if isinstance(response, dict) and response.get("status_code") in range(200, 600):
            content = json.dumps(response.get("body")).encode()
            headers = {"x-request-id": str(response["request_id"])} if response.get("request_id") else {}
            made = httpx2.Response(response["status_code"], headers=headers, content=content[:most])
            made.extensions["cut_off"] = len(content) > most
            return read_reply(sent, made, simulated=self.simulated)
        if isinstance(error, dict) and error.get("code") in _ENDED_CODES:
            return self._not_worked_on(sent, str(error.get("message") or error["code"]))
        text = describe_error({"error": error})
        made = httpx2.Response(embedded_status(text), content=json.dumps({"error": error}).encode())
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


def _added_up(replies: Sequence[HttpReply]) -> dict[str, Any]:
    """Return the usage of all lines of one call: a request that a provider worked on twice is billed twice."""
    calls = {(one.call.request_id or str(number)): one.call for number, one in enumerate(replies)}.values()
    usages = [call.usage for call in calls if call.usage is not None]
    billed = [call.billed_usd for call in calls if call.billed_usd is not None]
    cached = [usage.cached_input_tokens for usage in usages if usage.cached_input_tokens is not None]
    usage = CallUsage(
        sum(usage.input_tokens for usage in usages),
        sum(cached) if cached else None,
        sum(usage.output_tokens for usage in usages),
    )
    return {"usage": usage if usages else None, "billed_usd": sum(billed, Decimal(0)) if billed else None}
