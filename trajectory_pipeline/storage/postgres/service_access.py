"""Reading for one client of the service: in a transaction that only reads, is short, and sees its tenants alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.storage.postgres.connection import BEGIN_PREPARED, translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.prepared import Call, Prepared, execute_prepared
from trajectory_pipeline.storage.postgres.service_role import AGENTS, ORGANIZATIONS, ROLE

# Compiling a plan would take longer than any query.
_READ_ONLY = Prepared(
    "SELECT set_config('statement_timeout', $1::text, true), set_config('transaction_read_only', 'on', true),"
    " set_config('jit', 'off', true),"
    f" set_config('{ORGANIZATIONS}', $2::text[]::text, true), set_config('{AGENTS}', $3::text[]::text, true),"
    " CASE WHEN $4::text <> 'none' THEN set_config('row_security', 'on', true) END,"
    " set_config('role', $4::text, true)"
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
        with self._session() as connection:
            execute_prepared(connection, *self._beginning(tenants), stay=True)
            yield connection
            connection.execute("COMMIT")

    def read(self, tenants: Tenants | None, statement: Prepared, *values: str | None) -> list[dict[str, Any]]:
        """Return the rows of one query, in a transaction as ``reading`` begins it and in one round trip.

        Raises:
            QueryTimeoutError: the query took longer than ``timeout_seconds``.
            SinkError: the database cannot be reached or refuses.
        """
        with self._session() as connection:
            cursor = execute_prepared(connection, *self._beginning(tenants), (statement, values))
            while cursor.nextset():
                pass
            cursor.row_factory = dict_row
            return cursor.fetchall()

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection]:
        with (
            self.database.session(autocommit=True) as connection,
            translating_database_errors(self.database.url, "Reading"),
        ):
            try:
                yield connection
            except psycopg.errors.QueryCanceled:
                raise QueryTimeoutError(
                    f"The query took longer than {self.timeout_seconds:g} seconds: ask for fewer rows, a shorter time"
                    " or one agent."
                ) from None

    def _beginning(self, tenants: Tenants | None) -> list[Call]:
        timeout, role = f"{self.timeout_seconds * 1000:.0f}", "none" if tenants is None else ROLE
        lists = (tenants.organizations, tenants.agents) if tenants else ((), ())
        return [*((one, ()) for one in BEGIN_PREPARED), (_READ_ONLY, (timeout, *map(_array, lists), role))]


def _array(values: Iterable[str]) -> str:
    """Return texts as Postgres reads an array from text."""
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"') for value in sorted(values))
    return "{" + ",".join(f'"{one}"' for one in escaped) + "}"
