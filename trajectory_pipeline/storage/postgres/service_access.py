"""Reading for one client of the service: in a transaction that only reads, is short, and sees its tenants alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_role import AGENTS, ORGANIZATIONS, ROLE

# As one statement: each takes a round trip.
_READING = (
    "SELECT set_config('statement_timeout', %(timeout)s, true), set_config('transaction_read_only', 'on', true),"
    f" set_config('{ORGANIZATIONS}', %(organizations)s::text[]::text, true),"
    f" set_config('{AGENTS}', %(agents)s::text[]::text, true),"
    " CASE WHEN %(role)s <> 'none' THEN set_config('row_security', 'on', true) END,"
    " set_config('role', %(role)s, true)"
)


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
        """Begin a transaction that only reads; None sees all runs, and every other one reads under the service's role.

        Raises:
            QueryTimeoutError: a query took longer than ``timeout_seconds``.
            SinkError: the database cannot be reached or refuses.
        """
        with self.database.connect() as connection, translating_database_errors(self.database.url, "Reading"):
            parameters = {
                "timeout": f"{self.timeout_seconds * 1000:.0f}",
                "role": "none" if tenants is None else ROLE,
                "organizations": sorted(tenants.organizations) if tenants else [],
                "agents": sorted(tenants.agents) if tenants else [],
            }
            connection.execute(_READING, parameters)
            try:
                yield connection
            except psycopg.errors.QueryCanceled:
                raise QueryTimeoutError(
                    f"The query took longer than {self.timeout_seconds:g} seconds: ask for fewer rows, a shorter time"
                    " or one agent."
                ) from None
