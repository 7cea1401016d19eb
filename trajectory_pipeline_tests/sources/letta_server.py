"""A small server that answers as Letta 0.16.8 was seen to answer, with its oddities of paging and messages."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Row = dict[str, Any]


@dataclass
class LettaServer:
    """What the server holds, and how it misbehaves.

    Attributes:
        runs: rows of runs by id; the list is ordered by ``created_at``.
        inverted: whether ``after`` gives what lies before, as in 0.16.8.
        circles: whether every page is the first one, whatever is asked for.
        failures: answers to give before the next good one: status codes.
        broken_off: how many answers to end in their middle before the next good one.
        instead: what answers in place of ``answer``, which it may call.
        requests: path and query of each request.
    """

    runs: dict[str, Row] = field(default_factory=dict)
    messages: dict[str, list[Row]] = field(default_factory=dict)
    steps: dict[str, list[Row]] = field(default_factory=dict)
    agents: dict[str, Row] = field(default_factory=dict)
    inverted: bool = True
    circles: bool = False
    failures: list[int] = field(default_factory=list)
    broken_off: int = 0
    instead: Callable[[str, dict[str, str]], tuple[int, Any]] | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if parts == ["v1", "runs"]:
            return 200, self._page_of_runs(query)
        if parts[:2] == ["v1", "runs"] and parts[3:] == ["messages"]:
            return 200, self._below(self.messages.get(parts[2], []), query)
        if parts[:2] == ["v1", "runs"] and parts[3:] == ["steps"]:
            return 200, self._below(self.steps.get(parts[2], []), query)
        if parts[:2] == ["v1", "agents"] and parts[2] in self.agents:
            return 200, self.agents[parts[2]]
        if parts[:2] == ["v1", "steps"]:
            every = (step for steps in self.steps.values() for step in steps)
            found = next((step for step in every if step["id"] == parts[2]), None)
            return (200, found) if found else (404, {"detail": "not found"})
        return 404, {"detail": "not found"}

    def _page_of_runs(self, query: dict[str, str]) -> list[Row]:
        ordered = sorted(self.runs.values(), key=lambda row: (row["created_at"], row["id"]))
        if query.get("order", "desc") == "desc":
            ordered.reverse()
        ids = [row["id"] for row in ordered]
        after, before = query.get("after"), query.get("before")
        if self.inverted:
            after, before = before, after
        if self.circles:
            after = before = None
        if after in ids:
            ordered = ordered[ids.index(after) + 1 :]
        elif before in ids:
            ordered = ordered[: ids.index(before)]
        return ordered[: int(query.get("limit", 100))]

    def _below(self, rows: list[Row], query: dict[str, str]) -> list[Row]:
        """A page counts rows of the database: one of messages becomes several of its id."""
        ids = list(dict.fromkeys(row["id"] for row in rows))
        start = ids.index(query["after"]) + 1 if query.get("after") in ids else 0
        page = set(ids[start : start + int(query.get("limit", 100))])
        return [row for row in rows if row["id"] in page]


@contextmanager
def serving(server: LettaServer) -> Iterator[LettaServer]:
    """Serve until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            server.requests.append((url.path, query))
            server.keys.add(self.headers.get("Authorization"))
            answer = server.instead or server.answer
            status, body = (server.failures.pop(0), {}) if server.failures else answer(url.path, query)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            if server.broken_off:
                server.broken_off -= 1
                content = content[: len(content) // 2]
                self.close_connection = True
            self.wfile.write(content)

    http = ThreadingHTTPServer(("127.0.0.1", server.port), Handler)
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
