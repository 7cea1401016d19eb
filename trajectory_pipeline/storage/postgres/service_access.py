"""Reading for one client of the service: in a transaction that only reads, is short, and sees its tenants alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_role import AGENTS, ORGANIZATIONS, ROLE

_READING = "SELECT set_config('statement_timeout', %(timeout)s, true), set_config('transaction_read_only', 'on', true)"
_AS_TENANTS = (
    "SELECT set_config('row_security', 'on', true), set_config(%(organizations)s, %(its_organizations)s::text[]::text,"
    " true), set_config(%(agents)s, %(its_agents)s::text[]::text, true), set_config('role', %(role)s, true)"
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
            connection.execute(_READING, {"timeout": f"{self.timeout_seconds * 1000:.0f}"})
            if tenants is not None:
                names = {"role": ROLE, "organizations": ORGANIZATIONS, "agents": AGENTS}
                values = {"its_organizations": sorted(tenants.organizations), "its_agents": sorted(tenants.agents)}
                connection.execute(_AS_TENANTS, names | values)
            try:
                yield connection
            except psycopg.errors.QueryCanceled:
                raise QueryTimeoutError(
                    f"The query took longer than {self.timeout_seconds:g} seconds: ask for fewer rows, a shorter time"
                    " or one agent."
                ) from None
