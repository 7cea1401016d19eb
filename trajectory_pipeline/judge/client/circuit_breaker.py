"""Circuit breaker: while a provider is down, no call is made but one trial call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.client.errors import FATAL, PROVIDER_DOWN


@dataclass
class CallOutcome:
    """How a call ended: its error class, or None for one that was answered."""

    recorded: bool = False
    error_class: str | None = None
    message: str | None = None

    def record(self, error_class: str | None, message: str | None) -> None:
        """Record how the call ended."""
        self.recorded, self.error_class, self.message = True, error_class, message


class CircuitBreaker:
    """Counts consecutive failures over all calls of a session.

    It opens after ``opens_after`` of them, or after one that every other call would meet as well. Then it stays open; a
    later session starts half open.
    """

    def __init__(self, opens_after: int, *, half_open: bool = False) -> None:
        """Make a breaker.

        Args:
            opens_after: failures in a row that open it.
            half_open: whether one call must succeed before others are made.
        """
        self._opens_after = opens_after
        self._consecutive_failures = 0
        self._reason: str | None = None
        self._trial_lock = asyncio.Lock() if half_open else None

    @property
    def is_open(self) -> bool:
        """Whether no further call may be made."""
        return self._reason is not None

    def open(self, reason: str) -> None:
        """Let no further call through; the first reason stays.

        Args:
            reason: a clause, such as ``the last 8 calls failed``.
        """
        self._reason = self._reason or reason

    @asynccontextmanager
    async def call(self) -> AsyncIterator[CallOutcome]:
        """Let a call through, and count how it ended.

        Raises:
            ProviderDownError: it is open; nothing may be sent.
        """
        trying = self._trial_lock
        if trying is None:
            self.refuse_if_open()
            outcome = CallOutcome()
            yield outcome
            self._count(outcome)
            return
        async with trying:
            self.refuse_if_open()
            if self._trial_lock is not None:
                outcome = CallOutcome()
                yield outcome
                self._count(outcome)
                if outcome.recorded and not self.is_open:
                    self._trial_lock = None
                return
        outcome = CallOutcome()
        yield outcome
        self._count(outcome)

    def refuse_if_open(self) -> None:
        """Raise ProviderDownError where no further call may be made; the text says why."""
        if self._reason is not None:
            raise ProviderDownError(
                f"The judge's provider is down, and nothing more is asked of it now ({self._reason})"
            )

    def _count(self, outcome: CallOutcome) -> None:
        if not outcome.recorded:
            return
        failure = f"{outcome.error_class}: {outcome.message}"
        if outcome.error_class in FATAL:
            self.open(failure)
        elif outcome.error_class in PROVIDER_DOWN:
            self._consecutive_failures += 1
            if self._trial_lock is not None:
                self.open(f"the call that tried it again failed too ({failure})")
            elif self._consecutive_failures >= self._opens_after:
                self.open(f"{self._consecutive_failures} calls in a row failed, the last by {failure}")
        else:
            self._consecutive_failures = 0
