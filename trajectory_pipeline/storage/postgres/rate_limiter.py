"""A limit of requests and tokens a minute that all workers share, as one row in the trajectory database.

Each call reserves a slot as long as one request may take at this many a minute, or as its tokens may. Slots follow one
another without a gap, so that no minute holds more requests than allowed, nor more tokens than allowed plus those of
one call. The clock is the database's, the same for all workers.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection

_TAKE = (
    "INSERT INTO trajectory.rate_limits AS r (base_url, model, next_at)"
    " VALUES (%(base_url)s, %(model)s, clock_timestamp() + %(takes)s * interval '1 second')"
    " ON CONFLICT (base_url, model) DO UPDATE"
    " SET next_at = greatest(r.next_at, clock_timestamp()) + %(takes)s * interval '1 second'"
    " RETURNING next_at - %(takes)s * interval '1 second' AS at,"
    " extract(epoch FROM next_at - clock_timestamp())::double precision - %(takes)s AS wait"
)


@dataclass(frozen=True)
class RateLimit:
    """What a provider allows for one model at one endpoint; None where there is no limit.

    ``base_url`` is without credentials. Tokens count prompt and answer together.
    """

    base_url: str
    model: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def seconds(self, tokens: int) -> float:
        """Return the seconds that a call of so many tokens takes of the limit."""
        by_requests = 60 / self.requests_per_minute if self.requests_per_minute else 0.0
        by_tokens = 60 * tokens / self.tokens_per_minute if self.tokens_per_minute else 0.0
        return max(by_requests, by_tokens)


@dataclass(frozen=True)
class RequestSlot:
    """When a call may be made, by the database's clock, and the seconds until then (0 where it is now)."""

    at: datetime
    wait_seconds: float


class SharedRateLimiter:
    """Reserves slots under a limit, on a connection of its own: waiting for one must not delay what is stored."""

    def __init__(self, connection: RetryingConnection, limit: RateLimit) -> None:
        self._connection = connection
        self._limit = limit
        self._free = asyncio.Lock()

    def take(self, tokens: int) -> RequestSlot:
        """Reserve the next free slot; one that is not used is lost."""
        limit = self._limit
        parameters = {"base_url": limit.base_url, "model": limit.model, "takes": limit.seconds(tokens)}
        (row,) = self._connection.rows("Taking a turn under the rate limit", _TAKE, parameters)
        return RequestSlot(row["at"], max(row["wait"], 0.0))

    async def __call__(self, tokens: int) -> float:
        """Reserve the next free slot for a call; returns the seconds until it comes."""
        async with self._free:
            slot = await asyncio.to_thread(self.take, tokens)
        return slot.wait_seconds


@contextmanager
def open_rate_limiter(database: TrajectoryDatabase, limit: RateLimit) -> Iterator[SharedRateLimiter | None]:
    """Open a connection for slots; None, and no connection, where there is no limit."""
    if limit.requests_per_minute is None and limit.tokens_per_minute is None:
        yield None
        return
    with database.retrying() as connection:
        yield SharedRateLimiter(connection, limit)
