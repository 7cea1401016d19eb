"""An HTTP proxy before a server of objects: it counts requests, and answers some of them itself or cuts them off."""

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str

    @property
    def is_listing(self) -> bool:
        return "list-type=" in self.path


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HalfSent:
    """The server gets half of the body; then ``then`` is called, and both connections end."""

    then: Callable[[], object] = lambda: None


Fault = Callable[[Request], Reply | HalfSent | None]


def s3_error(status: int, code: str, message: str) -> Reply:
    """Return an error as S3 words it."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, body.encode(), {"Content-Type": "application/xml"})


class Proxy:
    """Passes requests on; ``fault`` is asked about each before.

    Attributes:
        requests: all that came.
        seen: is given each request with the server's answer, and may return another one.
    """

    def __init__(self, url: str) -> None:
        self.requests: list[Request] = []
        self.fault: Fault = lambda request: None
        self.seen: Callable[[Request, Reply], Reply] = lambda request, reply: reply
        server = urlsplit(url)

        class Handler(_Handler):
            proxy = self
            netloc = server.netloc

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._listener.server_port}{server.path}"

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[Proxy]
    netloc: ClassVar[str]

    def handle_one_request(self) -> None:
        with suppress(OSError):
            super().handle_one_request()
            return
        self.close_connection = True

    def _pass_on(self) -> None:
        request = Request(self.command, self.path)
        body = self._body()
        self.proxy.requests.append(request)
        reply = self.proxy.fault(request)
        if isinstance(reply, HalfSent):
            self._send_half(body, reply)
            return
        if reply is None:
            reply = self.proxy.seen(request, self._ask(body))
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            if self.command == "HEAD" or name.lower() != "content-length":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _pass_on

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _connect(self, length: int) -> http.client.HTTPConnection:
        server = http.client.HTTPConnection(self.netloc, timeout=120)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in {*_HOP_BY_HOP, "content-length", "expect"}:
                server.putheader(name, value)
        if length or self.command in ("PUT", "POST"):
            server.putheader("Content-Length", str(length))
        server.endheaders()
        return server

    def _ask(self, body: bytes) -> Reply:
        server = self._connect(len(body))
        if body:
            server.send(body)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
        return Reply(answer.status, content, headers)

    def _send_half(self, body: bytes, half: HalfSent) -> None:
        server = self._connect(len(body))
        server.send(body[: len(body) // 2])
        half.then()
        server.close()
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass
