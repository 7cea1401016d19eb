"""Reading for one client of the service: in a transaction that only reads, is short, and sees its tenants alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase


class QueryTimeoutError(SinkError):
    """A query took longer than a client of the service may ask for."""


@dataclass(frozen=True)
class Tenants:
    """Whose runs a client sees: those of these organizations, and those of these agents."""

    organizations: frozenset[str]
    agents: frozenset[str]


@dataclass(frozen=True)
class ServiceDatabase:
    """The trajectory database as the service reads it."""

    database: TrajectoryDatabase
    timeout_seconds: float

    @contextmanager
    def reading(self, tenants: Tenants | None) -> Iterator[psycopg.Connection]:
        """Begin a transaction that only reads; None sees all runs.

        Raises:
            QueryTimeoutError: a query took longer than ``timeout_seconds``.
            SinkError: the database cannot be reached or refuses.
        """
        if tenants is not None:
            raise NotImplementedError
        with self.database.connect() as connection, translating_database_errors(self.database.url, "Reading"):
            connection.execute(
                "SELECT set_config('statement_timeout', %s, true), set_config('transaction_read_only', 'on', true)",
                [f"{self.timeout_seconds * 1000:.0f}"],
            )
            try:
                yield connection
            except psycopg.errors.QueryCanceled:
                raise QueryTimeoutError(
                    f"The query took longer than {self.timeout_seconds:g} seconds: ask for fewer rows, a shorter time"
                    " or one agent."
                ) from None
