"""Claims on verdicts in the trajectory database: two workers never pay for one.

A claim is taken before each call, and renewed until the verdict is stored; that of a killed worker expires by itself.
Expiry alone proves no death, because a database that stalls delays renewals too: only a worker that saw the claim stay
expired, in many prompt answers of the database, may take it over.
"""

import os
import secrets
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trajectory_pipeline.schema.enums import FINAL_STATUSES, ErrorClass
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction


@dataclass(frozen=True)
class VerdictLock:
    """Request for an exclusive claim of a worker on a verdict, for this many seconds from now.

    ``former`` is the worker whose claim stayed expired, which is taken over if it still is. ``collects``: whether the
    verdict waits for a batch that this worker collects.
    """

    run_id: str
    verdict_key: str
    worker: str
    seconds: float
    former: str | None = None
    collects: bool = False


@dataclass(frozen=True)
class ClaimHolder:
    """The worker that has a claim, and whether the claim is expired now."""

    worker: str
    expired: bool


TAKEOVER_POLLS = 20
"""In so many answers of the database in a row a claim must be expired before its holder counts as dead.

A worker that is alive renews it meanwhile: counted in answers and not in time, because a stalled database gives none.
"""


class ExpiredClaims:
    """What one worker saw of the claims that it waits for, answer by answer."""

    def __init__(self) -> None:
        self._polls: Counter[tuple[str, str]] = Counter()

    def dead_holders(self, holders: Mapping[str, ClaimHolder]) -> dict[str, str]:
        """Note an answer; returns by verdict key the workers that may be taken for dead."""
        seen = {(key, holder.worker) for key, holder in holders.items() if holder.expired}
        self._polls = Counter({claim: self._polls[claim] + 1 for claim in seen})
        return {key: worker for (key, worker), polls in self._polls.items() if polls >= TAKEOVER_POLLS}


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
    former = {key: claim.former for key, claim in wanted.items() if claim.former is not None}
    if former:
        transaction.rows(
            "DELETE FROM trajectory.verdict_locks WHERE verdict_key IN ("
            "SELECT verdict_key FROM trajectory.verdict_locks"
            " JOIN unnest(%s::text[], %s::text[]) AS n (verdict_key, former) USING (verdict_key)"
            " WHERE worker = former AND expires_at < clock_timestamp()"
            " ORDER BY verdict_key FOR UPDATE OF verdict_locks)",
            [list(former), list(former.values())],
        )
    rows = transaction.rows(
        "INSERT INTO trajectory.verdict_locks AS c (verdict_key, worker, claimed_at, expires_at)"
        " SELECT verdict_key, worker, clock_timestamp(), clock_timestamp() + seconds * interval '1 second'"
        " FROM unnest(%s::text[], %s::text[], %s::float8[]) AS n (verdict_key, worker, seconds)"
        " ORDER BY verdict_key ON CONFLICT (verdict_key) DO UPDATE SET worker = EXCLUDED.worker,"
        " claimed_at = EXCLUDED.claimed_at, expires_at = EXCLUDED.expires_at"
        " WHERE c.worker = EXCLUDED.worker RETURNING c.verdict_key",
        [keys, [wanted[key].worker for key in keys], [wanted[key].seconds for key in keys]],
    )
    claimed = {row["verdict_key"] for row in rows}
    return {key: AlreadyClaimed(key) for key in keys if key not in claimed}


def reached_verdicts(transaction: Transaction, claims: Sequence[VerdictLock]) -> dict[str, AlreadyClaimed]:
    """Return which of these verdicts another worker has reached, by verdict key, and release the claims on them.

    One that waits for a batch counts as reached.

    To be asked when nothing is waited for any more before the call.
    """
    wanted = {claim.verdict_key: claim.run_id for claim in claims}
    rows = transaction.rows(
        "SELECT v.verdict_key FROM trajectory.verdicts v WHERE v.run_id = ANY(%s) AND v.verdict_key = ANY(%s)"
        " AND (v.verdict_status = ANY(%s) OR v.verdict_status = 'submitted' AND NOT v.verdict_key = ANY(%s)"
        " OR v.verdict_status = 'quarantined' AND v.next_attempt_at > clock_timestamp())"
        " AND NOT v.erased AND v.error_class IS DISTINCT FROM %s",
        [
            list(wanted.values()),
            list(wanted),
            list(FINAL_STATUSES),
            [claim.verdict_key for claim in claims if claim.collects],
            ErrorClass.DENIED,
        ],
    )
    reached = {row["verdict_key"]: AlreadyClaimed(row["verdict_key"]) for row in rows}
    if reached:
        release_lock(transaction, claims[0].worker, sorted(reached))
    return reached


def renew_locks(connection: RetryingConnection, worker: str, seconds: float) -> None:
    """Let every claim of a worker last for at least so many seconds from now."""
    connection.rows(
        "Renewing claims",
        "UPDATE trajectory.verdict_locks SET expires_at = greatest(expires_at, clock_timestamp()"
        " + %s * interval '1 second') WHERE verdict_key IN (SELECT verdict_key FROM trajectory.verdict_locks"
        " WHERE worker = %s ORDER BY verdict_key FOR UPDATE) AND worker = %s",
        [seconds, worker, worker],
    )


def release_lock(transaction: Transaction, worker: str, verdict_keys: Sequence[str]) -> None:
    """Release those of these claims that are this worker's."""
    transaction.rows(
        "DELETE FROM trajectory.verdict_locks WHERE verdict_key IN (SELECT verdict_key FROM trajectory.verdict_locks"
        " WHERE worker = %s AND verdict_key = ANY(%s) ORDER BY verdict_key FOR UPDATE)",
        [worker, list(verdict_keys)],
    )


def claim_holders(connection: RetryingConnection, verdict_keys: Sequence[str]) -> dict[str, ClaimHolder]:
    """Return who has claims on these verdicts, by verdict key."""
    rows = connection.rows(
        "Looking for other workers",
        "SELECT verdict_key, worker, expires_at < clock_timestamp() AS expired FROM trajectory.verdict_locks"
        " WHERE verdict_key = ANY(%s)",
        [list(verdict_keys)],
    )
    return {row["verdict_key"]: ClaimHolder(row["worker"], row["expired"]) for row in rows}
