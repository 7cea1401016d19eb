"""A receiver of OTLP over HTTP on a port of this machine, which keeps what it takes and answers as it is told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

Answer = tuple[int, dict[str, str], bytes]
OK: Answer = (200, {}, b"")


class Collector(ThreadingHTTPServer):
    """What it took, and what it answers next; without an answer to give it takes all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Any] = []
        self.records: list[Any] = []
        self.resources: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Answer] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, path: str, body: bytes) -> Answer:
        if path not in ("/v1/traces", "/v1/logs"):
            return (404, {}, b"")
        answer = self.answers.pop(0) if self.answers else OK
        if answer[0] == 200:
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.resources.append(resource.resource)
                    self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            else:
                for logs in ExportLogsServiceRequest.FromString(body).resource_logs:
                    self.records += [record for scope in logs.scope_logs for record in scope.log_records]
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        assert self.headers["Content-Type"] == "application/x-protobuf"
        status, headers, content = self.server.take(self.path, body)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Run a collector until the end of the block."""
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.shutdown()
        collector.server_close()
        thread.join()


def partial_success(path: str, number: int, message: str) -> Answer:
    """An answer that says that some were rejected."""
    if path == "traces":
        response: Any = ExportTraceServiceResponse()
        response.partial_success.rejected_spans = number
    else:
        response = ExportLogsServiceResponse()
        response.partial_success.rejected_log_records = number
    response.partial_success.error_message = message
    return (200, {"Content-Type": "application/x-protobuf"}, response.SerializeToString())


def attributes(record: Any) -> dict[str, Any]:
    """Attributes of a span, a log record or a resource as Python values."""
    return {pair.key: _value(pair.value) for pair in record.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)
