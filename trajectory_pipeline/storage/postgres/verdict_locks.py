"""Claims on verdicts in the trajectory database: two workers never pay for one.

A claim is taken or renewed just before each call, for as long as the call may take at most and a little more: so no
claim ends while a call is under way, and that of a killed worker ends by itself.
"""

import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from trajectory_pipeline.schema.bookkeeping import VERDICT_LOCKS
from trajectory_pipeline.schema.enums import FINAL_STATUSES, ErrorClass
from trajectory_pipeline.schema.types import SCHEMA_NAME
from trajectory_pipeline.schema.verdicts import VERDICTS
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction

_CLAIMS = sql.Identifier(SCHEMA_NAME, VERDICT_LOCKS.name)
_VERDICTS = sql.Identifier(SCHEMA_NAME, VERDICTS.name)


@dataclass(frozen=True)
class VerdictLock:
    """The wish to be the only one at a verdict.

    Attributes:
        run_id: of the trajectory.
        verdict_key: of the verdict.
        worker: who wishes.
        seconds: that the claim holds from now on.
    """

    run_id: str
    verdict_key: str
    worker: str
    seconds: float


@dataclass(frozen=True)
class AlreadyClaimed:
    """Why there is no claim: another worker has it, or the verdict is there already."""

    verdict_key: str


def new_worker() -> str:
    """Return a name that no other worker has: host, process and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def lock_verdict(transaction: Transaction, claims: Sequence[VerdictLock]) -> dict[str, AlreadyClaimed]:
    """Take or renew claims; returns, by verdict key, those that cannot be had."""
    mine = {one.verdict_key: one for one in claims}
    keys = sorted(mine)
    taken = transaction.rows(
        sql.SQL(
            "INSERT INTO {claims} AS c (verdict_key, worker, claimed_at, expires_at)"
            " SELECT verdict_key, worker, clock_timestamp(), clock_timestamp() + seconds * interval '1 second'"
            " FROM unnest(%s::text[], %s::text[], %s::float8[]) AS n (verdict_key, worker, seconds)"
            " ORDER BY verdict_key ON CONFLICT (verdict_key) DO UPDATE SET worker = EXCLUDED.worker,"
            " claimed_at = EXCLUDED.claimed_at, expires_at = EXCLUDED.expires_at"
            " WHERE c.worker = EXCLUDED.worker OR c.expires_at < clock_timestamp() RETURNING c.verdict_key"
        ).format(claims=_CLAIMS),
        [keys, [mine[key].worker for key in keys], [mine[key].seconds for key in keys]],
    )
    had = {row["verdict_key"] for row in taken}
    # Who had it before may have come to an end in the meantime.
    final = transaction.rows(
        sql.SQL(
            "SELECT v.verdict_key FROM {} v WHERE v.run_id = ANY(%s) AND v.verdict_key = ANY(%s)"
            " AND (v.verdict_status = ANY(%s)"
            " OR v.verdict_status = 'quarantined' AND v.next_attempt_at > clock_timestamp())"
            " AND NOT v.erased AND v.error_class IS DISTINCT FROM %s"
        ).format(_VERDICTS),
        [[mine[key].run_id for key in keys], keys, list(FINAL_STATUSES), ErrorClass.DENIED],
    )
    done = {row["verdict_key"] for row in final}
    if done & had:
        release_lock(transaction, claims[0].worker, sorted(done & had))
    return {key: AlreadyClaimed(key) for key in keys if key not in had or key in done}


def release_lock(transaction: Transaction, worker: str, verdict_keys: Sequence[str]) -> None:
    """Give claims back, those that are this worker's."""
    transaction.rows(
        sql.SQL(
            "DELETE FROM {claims} WHERE verdict_key IN (SELECT verdict_key FROM {claims} WHERE worker = %s"
            " AND verdict_key = ANY(%s) ORDER BY verdict_key FOR UPDATE)"
        ).format(claims=_CLAIMS),
        [worker, list(verdict_keys)],
    )


def live_locks(connection: RetryingConnection, verdict_keys: Sequence[str]) -> set[str]:
    """Return which of these verdicts somebody is at."""
    rows = connection.rows(
        "Looking for other workers",
        sql.SQL("SELECT verdict_key FROM {} WHERE verdict_key = ANY(%s) AND expires_at >= clock_timestamp()").format(
            _CLAIMS
        ),
        [list(verdict_keys)],
    )
    return {row["verdict_key"] for row in rows}
