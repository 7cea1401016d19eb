"""A Letta server's REST API as a source, where its database is out of reach.

The list of runs is ordered by creation only, and cannot be filtered by time, so all of it is walked: politely, and from
where it stopped if it breaks off. In some releases ``after`` means ``before`` (Letta 0.16.8): the walk notices. What
the list shows of a run is its fingerprint; messages and steps are read with the partition. ``letta-client`` is not
used: its own paging never gets past the first page of such a server, and it is not maintained any more.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

import httpx2

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.schema.raw import TERMINAL_STATUSES
from trajectory_pipeline.source_protocol import SourceIdentity
from trajectory_pipeline.sources.found_runs import FoundRun, FoundRuns, RefusedRunError, utc_now
from trajectory_pipeline.sources.raw_rows import (
    Row,
    RunRows,
    json_text,
    naive,
    object_of,
    reasoning_part,
    shown_columns,
    text_part,
    texts,
    tool_call,
    tool_return,
    unreadable_message,
    utc_time,
    whole,
)
from trajectory_pipeline.urls import without_credentials

RUNS_PER_PAGE = 1000
ROWS_PER_PAGE = 100
FRESH_SECONDS = 60.0
"""A list that was walked so lately is not walked again: a sensor looks twice a minute."""
TRIES = 3
LONGEST_WAIT_SECONDS = 60.0
_TIMEOUT_SECONDS = 60.0
_STEP_COLUMNS = (
    *("id", "agent_id", "project_id", "provider_id", "provider_name", "provider_category", "model", "model_handle"),
    *("model_endpoint", "context_window_limit", "stop_reason", "error_type", "feedback", "origin", "tid", "trace_id"),
    *("request_id",),
)
_STEP_COUNTS = (
    *("prompt_tokens", "completion_tokens", "total_tokens", "cached_input_tokens", "cache_write_tokens"),
    *("reasoning_tokens",),
)
_STEP_JSON = ("prompt_tokens_details", "completion_tokens_details", "error_data", "tags")
SHOWN_COLUMNS = shown_columns(
    runs="id status completed_at stop_reason background metadata_ request_config agent_id conversation_id project_id"
    " base_template_id callback_url callback_sent_at callback_status_code callback_error ttft_ns total_duration_ns"
    " created_at",
    steps=f"run_id status created_at {' '.join((*_STEP_COLUMNS, *_STEP_COUNTS, *_STEP_JSON))}",
    messages="id run_id step_id sequence_id agent_id conversation_id role content tool_calls tool_call_id tool_returns"
    " approvals name otid sender_id created_at",
    agents="id name project_id system",
)
_ROLES = {
    "user_message": "user",
    "system_message": "system",
    "assistant_message": "assistant",
    "reasoning_message": "assistant",
    "hidden_reasoning_message": "assistant",
    "tool_call_message": "assistant",
    "tool_return_message": "tool",
    "approval_request_message": "approval",
    "approval_response_message": "approval",
    "summary_message": "summary",
}


_RUN_FIELDS = frozenset(
    (
        *("id", "status", "stop_reason", "background", "agent_id", "conversation_id", "project_id", "metadata"),
        *("request_config", "base_template_id", "callback_url", "callback_error", "callback_status_code"),
        *("callback_sent_at", "ttft_ns", "total_duration_ns", "created_at", "completed_at"),
    )
)


@dataclass
class _Walk:
    """The walk through a server's list of runs, which a failure interrupts and the next snapshot continues.

    Attributes:
        runs: rows of runs so far, by id.
        cursor: id of the last run that was read.
        inverted: whether ``before`` continues instead of ``after``.
        ended_at: by a monotonic clock, when the last whole walk ended.
        complete: the rows of the last whole walk.
        taken_at: when the walk began.
        next_at: by a monotonic clock, when the next request may be sent.
        answered: whether the last request got an answer that asking again would not change.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    runs: dict[str, Row] = field(default_factory=dict)
    cursor: str | None = None
    inverted: bool = False
    ended_at: float | None = None
    complete: dict[str, Row] = field(default_factory=dict)
    taken_at: datetime = field(default_factory=utc_now)
    next_at: float = 0.0
    answered: bool = True

    def begin(self) -> None:
        """Begin the next walk at the first run."""
        self.runs, self.cursor = {}, None


_WALKS: dict[tuple[str, str], _Walk] = {}


