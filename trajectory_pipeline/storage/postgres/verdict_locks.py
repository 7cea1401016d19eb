"""Claims on verdicts in the trajectory database: two workers never pay for one.

A claim is taken or renewed just before each call, for slightly longer than the call may take: no claim expires during a
call, and that of a killed worker expires by itself.
"""

import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from trajectory_pipeline.schema.enums import FINAL_STATUSES, ErrorClass
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction


@dataclass(frozen=True)
class VerdictLock:
    """Request for an exclusive claim of a worker on a verdict, for this many seconds from now."""

    run_id: str
    verdict_key: str
    worker: str
    seconds: float


@dataclass(frozen=True)
class AlreadyClaimed:
    """Another worker has the claim, or the verdict exists already."""

    verdict_key: str


def new_worker() -> str:
    """Return a name that no other worker has: host, process and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def lock_verdict(transaction: Transaction, claims: Sequence[VerdictLock]) -> dict[str, AlreadyClaimed]:
    """Take or renew claims; returns those that were refused by verdict key."""
    wanted = {claim.verdict_key: claim for claim in claims}
    keys = sorted(wanted)
    rows = transaction.rows(
        "INSERT INTO trajectory.verdict_locks AS c (verdict_key, worker, claimed_at, expires_at)"
        " SELECT verdict_key, worker, clock_timestamp(), clock_timestamp() + seconds * interval '1 second'"
        " FROM unnest(%s::text[], %s::text[], %s::float8[]) AS n (verdict_key, worker, seconds)"
        " ORDER BY verdict_key ON CONFLICT (verdict_key) DO UPDATE SET worker = EXCLUDED.worker,"
        " claimed_at = EXCLUDED.claimed_at, expires_at = EXCLUDED.expires_at"
        " WHERE c.worker = EXCLUDED.worker OR c.expires_at < clock_timestamp() RETURNING c.verdict_key",
        [keys, [wanted[key].worker for key in keys], [wanted[key].seconds for key in keys]],
    )
    claimed = {row["verdict_key"] for row in rows}
    # The former holder may have reached the verdict in the meantime.
    rows = transaction.rows(
        "SELECT v.verdict_key FROM trajectory.verdicts v WHERE v.run_id = ANY(%s) AND v.verdict_key = ANY(%s)"
        " AND (v.verdict_status = ANY(%s)"
        " OR v.verdict_status = 'quarantined' AND v.next_attempt_at > clock_timestamp())"
        " AND NOT v.erased AND v.error_class IS DISTINCT FROM %s",
        [[wanted[key].run_id for key in keys], keys, list(FINAL_STATUSES), ErrorClass.DENIED],
    )
    done = {row["verdict_key"] for row in rows}
    if done & claimed:
        release_lock(transaction, claims[0].worker, sorted(done & claimed))
    return {key: AlreadyClaimed(key) for key in keys if key not in claimed or key in done}


def release_lock(transaction: Transaction, worker: str, verdict_keys: Sequence[str]) -> None:
    """Release those of these claims that are this worker's."""
    transaction.rows(
        "DELETE FROM trajectory.verdict_locks WHERE verdict_key IN (SELECT verdict_key FROM trajectory.verdict_locks"
        " WHERE worker = %s AND verdict_key = ANY(%s) ORDER BY verdict_key FOR UPDATE)",
        [worker, list(verdict_keys)],
    )


def live_locks(connection: RetryingConnection, verdict_keys: Sequence[str]) -> set[str]:
    """Return which of these verdicts a worker has a claim on."""
    rows = connection.rows(
        "Looking for other workers",
        "SELECT verdict_key FROM trajectory.verdict_locks WHERE verdict_key = ANY(%s)"
        " AND expires_at >= clock_timestamp()",
        [list(verdict_keys)],
    )
    return {row["verdict_key"] for row in rows}
