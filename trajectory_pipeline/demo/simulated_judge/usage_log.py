"""The server's own log of calls, tokens and cost, to check a client's accounting against.

``received`` equals the sum of ``by_status`` and ``in_flight``, and ``cost_usd`` is exact. Memory is bounded:
totals, and a ring of the last calls.
"""

import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice

from trajectory_pipeline.demo.simulated_judge.prices import SIMULATED_PRICES, base_model, decimal_text

MAX_CALLS = 10_000

DROPPED = "dropped"
"""Stands for an HTTP status where the connection was closed before any was sent."""
ABANDONED = "abandoned"
"""Stands for an HTTP status where the client left before the answer was ready, and nothing was charged."""


@dataclass(slots=True)
class CallRecord:
    """One call: what it asked for, how it ended, what it cost."""

    id: str
    model: str | None
    started_at: str
    client_request_id: str | None
    status: str = ""
    answered: bool = False
    fault: str | None = None
    stream: bool = False
    batch: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: str = "0"
    seconds: float = 0.0


class UsageLog:
    """Counts and sums since the start or the last reset."""

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        self._calls: deque[CallRecord] = deque(maxlen=max_calls)
        self._received = 0
        self._ended = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything but the calls that are still open, which stay counted as received."""
        self._calls.clear()
        self._received = self._received - self._ended
        self._ended = 0
        self._answered = 0
        self._by_status: Counter[str] = Counter()
        self._by_fault: Counter[str] = Counter()
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._cost = Decimal(0)
        self._since = datetime.now(UTC).isoformat()

    def open(self, record_id: str, client_request_id: str | None) -> "OpenCall":
        """Count a call as received; the call that is given back must be closed once."""
        self._received += 1
        record = CallRecord(record_id, None, datetime.now(UTC).isoformat(), client_request_id)
        return OpenCall(self, record)

    def close(self, record: CallRecord, cost: Decimal) -> None:
        """Enter a call that has ended."""
        self._ended += 1
        self._answered += record.answered
        self._by_status[record.status] += 1
        if record.fault is not None:
            self._by_fault[record.fault] += 1
        self._prompt_tokens += record.prompt_tokens
        self._cached_tokens += record.cached_tokens
        self._completion_tokens += record.completion_tokens
        self._cost += cost
        self._calls.append(record)

    def as_json(self, last: int = 100) -> dict[str, object]:
        """Return counts, sums and the last calls, newest last."""
        first = max(len(self._calls) - max(last, 0), 0)
        return {
            "since": self._since,
            "received": self._received,
            "in_flight": self._received - self._ended,
            "answered": self._answered,
            "by_status": dict(sorted(self._by_status.items())),
            "by_fault": dict(sorted(self._by_fault.items())),
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "cost_usd": decimal_text(self._cost),
            "simulated": True,
            "calls": [asdict(record) for record in islice(self._calls, first, None)],
        }


class OpenCall:
    """A call that is being answered; what becomes known of it is noted here until it is closed."""

    def __init__(self, usage_log: UsageLog, record: CallRecord) -> None:
        self._usage_log, self.record = usage_log, record
        self._began = time.perf_counter()
        self._closed = False

    def charge(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """Note that the work was done, and what it costs at the listed price."""
        self.record.prompt_tokens = prompt_tokens
        self.record.cached_tokens = cached_tokens
        self.record.completion_tokens = completion_tokens

    def close(self, status: int | str, *, answered: bool) -> None:
        """Enter the call in the usage_log; ``answered`` says whether an answer was worked out, whoever read it."""
        if self._closed:
            return
        self._closed = True
        record = self.record
        record.status = str(status)
        record.answered = answered
        record.seconds = round(time.perf_counter() - self._began, 6)
        price = SIMULATED_PRICES.get(base_model(record.model or ""))
        tokens = (record.prompt_tokens, record.cached_tokens, record.completion_tokens)
        cost = price.cost(*tokens) * (price.batch if record.batch else 1) if price is not None else Decimal(0)
        record.cost_usd = decimal_text(cost)
        self._usage_log.close(record, cost)