@dataclass(frozen=True)
class LettaApiSource:
    """A Letta server at ``https://host:port``, read with one organization's key."""

    kind: ClassVar[str] = "letta_api"
    cannot_know: ClassVar[tuple[str, ...]] = (
        "Deletions: a run that the list does not show any more stays as it was captured.",
        "What changes without the run's own row: feedback, late messages, metrics. They come with the next reading.",
        "Runs of other organizations than the key's; which organization that is.",
        "Order and times of messages within a second, the model of a message, content as it is stored: the API"
        " converts messages. The type of an agent is left out, because its messages come as those of any other.",
        "Durations of steps. Tokens are summed over the steps: the API's own sum stops at 50 steps.",
        "Tools as the run had them, and the prompt of its first call.",
    )

    name: str
    url: str
    api_key: str | None = field(default=None, repr=False)
    requests_per_minute: int = 300
    fresh_seconds: float = FRESH_SECONDS
    runs_per_page: int = RUNS_PER_PAGE

    @contextmanager
    def snapshot(self) -> Iterator[FoundRuns]:
        """Walk the list of runs, or take that of a moment ago.

        Raises:
            SourceError: the server cannot be reached, refuses, or pages in circles.
        """
        walk = _WALKS.setdefault((self.name, self.url), _Walk())
        with self._client() as client:
            api = _Api(self, client, walk)
            with walk.lock:
                rows = api.runs()
            agents: dict[str, Row | None] = {}
            found: list[FoundRun] = []
            unfinished: dict[str, datetime] = {}
            for run_id, row in rows.items():
                at = utc_time(row.get("completed_at")) or utc_time(row.get("created_at"))
                if row.get("status") not in TERMINAL_STATUSES or at is None:
                    unfinished[run_id] = at or walk.taken_at
                    continue
                version = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
                agent_id = row["agent_id"] if isinstance(row.get("agent_id"), str) else None
                read = partial(_rows, api, row, agents)
                found.append(FoundRun(run_id, at, version, read, agent_id=agent_id))
            yield FoundRuns(
                source=self.name,
                identity=SourceIdentity(f"{self.name}: Letta server at {self.described}"),
                described=self.described,
                taken_at=walk.taken_at,
                runs=found,
                unfinished=unfinished,
                shown_columns=SHOWN_COLUMNS,
                unknown_columns=sorted({f"runs.{name}" for row in rows.values() for name in row.keys() - _RUN_FIELDS}),
                notes=("its pages are inverted: after= gives what lies before, and the walk goes by before=",)
                if walk.inverted
                else (),
            )

    @contextmanager
    def pooled(self) -> Iterator["LettaApiSource"]:
        """Return the source: each snapshot has a connection of its own, and the list is shared anyway."""
        yield self

    @property
    def described(self) -> str:
        """The server, without a login."""
        return without_credentials(self.url)

    def _client(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return httpx2.Client(base_url=self.url.rstrip("/"), headers=headers, timeout=_TIMEOUT_SECONDS)


@dataclass(frozen=True)
class _Api:
    """Requests to one server: paced, repeated where that may help, and errors as sentences."""

    source: LettaApiSource
    client: httpx2.Client
    walk: _Walk

    def runs(self) -> dict[str, Row]:
        """Return the row of each run; the walk's lock must be held."""
        walk = self.walk
        if walk.ended_at is not None and time.monotonic() - walk.ended_at < self.source.fresh_seconds:
            return walk.complete
        if walk.cursor is None:
            walk.taken_at = utc_now()
        while True:
            try:
                page = self._page_of_runs()
            except SourceError:
                if walk.answered:
                    # Asking the same again would not help: the run to go on after may be deleted.
                    walk.begin()
                raise
            walk.runs.update((str(row["id"]), row) for row in page)
            if not page:
                # A shorter page is not the last one where a server gives fewer than it is asked for.
                break
            walk.cursor = str(page[-1]["id"])
        walk.complete, walk.ended_at = walk.runs, time.monotonic()
        walk.begin()
        return walk.complete

    def _page_of_runs(self) -> list[Row]:
        walk = self.walk
        for _ in range(2):
            where = {} if walk.cursor is None else {"before" if walk.inverted else "after": walk.cursor}
            query = {"limit": self.source.runs_per_page, "order": "asc", "order_by": "created_at", **where}
            page = self.rows("/v1/runs/", query)
            if not walk.runs.keys() & {str(row["id"]) for row in page}:
                return page
            # What was read comes again: the server means the other word.
            walk.inverted = not walk.inverted
        cursor, walk.runs, walk.cursor = walk.cursor, {}, None
        raise SourceError(
            f"{self.source.described} gives the same runs again, whether asked for those after or before"
            f" {cursor}: its list of runs cannot be walked. The next reading begins anew, in case that run was deleted"
            " meanwhile. If this comes again, read its database instead (LETTA_PG_URI)."
        )

    def rows(self, path: str, query: Row) -> list[Row]:
        """Return a list of objects with ids."""
        found = self.get(path, query)
        if not isinstance(found, list) or not all(isinstance(row, dict) and "id" in row for row in found):
            raise SourceError(f"{self.source.described}{path} gave no list of objects with ids: is it a Letta server?")
        return found

    def pages(self, path: str) -> Iterator[Row]:
        """Yield all rows of a list below one run, which ``after`` pages correctly in all releases."""
        seen: set[str] = set()
        after: str | None = None
        while True:
            query = {"limit": ROWS_PER_PAGE, "order": "asc", **({"after": after} if after else {})}
            page = self.rows(path, query)
            ids = {str(row["id"]) for row in page}
            # A row of messages becomes several messages of its id.
            yield from (row for row in page if str(row["id"]) not in seen)
            # A short page is not the last one: a server may give fewer than it is asked for, and what makes no message
            # is left out.
            if not ids - seen:
                return
            seen |= ids
            after = str(page[-1]["id"])

    def get(self, path: str, query: Row | None = None, *, optional: bool = False) -> Any:
        """Return what a path answers; None for 404 where that is allowed.

        Raises:
            SourceError: the server cannot be reached, or refuses all requests; ``RefusedRunError``: this one.
        """
        problem = ""
        for attempt in range(TRIES):
            self._wait(0.0)
            self.walk.answered = False
            try:
                response = self.client.get(path, params=query)
            except httpx2.HTTPError as error:
                problem = f"cannot be reached ({type(error).__name__})"
                self._wait(float(attempt))
                continue
            if response.status_code == httpx2.codes.NOT_FOUND and optional:
                return None
            if response.status_code in (429, 500, 502, 503, 504):
                problem = f"answered {response.status_code}"
                self.walk.answered = response.status_code == httpx2.codes.INTERNAL_SERVER_ERROR
                self._wait(_retry_after(response.headers.get("Retry-After"), attempt))
                continue
            self.walk.answered = True
            if response.status_code in (401, 403):
                raise SourceError(
                    f"{self.source.described} answered {response.status_code} to {path}: check"
                    " TRAJECTORY_LETTA_API_KEY."
                )
            if response.status_code != httpx2.codes.OK:
                raise RefusedRunError(_refusal(self.source, response.status_code, path))
            try:
                return response.json()
            except ValueError:
                raise SourceError(f"{self.source.described}{path} gave no JSON: is it a Letta server?") from None
        if self.walk.answered:
            raise RefusedRunError(_refusal(self.source, httpx2.codes.INTERNAL_SERVER_ERROR, path))
        raise SourceError(
            f"{self.source.described}{path} {problem}, {TRIES} times. What was read is kept, and the next reading goes"
            " on from there. Is the server running, and its address in TRAJECTORY_SOURCES right?"
        )

    def _wait(self, seconds: float) -> None:
        """Wait for the next request's turn, and as long as is asked for."""
        now = time.monotonic()
        turn = max(self.walk.next_at, now + seconds)
        self.walk.next_at = turn + 60 / self.source.requests_per_minute
        time.sleep(max(turn - now, 0.0))


def _refusal(source: LettaApiSource, status: int, path: str) -> str:
    return f"{source.described} answered {status} to {path}: see its log."


def _retry_after(header: str | None, attempt: int) -> float:
    try:
        return min(float(header or 2**attempt), LONGEST_WAIT_SECONDS)
    except ValueError:
        return float(2**attempt)


def _rows(api: _Api, row: Row, agents: dict[str, Row | None]) -> RunRows:
    run_id, agent_id = str(row["id"]), row.get("agent_id")
    agent = None
    if isinstance(agent_id, str):
        if agent_id not in agents:
            agents[agent_id] = api.get(f"/v1/agents/{agent_id}", optional=True)
        agent = agents[agent_id]
    steps = [_step(step) for step in api.pages(f"/v1/runs/{run_id}/steps")]
    messages = list(_messages(api.pages(f"/v1/runs/{run_id}/messages"), row))
    own = {step["id"] for step in steps}
    named = dict.fromkeys(message["step_id"] for message in messages if message["step_id"] not in (None, *own))
    others = (api.get(f"/v1/steps/{step_id}", optional=True) for step_id in named)
    project = row.get("project_id") or object_of(agent).get("project_id")
    return RunRows(
        run={
            **{name: row.get(name) for name in ("id", "status", "stop_reason", "background", "agent_id")},
            **{
                name: row.get(name)
                for name in ("conversation_id", "base_template_id", "callback_url", "callback_error")
            },
            **{name: whole(row.get(name)) for name in ("ttft_ns", "total_duration_ns", "callback_status_code")},
            "project_id": project,
            "metadata_": _json(row.get("metadata")),
            "request_config": _json(row.get("request_config")),
            "created_at": utc_time(row.get("created_at")),
            "completed_at": naive(utc_time(row.get("completed_at"))),
            "callback_sent_at": naive(utc_time(row.get("callback_sent_at"))),
        },
        steps=steps,
        foreign_steps=[{**_step(step), "run_id": step.get("run_id")} for step in others if step],
        messages=messages,
        agent=None if agent is None else {name: agent.get(name) for name in ("id", "name", "project_id", "system")},
        agent_tags=list(texts(object_of(agent).get("tags"))),
        system_prompt=agent.get("system") if agent and isinstance(agent.get("system"), str) else None,
    )


def _json(value: Any) -> str | None:
    return None if value is None else json_text(value)


def _step(step: Row) -> Row:
    status = step.get("status")
    return {
        **{name: step.get(name) for name in _STEP_COLUMNS},
        **{name: whole(step.get(name)) for name in _STEP_COUNTS},
        **{name: _json(step.get(name)) for name in _STEP_JSON},
        # The API writes in small letters what the database has in capitals.
        "status": status.upper() if isinstance(status, str) else None,
        "created_at": utc_time(step.get("created_at")),
    }


def _messages(found: Iterator[Row], run: Row) -> Iterator[Row]:
    """Yield one message for each id: the API gives reasoning, text and call of one row as messages of their own."""
    rows: dict[str, Row] = {}
    for message in found:
        kind = message.get("message_type")
        if not isinstance(kind, str):
            place = f"/v1/runs/{run['id']}/messages {message['id']}"
            rows[f"{message['id']} {len(rows)}"] = unreadable_message(place, "has no message_type", json_text(message))
            continue
        row = rows.get(str(message["id"]))
        if row is None:
            row = rows[str(message["id"])] = {
                "id": message["id"],
                "role": _ROLES.get(kind, kind),
                "step_id": message.get("step_id"),
                "otid": message.get("otid"),
                "name": message.get("name"),
                "sender_id": message.get("sender_id"),
                "agent_id": run.get("agent_id"),
                "conversation_id": message.get("conversation_id") or run.get("conversation_id"),
                "created_at": utc_time(message.get("date")),
                **{name: list[Row]() for name in ("content", "tool_calls", "tool_returns", "approvals")},
            }
        if _ROLES.get(kind) == "approval":
            row["role"] = "approval"
        _add(row, kind, message)
    for row in rows.values():
        if row["role"] is None:
            yield {**row, "step_id": None}
            continue
        calls, returns = row["tool_calls"], row["tool_returns"]
        first = calls[0]["id"] if calls else returns[0]["tool_call_id"] if returns else None
        lists = {name: json_text(row[name]) for name in ("content", "tool_calls", "tool_returns", "approvals")}
        yield {**row, **lists, "tool_call_id": first if isinstance(first, str) else None}


def _add(row: Row, kind: str, message: Row) -> None:
    content = message.get("content")
    if kind == "reasoning_message":
        row["content"].append(reasoning_part(message.get("reasoning") or "", message.get("signature")))
    elif kind == "hidden_reasoning_message":
        row["content"].append({"type": "redacted_reasoning", "data": message.get("hidden_reasoning")})
    elif isinstance(content, str):
        row["content"].append(text_part(content))
    elif isinstance(content, list):
        row["content"] += content
    elif kind == "summary_message":
        row["content"].append(text_part(str(message.get("summary") or "")))
    for call in _several(message, "tool_call", "tool_calls"):
        row["tool_calls"].append(tool_call(call.get("tool_call_id"), call.get("name"), call.get("arguments")))
    if kind == "tool_return_message":
        for returned in _several(message, None, "tool_returns") or [message]:
            said = returned.get("tool_return", returned.get("func_response"))
            row["tool_returns"].append(
                tool_return(
                    returned.get("tool_call_id"),
                    said if said is None or isinstance(said, str) else json_text(said),
                    returned.get("status"),
                    stdout=returned.get("stdout"),
                    stderr=returned.get("stderr"),
                )
            )
    if kind == "approval_response_message":
        row["approvals"] += _several(message, None, "approvals") or [
            {
                "type": "approval",
                "tool_call_id": message.get("approval_request_id"),
                "approve": message.get("approve"),
                "reason": message.get("reason"),
            }
        ]


def _several(message: Row, one: str | None, name: str) -> list[Row]:
    """Return the objects of a list, or the one that older releases give."""
    found = message.get(name)
    if isinstance(found, list) and found:
        return [item for item in found if isinstance(item, dict)]
    single = message.get(one) if one else None
    return [single] if isinstance(single, dict) else []
