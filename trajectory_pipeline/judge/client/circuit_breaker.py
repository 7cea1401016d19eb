"""A circuit breaker: when a provider is down, nothing more is asked of it, but for one call that tries.

Belongs here: open, closed, half open, and who may call. Does not belong here: what counts as down (``failures``).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.client.errors import FATAL, PROVIDER_DOWN


@dataclass
class CallOutcome:
    """What the caller notes of its call: an error class, or None for one that was answered."""

    recorded: bool = False
    error_class: str | None = None
    words: str | None = None

    def record(self, error_class: str | None, words: str | None) -> None:
        """Note how the call ended."""
        self.recorded, self.error_class, self.words = True, error_class, words


class CircuitBreaker:
    """Counts failures in a row over all calls of a session.

    It opens after ``opens_after`` of them, or after one that any other call would meet as well, and then stays open:
    a later session begins half open.
    """

    def __init__(self, opens_after: int, *, half_open: bool = False) -> None:
        """Make a breaker.

        Args:
            opens_after: failures in a row that open it.
            half_open: whether one call must succeed before others are made.
        """
        self._opens_after = opens_after
        self._in_a_row = 0
        self._reason: str | None = None
        self._trying = asyncio.Lock() if half_open else None

    @property
    def is_open(self) -> bool:
        """Whether nothing more may be asked."""
        return self._reason is not None

    def open(self, reason: str) -> None:
        """Let no further call through; the first reason stays.

        Args:
            reason: a clause, such as ``the last 8 calls failed``.
        """
        self._reason = self._reason or reason

    @asynccontextmanager
    async def call(self) -> AsyncIterator[CallOutcome]:
        """Let a call through, and learn from what is noted of it.

        Raises:
            ProviderDownError: it is open; nothing may be sent.
        """
        trying = self._trying
        if trying is None:
            self.refuse_if_open()
            outcome = CallOutcome()
            yield outcome
            self._learn(outcome)
            return
        async with trying:
            self.refuse_if_open()
            if self._trying is not None:
                outcome = CallOutcome()
                yield outcome
                self._learn(outcome)
                if outcome.recorded and not self.is_open:
                    self._trying = None
                return
        outcome = CallOutcome()
        yield outcome
        self._learn(outcome)

    def refuse_if_open(self) -> None:
        """Raise ProviderDownError where nothing more may be asked; the text says why."""
        if self._reason is not None:
            raise ProviderDownError(
                f"The judge's provider is down, and nothing more is asked of it now ({self._reason})"
            )

    def _learn(self, outcome: CallOutcome) -> None:
        if not outcome.recorded:
            return
        words = f"{outcome.error_class}: {outcome.words}"
        if outcome.error_class in FATAL:
            self.open(words)
        elif outcome.error_class in PROVIDER_DOWN:
            self._in_a_row += 1
            if self._trying is not None:
                self.open(f"the call that tried it again failed too ({words})")
            elif self._in_a_row >= self._opens_after:
                self.open(f"{self._in_a_row} calls in a row failed, the last by {words}")
        else:
            self._in_a_row = 0
