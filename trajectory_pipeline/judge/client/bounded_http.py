"""An HTTP client that reads no more of a response than a limit, whatever its length, also after decompression."""

from typing import Any

import httpx2
from openai import DefaultAioHttpClient

_MAX_ERROR_BYTES = 64 * 1024
_BYTES_PER_TOKEN = 1000
"""A token of an answer, with its frame where the answer comes as an event stream."""
_MIN_BYTES = 2**20


def max_response_bytes(max_response_tokens: int) -> int:
    """Return the size beyond which a response is no answer of so many tokens."""
    return _MIN_BYTES + _BYTES_PER_TOKEN * max_response_tokens


class BoundedHttpClient(DefaultAioHttpClient):
    """Cuts a response off at the limit, and closes the connection; ``is_cut_off`` tells which are."""

    def __init__(self, max_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        self._max_bytes = max_bytes

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and read its response, decompressed piece by piece; a stream is left to the caller."""
        if options.get("stream"):
            return await super().send(request, **options)
        response = await super().send(request, **{**options, "stream": True})
        most = self._max_bytes if response.is_success else _MAX_ERROR_BYTES
        body = bytearray()
        try:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > most:
                    break
        finally:
            await response.aclose()
        headers = [pair for pair in response.headers.raw if pair[0].lower() not in _OF_THE_WIRE]
        read = httpx2.Response(response.status_code, headers=headers, content=bytes(body[:most]), request=request)
        read.extensions["cut_off"] = len(body) > most
        return read


_OF_THE_WIRE = (b"content-encoding", b"content-length", b"transfer-encoding")


def is_cut_off(response: httpx2.Response) -> bool:
    """Whether there was more of a response than its limit."""
    return bool(response.extensions.get("cut_off"))
