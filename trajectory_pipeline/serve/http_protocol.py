"""HTTP as uvicorn speaks it, with a problem as the answer to what is no HTTP."""

import secrets

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from trajectory_pipeline.serve.problems import MEDIA_TYPE, problem_body

MOST_HEADER_BYTES = 65_536
"""Of a request's first line and headers together."""


class ProblemProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """uvicorn's protocol; no app sees a request that cannot be read, or whose headers are too long.

    h11 has such a limit itself. httptools has none, and takes the longer for a header the longer it is.
    """

    _head: int | None = None
    """Bytes of the request that is being read; None after its headers."""
    _is_too_long = False

    def on_message_begin(self) -> None:
        """Take note that a request begins."""
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Take note that its headers end.

        Raises:
            ValueError: they are too long; the parser ends with that.
        """
        self._head = None
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEADER_BYTES:
            self._is_too_long = True
            raise ValueError("the headers are too long")
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Read some of a request."""
        super().data_received(data)
        if self._head is not None and not self._is_too_long:
            self._head += len(data)
            if self._head > MOST_HEADER_BYTES:
                self._is_too_long = True
                self.send_400_response("")

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what is no HTTP request, and close the connection."""
        request_id = secrets.token_hex(8)
        status, line = (431, "Request Header Fields Too Large") if self._is_too_long else (400, "Bad Request")
        text = "This is no HTTP request that can be read: check its lines and headers."
        if self._is_too_long:
            text = f"The headers have more than {MOST_HEADER_BYTES:,} bytes: shorten them."
        body = problem_body(status, text, request_id)
        head = (
            f"HTTP/1.1 {status} {line}",
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        )
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()


def server_config(app: ASGIApp, host: str, port: int) -> uvicorn.Config:
    """Return how the service is run: it logs its requests itself, and a request for a websocket is as any other."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=ProblemProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
    )
