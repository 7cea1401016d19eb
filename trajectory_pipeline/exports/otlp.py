"""Sends spans and events to an OpenTelemetry collector over OTLP/HTTP (protobuf), a run at a time."""

import base64
import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.otel import Telemetry, request_of
from trajectory_pipeline.urls import without_credentials

_RETRIED = (429, 502, 503, 504)
"""Answers after which OTLP says to try again; any other is final."""
_IDS = ("traceId", "spanId", "parentSpanId")
_TRIES = 6
_LONGEST_WAIT = 60.0
_TIMEOUT = 30.0


class OtlpSender:
    """Sends each run's spans, then its events; one that the collector did not take whole counts as not exported."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._endpoint = endpoint
        self._client = httpx2.Client(timeout=_TIMEOUT, headers={**headers, "Content-Type": "application/x-protobuf"})
        self._sleep = sleep
        self._taken = 0

    def write(self, encoded: Telemetry, split: str) -> str | None:
        """Send a run.

        Returns:
            What the collector rejected, in words; None where it took all.

        Raises:
            PipelineError: it does not answer, or refuses.
        """
        rejected = self._send("v1/traces", "spans", encoded.spans, split)
        if rejected is None and encoded.events:
            rejected = self._send("v1/logs", "events", encoded.events, split)
        self._taken += rejected is None
        return rejected

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def _send(self, path: str, name: str, records: list[Any], split: str) -> str | None:
        request, response = (
            (ExportTraceServiceRequest(), ExportTraceServiceResponse())
            if name == "spans"
            else (ExportLogsServiceRequest(), ExportLogsServiceResponse())
        )
        ParseDict(request_of(name, [_with_binary_ids(record) for record in records], split), request)
        answer = self._post(f"{self._endpoint}/{path}", request.SerializeToString())
        try:
            response.ParseFromString(answer.content)
        except DecodeError:
            shown = without_credentials(self._endpoint)
            problem = f"{shown}/{path} answers what is no answer of OTLP: is it a collector's HTTP port?"
            raise self._failure(problem) from None
        partial = response.partial_success
        number = partial.rejected_spans if name == "spans" else partial.rejected_log_records
        return f"the collector rejected {name}: {partial.error_message or 'it does not say why'}" if number else None

    def _post(self, url: str, body: bytes) -> httpx2.Response:
        for number in range(1, _TRIES + 1):
            problem, wait = "", min(_LONGEST_WAIT, 2.0**number * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            try:
                answer = self._client.post(url, content=body)
            except httpx2.TransportError as error:
                problem = f"does not answer ({error or type(error).__name__})"
            else:
                if answer.status_code == httpx2.codes.OK:
                    return answer
                problem = f"answers {answer.status_code}{_reason(answer)}"
                if answer.status_code not in _RETRIED:
                    hint = _hint(url, answer.status_code)
                    raise self._failure(f"{without_credentials(url)} {problem}.{hint}")
                wait = _retry_after(answer, wait)
            if number < _TRIES:
                self._sleep(wait)
        raise self._failure(f"{without_credentials(url)} {problem}, {_TRIES} times.")

    def _failure(self, text: str) -> PipelineError:
        sent = ""
        if self._taken:
            sent = f" It has taken {self._taken} runs before: sent again, they are the same spans."
        return PipelineError(f"{text} Nothing is noted as exported.{sent}")


def _with_binary_ids(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with ids as protobuf's JSON reads bytes: base64."""
    ids = {name: base64.b64encode(bytes.fromhex(record[name])).decode() for name in _IDS if name in record}
    links = {"links": [_with_binary_ids(link) for link in record["links"]]} if "links" in record else {}
    return {**record, **ids, **links}


def _reason(answer: httpx2.Response) -> str:
    """Return what a refusal says: a status message of protobuf holds it as text, too."""
    text = "".join(char for char in answer.content[:300].decode(errors="ignore") if char.isprintable()).strip()
    return f" ({text})" if text else ""


def _hint(url: str, status: int) -> str:
    if status in (401, 403):
        return " Set OTEL_EXPORTER_OTLP_HEADERS, such as authorization=Bearer%20TOKEN."
    if status in (404, 405) and url.endswith("/v1/logs"):
        return " Does the collector take logs? Evaluations are such; with --openinference they are attributes of spans."
    if status in (404, 405):
        return " Is it the collector's HTTP port (4318), and does it take traces?"
    if status == 413:
        return " Raise the collector's limit on the size of a request (max_request_body_size)."
    return ""


def _retry_after(answer: httpx2.Response, otherwise: float) -> float:
    text = answer.headers.get("Retry-After", "")
    try:
        seconds = float(text) if text else otherwise
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return otherwise
    return min(max(seconds, 0.0), _LONGEST_WAIT)
