"""Circuit breaker: while a provider is down, no call is made but one trial call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.errors import FATAL, PROVIDER_DOWN


@dataclass
class CallOutcome:
    """The record of a call that ended; None while it has not, or where it was not made."""

    call: CallRecord | None = None


class CircuitBreaker:
    """Counts consecutive failures over all calls of a session.

    It opens after ``opens_after`` of them, or after one that every other call would meet as well. Then it stays open. A
    later session starts half open: one trial call must succeed before others are made.
    """

    def __init__(self, opens_after: int, *, half_open: bool = False) -> None:
        self._opens_after = opens_after
        self._consecutive_failures = 0
        self._reason: str | None = None
        self._trial_lock = asyncio.Lock() if half_open else None

    @property
    def is_open(self) -> bool:
        """Whether no further call may be made."""
        return self._reason is not None

    def open(self, reason: str) -> None:
        """Let no further call through, for a reason such as ``the last 8 calls failed``; the first one stays."""
        self._reason = self._reason or reason

    @asynccontextmanager
    async def call(self) -> AsyncIterator[CallOutcome]:
        """Let a call through, and count how it ended.

        Raises:
            ProviderDownError: it is open; nothing may be sent.
        """
        outcome = CallOutcome()
        async with AsyncExitStack() as stack:
            if self._trial_lock is not None:
                await stack.enter_async_context(self._trial_lock)
            if self._trial_lock is None:
                # Another trial call succeeded meanwhile: from here on, calls run at the same time.
                await stack.aclose()
            self.refuse_if_open()
            yield outcome
            if outcome.call is not None:
                self._count(outcome.call)

    def refuse_if_open(self) -> None:
        """Raise ProviderDownError where no further call may be made; the text says why."""
        if self._reason is not None:
            raise ProviderDownError(
                f"The judge's provider is down, and nothing more is asked of it now ({self._reason})"
            )

    def _count(self, call: CallRecord) -> None:
        failure = f"{call.error_class}: {call.error_message}"
        if call.error_class in FATAL:
            self.open(failure)
        elif call.error_class in PROVIDER_DOWN:
            self._consecutive_failures += 1
            if self._trial_lock is not None:
                self.open(f"the call that tried it again failed too ({failure})")
            elif self._consecutive_failures >= self._opens_after:
                self.open(f"{self._consecutive_failures} calls in a row failed, the last by {failure}")
        else:
            self._consecutive_failures = 0
        if not self.is_open:
            self._trial_lock = None
