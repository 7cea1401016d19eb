"""A collector's address and headers, as a person gives them."""

from urllib.parse import unquote, urlsplit

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.urls import without_credentials


def endpoint_url(text: str) -> str:
    """Return the URL of a collector, without a slash at its end.

    Raises:
        PipelineError: it is none.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise PipelineError(
            f"--endpoint {without_credentials(text)}: write it as http://host:4318, without /v1/traces."
        )
    if parts.username or parts.password:
        raise PipelineError("--endpoint holds a password: give it as a header, in OTEL_EXPORTER_OTLP_HEADERS.")
    return text.rstrip("/")


def headers_of(text: str) -> dict[str, str]:
    """Return headers from ``name=value,name=value``, values percent-encoded, as OpenTelemetry's variable holds them.

    Raises:
        PipelineError: a part has no name or no ``=``; the text holds no value.
    """
    headers = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, separator, value = part.partition("=")
        if not separator or not name.strip():
            raise PipelineError("OTEL_EXPORTER_OTLP_HEADERS must be name=value, with a comma between two.")
        headers[name.strip()] = unquote(value.strip())
    return headers
