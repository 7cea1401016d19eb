"""Tokens of the service: made, listed, revoked, and looked up. Only their SHA-256 is stored."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.service_role import is_prepared, prepare_service_role

_TOKEN = re.compile(r"trajectory_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_SHAPE = "token_id, name, scopes, organizations, agents, created_at, expires_at, revoked_at"


@dataclass(frozen=True)
class ServiceToken:
    """What is stored of a token; ``tenants`` is None where it sees all runs."""

    token_id: str
    name: str
    scopes: frozenset[TokenScope]
    tenants: Tenants | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def create_token(
    database: TrajectoryDatabase,
    name: str,
    scopes: Collection[TokenScope],
    tenants: Tenants | None,
    lifetime: timedelta | None,
) -> str:
    """Make a token and return it, for the only time.

    For one that sees some tenants alone, the role and policies that hold it to them are made too.

    Raises:
        SinkError: the database cannot be reached, or this user may not make the role or the policies.
    """
    token_id = secrets.token_hex(6)
    token = f"trajectory_{token_id}_{secrets.token_urlsafe(32)}"
    with database.connect() as connection, translating_database_errors(database.url, "Making a token"):
        if tenants is not None:
            prepare_service_role(connection)
        connection.execute(
            "INSERT INTO trajectory.service_tokens VALUES (%s, %s, %s, %s, %s, %s, now(), now() + %s, NULL)",
            [
                token_id,
                _digest(token),
                name,
                sorted(scopes),
                None if tenants is None else sorted(tenants.organizations),
                None if tenants is None else sorted(tenants.agents),
                lifetime,
            ],
        )
    return token


def tenants_without_runs(database: TrajectoryDatabase, tenants: Tenants) -> list[str]:
    """Return the organizations and agents of which no run is stored, sorted.

    Raises:
        SinkError: the database cannot be reached.
    """
    asked = (("organization_id", tenants.organizations), ("agent_id", tenants.agents))
    with database.connect() as connection, translating_database_errors(database.url, "Reading whose runs are stored"):
        return sorted(
            name
            for column, names in asked
            for (name,) in connection.execute(
                sql.SQL(
                    "SELECT name FROM unnest(%s::text[]) name"
                    " WHERE NOT EXISTS (SELECT FROM trajectory.trajectories WHERE {} = name)"
                ).format(sql.Identifier(column)),
                [list(names)],
            )
        )


def token_id_of(token: str) -> str:
    """Return the public id of a token that ``create_token`` returned."""
    return token.split("_")[1]


def complete_service_role(connection: psycopg.Connection) -> None:
    """Make what the role of clients with tenants lacks, if there is such a client: another version may need more.

    Raises:
        SinkError: this user may not; the text says what to run.
    """
    of_tenants = "SELECT FROM trajectory.service_tokens WHERE organizations IS NOT NULL LIMIT 1"
    if connection.execute(of_tenants).rowcount and not is_prepared(connection):
        prepare_service_role(connection)


def list_tokens(database: TrajectoryDatabase) -> list[ServiceToken]:
    """Return all tokens, revoked and expired ones too, the newest first."""
    rows = database.rows(f"SELECT {_SHAPE} FROM trajectory.service_tokens ORDER BY created_at DESC, token_id")
    return [_token(row) for row in rows]


def revoke_token(database: TrajectoryDatabase, token_id: str) -> None:
    """Revoke a token; from then on no request with it is answered.

    Raises:
        PipelineError: there is none with this id that is not revoked.
    """
    revoked = database.rows(
        "UPDATE trajectory.service_tokens SET revoked_at = now() WHERE token_id = %s AND revoked_at IS NULL"
        " RETURNING token_id",
        [token_id],
    )
    if not revoked:
        raise PipelineError(
            f"There is no token {token_id!r} that could be revoked: `trajectory-pipeline tokens list` shows their ids."
        )


def find_token(database: TrajectoryDatabase, token: str) -> ServiceToken | None:
    """Return a token that is valid now; None for any other text."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        return None
    rows = database.rows(
        f"SELECT {_SHAPE}, token_sha256 FROM trajectory.service_tokens WHERE token_id = %s AND revoked_at IS NULL"
        " AND coalesce(expires_at, 'infinity') > clock_timestamp()",
        [match[1]],
    )
    if not rows or not hmac.compare_digest(rows[0].pop("token_sha256"), _digest(token)):
        return None
    return _token(rows[0])


def has_tokens(database: TrajectoryDatabase) -> bool:
    """Return whether a token was ever made: from then on every request needs one."""
    return bool(database.rows("SELECT FROM trajectory.service_tokens LIMIT 1"))


def _token(row: Mapping[str, Any]) -> ServiceToken:
    values = dict(row)
    organizations, agents = values.pop("organizations"), values.pop("agents")
    tenants = None if organizations is None else Tenants(frozenset(organizations), frozenset(agents or ()))
    return ServiceToken(
        scopes=frozenset(map(TokenScope, values.pop("scopes"))),
        tenants=tenants,
        **values,
    )


def _digest(token: str) -> str:
    # It has 256 random bits: nothing is gained by a slow hash.
    return hashlib.sha256(token.encode()).hexdigest()
