"""Circuit breaker: no call is made while a provider is down, refuses every call, or gives no usable answer."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.judge.client.call_record import UNUSABLE_RESPONSES, CallRecord
from trajectory_pipeline.judge.client.errors import FATAL, PER_PROMPT, PROVIDER_DOWN
from trajectory_pipeline.schema.enums import AttemptResult, ErrorClass

_SAME_REFUSALS = 5
"""Questions in a row that end with the same refusal; every other would."""
_PATIENCE = 4
"""So many times more failures are awaited where they may be due to what was asked, and not to the provider."""


@dataclass
class CallOutcome:
    """The record of a call that ended; None while it has not, or where it was not made."""

    call: CallRecord | None = None


class CircuitBreaker:
    """Counts consecutive failures over all calls of a session.

    It opens after ``opens_after`` of them, or after one that every other call would meet as well. It also opens after
    questions in a row that end with the same refusal, at the rate limit, or without a usable answer. Then it stays
    open. A later session starts half open: one trial call must succeed before others are made.
    """

    def __init__(self, opens_after: int, *, half_open: bool = False, owner: str = "judge") -> None:
        self._opens_after = opens_after
        self._owner = owner
        self._consecutive_failures = 0
        self._reason: str | None = None
        self._trial_lock = asyncio.Lock() if half_open else None
        self._was_usable = False
        self._unusable = 0
        self._refusal: tuple[int | None, str] | None = None
        self._same_refusals = 0
        self._rate_limited = 0

    @property
    def is_open(self) -> bool:
        """Whether no further call may be made."""
        return self._reason is not None

    def open(self, reason: str, state: str = "The {owner}'s provider is down") -> None:
        """Let no further call through, for a reason such as ``the last 8 calls failed``; the first one stays."""
        self._reason = (
            self._reason or f"{state.format(owner=self._owner)}, and nothing more is asked of it now ({reason})"
        )

    def count_question(self, last: CallRecord) -> None:
        """Count how a question ended, by its last call."""
        if last.error_class is None:
            self._was_usable, self._unusable, self._same_refusals, self._rate_limited = True, 0, 0, 0
            return
        failure = f"{last.error_class}: {last.error_message}"
        patient = self._opens_after * (_PATIENCE if self._was_usable else 1)
        if last.error_class in UNUSABLE_RESPONSES or last.error_class is ErrorClass.NO_ANSWER:
            self._unusable += 1
            if self._unusable >= patient:
                reason = f"{self._unusable} questions in a row have no usable answer, the last by {failure}"
                self.open(reason, "The {owner} gives no usable answer")
        elif last.error_class is ErrorClass.RATE_LIMITED:
            # Each of them waited and asked again until its attempts were used up: the limit does not pass.
            self._rate_limited += 1
            if self._rate_limited >= patient:
                reason = f"{self._rate_limited} questions in a row met its rate limit at each attempt: {failure}"
                self.open(reason, "The {owner}'s provider lets no call through")
        elif last.error_class in PER_PROMPT or (
            last.result is AttemptResult.ERROR and last.error_class not in PROVIDER_DOWN
        ):
            # Ids and numbers differ where the words are the same.
            refusal = (last.http_status, re.sub(r"\S*\d\S*", "#", last.error_message or ""))
            self._same_refusals = self._same_refusals + 1 if refusal == self._refusal else 1
            self._refusal = refusal
            few = min(_SAME_REFUSALS, self._opens_after)
            if self._same_refusals >= few * (_PATIENCE if last.error_class in PER_PROMPT else 1):
                reason = f"{self._same_refusals} questions in a row were refused with the same words: {failure}"
                self.open(reason, "The {owner}'s provider refuses every call")

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
            raise ProviderDownError(self._reason)

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
