"""When a call may be made: backoff, the pauses that a provider asks for, and limits that workers share."""

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from trajectory_pipeline.judge.client.json_leaves import Leaf

MAX_PAUSE_SECONDS = 60.0
"""A provider that asks for a longer pause is called again by a later materialization."""

RequestSlot = Callable[[int], Awaitable[float]]
"""Takes a slot under a shared limit, for a number of tokens; returns the seconds until it begins."""

_UNIT = r"milliseconds?|msecs?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h"
_DURATION = re.compile(rf"(\d+(?:\.\d+)?)\s*({_UNIT})(?![a-z])")
_WAIT_WORDS = re.compile(
    rf"(?:try again|retry(?:ing)?|wait|back ?off|available again|resets?)[^\d;]{{0,40}}?"
    rf"(?P<duration>(?:\d+(?:\.\d+)?\s*(?:{_UNIT})(?![a-z])[\s,]*(?:and )?)+)"
)
_RETRY_FIELD = re.compile(r"retry-?(delay|in|after)(-?(seconds|secs|s))?")
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


def requested_wait(headers: Mapping[str, str] | None, words: str = "", fields: Iterable[Leaf] = ()) -> float | None:
    """Return the seconds that a refusal asks to wait; None if it does not.

    They are in ``Retry-After`` (seconds or a date) or ``retry-after-ms``, else in a field of the body such as Google's
    ``retryDelay``, else in its words ("try again in 7.66s"), else in the rate headers, which some repeat in the body.
    """
    headers = headers or {}
    in_body = {name.lower().replace("_", "-"): str(value) for name, value in fields}
    waits = (
        _retry_after(headers),
        _retry_after(in_body),
        next((_duration(in_body[name]) for name in in_body if _RETRY_FIELD.fullmatch(name)), None),
        _duration_in(words),
        seconds_until_reset(headers),
        seconds_until_reset(in_body),
    )
    return next((wait for wait in waits if wait is not None), None)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    milliseconds = (headers.get(name) for name in ("retry-after-ms", "x-ms-retry-after-ms"))
    waits = [_number(text) / 1000 for text in milliseconds if text]
    # Where a proxy has set the header as well, it holds both.
    text = headers.get("retry-after", "")
    parts = text.split(",") if re.match(r"\s*[0-9.]+\s*,", text) else [text]
    waits += [wait for part in parts if (wait := _duration(part)) is not None]
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        pass
    else:
        waits.append(((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
    return next((max(wait, 0.0) for wait in waits if math.isfinite(wait)), None)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def seconds_until_reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until a used-up limit resets, by the ``…ratelimit-…`` headers; None if none is used up."""
    waits = [
        _duration(headers.get(name.replace("remaining", "reset"), ""))
        for name, value in headers.items()
        if re.search("rate-?limit", name) and "remaining" in name and value in ("0", "0.0")
    ]
    # The standard's own header, in its older and its newer form.
    waits += [
        _duration(reset[1])
        for name in ("ratelimit", "x-ratelimit")
        if re.search(r"\b(?:r|remaining)=0(?!\d)", headers.get(name, ""))
        and (reset := re.search(r"\b(?:t|reset)=(\d{1,12})", headers[name]))
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def _duration(text: str) -> float | None:
    """Read ``6m0s``, ``20ms``, ``1.5`` (seconds), a time since 1970 in seconds or milliseconds, or a timestamp."""
    text = text.strip().lower()
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == "".join(text.split()):
        return _sum_of(parts)
    try:
        number = float(text)
    except ValueError:
        return _until(text)
    if not math.isfinite(number) or number < 0:
        return None
    if number > _EPOCH_SECONDS:
        return max(number / (1000 if number > _EPOCH_SECONDS * 1000 else 1) - time.time(), 0.0)
    return number


def _duration_in(words: str) -> float | None:
    found = _WAIT_WORDS.search(words.lower())
    return _sum_of(_DURATION.findall(found["duration"])) if found else None


def _sum_of(parts: Iterable[tuple[str, str]]) -> float:
    return sum(float(number) * _seconds_in(unit) for number, unit in parts)


def _seconds_in(unit: str) -> float:
    if unit.startswith(("ms", "mil")):
        return 0.001
    return {"s": 1.0, "m": 60.0, "h": 3600.0}[unit[0]]


def _until(timestamp: str) -> float | None:
    try:
        moment = datetime.fromisoformat(timestamp.upper())
    except ValueError:
        return None
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0) if moment.tzinfo else None
