"""When a call may be made: backoff, the pauses that a provider asks for, and limits that workers share."""

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_PAUSE_SECONDS = 60.0
"""A provider that asks for a longer pause is called again by a later materialization."""

RequestSlot = Callable[[int], Awaitable[float]]
"""Takes a slot under a shared limit, for a number of tokens; returns the seconds until it begins."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS_IN = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_EPOCH_SECONDS = 1e9
"""A larger number is a time since 1970, in seconds; one a thousand times as large, in milliseconds."""


class RequestPacer:
    """Holds back all calls of a session while the provider asks for a pause, and until their slot begins."""

    def __init__(self, request_slot: RequestSlot | None = None) -> None:
        self._request_slot = request_slot
        self._paused_until = 0.0

    async def wait(self, tokens: int) -> None:
        """Wait until a call of at most so many tokens may be made."""
        while True:
            while (remaining := self._paused_until - time.monotonic()) > 0:
                # Jitter: calls that resume at the same instant would be the next burst.
                await asyncio.sleep(remaining * random.uniform(1.0, 1.1))  # noqa: S311 - no secret
            if self._request_slot is None:
                return
            await asyncio.sleep(await self._request_slot(tokens))
            if self._paused_until <= time.monotonic():
                return

    def pause(self, seconds: float) -> None:
        """Let no call begin for some seconds; a longer pause that is in effect stays."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def apply_rate_headers(self, headers: Mapping[str, str] | None) -> None:
        """Pause where a response says that a limit is used up until it resets."""
        seconds = seconds_until_reset(headers or {})
        if seconds is not None and seconds <= MAX_PAUSE_SECONDS:
            self.pause(seconds)


def backoff_seconds(failures: int, first_seconds: float) -> float:
    """Return the seconds before the next try: doubled after each failure, less up to half of it at random."""
    return float(min(first_seconds * 2 ** (failures - 1), MAX_PAUSE_SECONDS) * random.uniform(0.5, 1.0))  # noqa: S311


def requested_wait(headers: Mapping[str, str] | None) -> float | None:
    """Return the seconds that a refusal asks to wait, by ``Retry-After`` or the rate headers; None if it does not.

    Servers write ``Retry-After`` in seconds or as a date, some ``retry-after-ms``.
    """
    headers = headers or {}
    milliseconds, text = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            seconds = float(milliseconds) / 1000
        elif text is None:
            return seconds_until_reset(headers)
        elif text.replace(".", "", 1).isdigit():
            seconds = float(text)
        else:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def seconds_until_reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until a used-up limit resets, by the ``x-ratelimit-…`` headers; None if none is used up."""
    waits = [
        _duration(headers.get(f"x-ratelimit-reset{kind}", ""))
        for kind in ("-requests", "-tokens", "")
        if headers.get(f"x-ratelimit-remaining{kind}") == "0"
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def _duration(text: str) -> float | None:
    """Read ``6m0s``, ``20ms``, ``1.5`` (seconds) or a time since 1970 in seconds or milliseconds."""
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _SECONDS_IN[unit] for number, unit in parts)
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or number < 0:
        return None
    if number > _EPOCH_SECONDS:
        return max(number / (1000 if number > _EPOCH_SECONDS * 1000 else 1) - time.time(), 0.0)
    return number
