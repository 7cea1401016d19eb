"""A limit of requests and tokens a minute that all workers share, kept as one row in the trajectory database.

Each call takes a time of its own: as long as one request may take at this many a minute, or as its tokens may. The
turns follow one another without a gap, so that no minute holds more requests than allowed, nor more tokens than
allowed and those of one call. The clock is the database's, for all workers the same.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from trajectory_pipeline.schema.bookkeeping import RATE_LIMITS
from trajectory_pipeline.schema.types import SCHEMA_NAME
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection

_TABLE = sql.Identifier(SCHEMA_NAME, RATE_LIMITS.name)
_TAKE = sql.SQL(
    "INSERT INTO {table} AS r (base_url, model, next_at)"
    " VALUES (%(base_url)s, %(model)s, clock_timestamp() + %(takes)s * interval '1 second')"
    " ON CONFLICT (base_url, model) DO UPDATE"
    " SET next_at = greatest(r.next_at, clock_timestamp()) + %(takes)s * interval '1 second'"
    " RETURNING next_at - %(takes)s * interval '1 second' AS at,"
    " extract(epoch FROM next_at - clock_timestamp())::double precision - %(takes)s AS wait"
).format(table=_TABLE)


@dataclass(frozen=True)
class RateLimit:
    """What a provider allows for one model at one endpoint.

    Attributes:
        base_url: of the endpoint, without credentials.
        model: as the provider names it.
        requests_per_minute: None where there is no limit.
        tokens_per_minute: prompt and answer together; None where there is no limit.
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
    """When a call may be made.

    Attributes:
        at: by the database's clock, UTC.
        wait_seconds: until then, 0 where it is now.
    """

    at: datetime
    wait_seconds: float


class SharedRateLimiter:
    """Takes turns under a limit, on a connection of its own: waiting for one must not hold up what is stored."""

    def __init__(self, connection: RetryingConnection, limit: RateLimit) -> None:
        self._connection = connection
        self._limit = limit
        self._free = asyncio.Lock()

    def take(self, tokens: int) -> RequestSlot:
        """Take the next free turn; one that is not used is lost.

        Raises:
            SinkError: the database cannot be reached.
        """
        (row,) = self._connection.rows(
            "Taking a turn under the rate limit",
            _TAKE,
            {
                "base_url": self._limit.base_url,
                "model": self._limit.model,
                "takes": self._limit.seconds(tokens),
            },
        )
        return RequestSlot(row["at"], max(row["wait"], 0.0))

    async def __call__(self, tokens: int) -> float:
        """Take the next free turn for a call; returns the seconds until it comes."""
        async with self._free:
            turn = await asyncio.to_thread(self.take, tokens)
        return turn.wait_seconds


@contextmanager
def open_rate_limiter(database: TrajectoryDatabase, limit: RateLimit) -> Iterator[SharedRateLimiter | None]:
    """Open a connection for turns; None, and no connection, where there is no limit.

    Raises:
        SinkError: the database cannot be reached, or is not migrated.
    """
    if limit.requests_per_minute is None and limit.tokens_per_minute is None:
        yield None
        return
    with database.connect(autocommit=True) as connection:
        lasting = RetryingConnection(database.url, connection)
        try:
            yield SharedRateLimiter(lasting, limit)
        finally:
            lasting.close()
