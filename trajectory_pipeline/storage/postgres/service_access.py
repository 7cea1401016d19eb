"""Reading for one client of the service: in a transaction that only reads, is short, and sees its tenants alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.storage.postgres.connection import BEGIN, translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_role import AGENTS, ORGANIZATIONS, ROLE

# Sent at once, with values in it: each statement would take a round trip. Compiling a plan would take longer than any.
_READING = (
    f"BEGIN; {BEGIN}; SELECT"
    " set_config('statement_timeout', {timeout}, true), set_config('transaction_read_only', 'on', true),"
    " set_config('jit', 'off', true),"
    f" set_config('{ORGANIZATIONS}', {{organizations}}::text[]::text, true),"
    f" set_config('{AGENTS}', {{agents}}::text[]::text, true),"
    " CASE WHEN {role} <> 'none' THEN set_config('row_security', 'on', true) END,"
    " set_config('role', {role}, true)"
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
        values = {
            "timeout": f"{self.timeout_seconds * 1000:.0f}",
            "role": "none" if tenants is None else ROLE,
            "organizations": sorted(tenants.organizations) if tenants else [],
            "agents": sorted(tenants.agents) if tenants else [],
        }
        reading = sql.SQL(_READING).format(**{name: sql.Literal(value) for name, value in values.items()})
        with (
            self.database.session(autocommit=True) as connection,
            translating_database_errors(self.database.url, "Reading"),
        ):
            connection.execute(reading)
            try:
                yield connection
                connection.execute("COMMIT")
            except psycopg.errors.QueryCanceled:
                raise QueryTimeoutError(
                    f"The query took longer than {self.timeout_seconds:g} seconds: ask for fewer rows, a shorter time"
                    " or one agent."
                ) from None
