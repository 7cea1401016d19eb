"""Calls to a judge in the trajectory database: room is reserved before each, and settled after it.

All workers share the accounts. One that begins calls locks their rows for the length of a few statements, looks whether
there is room, and takes it; the calls themselves are made with nothing locked.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from psycopg import sql

from trajectory_pipeline.budget.caps import BudgetShortfall, Cap, Cost, Scope, SpendTotals, find_shortfall
from trajectory_pipeline.lossless_json import storable_text
from trajectory_pipeline.schema.bookkeeping import SPEND_TOTALS
from trajectory_pipeline.schema.types import SCHEMA_NAME, Sink
from trajectory_pipeline.schema.verdicts import VERDICT_ATTEMPTS
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction
from trajectory_pipeline.storage.postgres.verdict_locks import AlreadyClaimed, VerdictLock, lock_verdict

_ATTEMPTS = sql.Identifier(SCHEMA_NAME, VERDICT_ATTEMPTS.name)
_SPENDING = sql.Identifier(SCHEMA_NAME, SPEND_TOTALS.name)
_NAMES = VERDICT_ATTEMPTS.names(Sink.POSTGRES)
_KEPT = ("reserved_usd", "reserved_tokens", "budget_day", "organization_id", "materialization_id")
"""Columns that are written when a call begins, and not again."""
_MOVED = ("calls", "reserved_usd", "spent_usd", "reserved_tokens", "spent_tokens")

SpendScopeKey = tuple[Scope, str]


@dataclass(frozen=True)
class CallReservation:
    """A call that is to begin.

    Attributes:
        attempt: its row, as far as it is known; ``cost_usd`` is what it may cost at most, until its end is seen.
        reserved: what it may take at most.
        room: that there must be for it to begin: more than ``reserved`` where other calls of the verdict follow.
        claim: on the verdict that it is made for.
    """

    attempt: Mapping[str, Any]
    reserved: Cost
    room: Cost
    claim: VerdictLock


ReservationResult = AlreadyClaimed | BudgetShortfall | None
"""Why a call may not begin: somebody else is at the verdict, or there is no room; None where it may."""


def scope_keys(day: str, organization_id: str | None, materialization_id: str) -> dict[Scope, SpendScopeKey]:
    """Return the accounts that a call counts against."""
    return {
        "day": ("day", day),
        "organization": ("organization", f"{day} {organization_id or '(none)'}"),
        "materialization": ("materialization", materialization_id),
    }


def settle_and_reserve(
    connection: RetryingConnection,
    caps: Sequence[Cap],
    calls: Sequence[CallReservation],
    ended: Sequence[Mapping[str, Any]],
) -> list[ReservationResult]:
    """Settle calls that ended, then reserve budget for others, in one transaction; says which of these may not begin.

    Args:
        connection: to the trajectory database.
        caps: that must hold.
        calls: to begin, in the order in which they are served; their verdicts are locked, and their rows stored.
        ended: rows of calls that ended; what they cost replaces what was reserved. The ``cost_usd`` of a ``lost`` one
            is what was reserved.

    Raises:
        SinkError: the database refuses, or cannot be reached.
    """

    def work(transaction: Transaction) -> list[ReservationResult]:
        # Before any account is locked: whoever holds a claim that is wanted here may wait for an account.
        held = lock_verdict(transaction, [call.claim for call in calls]) if calls else {}
        changes = _changes(_ended(transaction, ended), began=False)
        day = transaction.rows("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day")[0]["day"]
        keys = [scope_keys(day, call.attempt["organization_id"], call.attempt["materialization_id"]) for call in calls]
        needed: dict[SpendScopeKey, Mapping[str, Any]] = {key: {} for scopes in keys for key in scopes.values()}
        accounts = _moved(transaction, {**needed, **changes})
        refusals: list[ReservationResult] = []
        begun: list[dict[str, Any]] = []
        for call, scopes in zip(calls, keys, strict=True):
            here = {scope: accounts[key] for scope, key in scopes.items()}
            refusal = held.get(call.claim.verdict_key) or find_shortfall(caps, here, call.room)
            refusals.append(refusal)
            if refusal is None:
                begun.append({**call.attempt, "budget_day": day})
                for scope, key in scopes.items():
                    accounts[key] = SpendTotals(here[scope].spent, here[scope].reserved + call.reserved)
        _moved(transaction, _changes(_inserted(transaction, begun), began=True))
        return refusals

    return connection.run("Reserving room for calls, and settling those that ended", work)


def day_of(moment: datetime) -> str:
    """Return the UTC day of a moment, as accounts name it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d")


def spend_totals(
    connection: RetryingConnection, day: str, organization_id: str | None, materialization_id: str
) -> dict[Scope, SpendTotals]:
    """Return the accounts that a call would count against, by scope; one that nothing was booked on is left out."""
    keys = list(scope_keys(day, organization_id, materialization_id).values())
    rows = connection.rows(
        "Reading what was spent",
        sql.SQL(
            "SELECT s.* FROM {} s JOIN unnest(%s::text[], %s::text[]) AS k (scope, scope_key)"
            " ON s.scope = k.scope AND s.scope_key = k.scope_key"
        ).format(_SPENDING),
        [[scope for scope, _ in keys], [key for _, key in keys]],
    )
    return {row["scope"]: _account(row) for row in rows}


def billable_cost(attempt: Mapping[str, Any]) -> Cost:
    """Return what an attempt that ended counts against the caps.

    What a provider refused costs nothing. Where an answer came, or may have, and its price or its tokens were not told,
    what was reserved counts.
    """
    if attempt["result"] == "error":
        return Cost()
    usd = attempt["reserved_usd"] if attempt["cost_usd"] is None else attempt["cost_usd"]
    told = attempt["input_tokens"] is not None and attempt["output_tokens"] is not None
    tokens = attempt["input_tokens"] + attempt["output_tokens"] if told else attempt["reserved_tokens"]
    return Cost(usd or Decimal(0), tokens)


def _ended(transaction: Transaction, attempts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Store how calls ended; returns those whose end was not stored yet, as they are stored."""
    if not attempts:
        return []
    names = [name for name in _NAMES if name not in _KEPT]
    return transaction.rows(
        sql.SQL(
            "UPDATE {table} a SET {changes} FROM jsonb_populate_recordset(NULL::{table}, %s::jsonb) n"
            " WHERE a.attempt_id = n.attempt_id AND a.duration_ns IS NULL RETURNING a.*"
        ).format(
            table=_ATTEMPTS,
            changes=sql.SQL(", ").join(sql.SQL("{0} = n.{0}").format(sql.Identifier(name)) for name in names),
        ),
        [_json(attempts)],
    )


def _inserted(transaction: Transaction, attempts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Store attempts; returns those that were not there yet, as they are stored."""
    if not attempts:
        return []
    return transaction.rows(
        sql.SQL(
            "INSERT INTO {table} ({names}) SELECT {names} FROM jsonb_populate_recordset(NULL::{table}, %s::jsonb)"
            " ON CONFLICT (attempt_id) DO NOTHING RETURNING *"
        ).format(table=_ATTEMPTS, names=sql.SQL(", ").join(map(sql.Identifier, _NAMES))),
        [_json(attempts)],
    )


def _changes(attempts: Iterable[Mapping[str, Any]], *, began: bool) -> dict[SpendScopeKey, dict[str, Any]]:
    """Return what attempts that began, or ended, move on each account."""
    changes: dict[SpendScopeKey, dict[str, Any]] = defaultdict(lambda: dict.fromkeys(_MOVED, 0))
    for attempt in attempts:
        reserved = Cost(attempt["reserved_usd"] or Decimal(0), attempt["reserved_tokens"])
        spent = Cost() if began else billable_cost(attempt)
        sign = 1 if began else -1
        scopes = scope_keys(attempt["budget_day"], attempt["organization_id"], attempt["materialization_id"])
        for key in scopes.values():
            change = changes[key]
            change["calls"] += began
            change["reserved_usd"] += sign * reserved.usd
            change["reserved_tokens"] += sign * reserved.tokens
            change["spent_usd"] += spent.usd
            change["spent_tokens"] += spent.tokens
    return changes


def _moved(
    transaction: Transaction, changes: Mapping[SpendScopeKey, Mapping[str, Any]]
) -> dict[SpendScopeKey, SpendTotals]:
    """Move amounts on accounts, and lock them until the transaction ends; returns how they stand then.

    In one order for all workers, so that none waits for another that waits for it.
    """
    if not changes:
        return {}
    keys = sorted(changes)
    columns = [
        [(Decimal if name.endswith("usd") else int)(changes[key].get(name, 0)) for key in keys] for name in _MOVED
    ]
    rows = transaction.rows(
        sql.SQL(
            "INSERT INTO {} AS s (scope, scope_key, calls, reserved_usd, spent_usd, reserved_tokens, spent_tokens,"
            " updated_at) SELECT *, clock_timestamp() FROM unnest(%s::text[], %s::text[], %s::bigint[],"
            " %s::numeric[], %s::numeric[], %s::bigint[], %s::bigint[]) AS n (scope, scope_key) ORDER BY 1, 2"
            " ON CONFLICT (scope, scope_key) DO UPDATE SET {}, updated_at = clock_timestamp() RETURNING s.*"
        ).format(
            _SPENDING,
            sql.SQL(", ").join(sql.SQL("{0} = s.{0} + EXCLUDED.{0}").format(sql.Identifier(name)) for name in _MOVED),
        ),
        [[scope for scope, _ in keys], [key for _, key in keys], *columns],
    )
    return {(row["scope"], row["scope_key"]): _account(row) for row in rows}


def _account(row: Mapping[str, Any]) -> SpendTotals:
    return SpendTotals(
        Cost(row["spent_usd"], row["spent_tokens"]),
        Cost(row["reserved_usd"], row["reserved_tokens"]),
    )


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as JSON that Postgres turns into rows; money as text, which keeps every digit."""

    def plain(value: Any) -> Any:
        if isinstance(value, Decimal):
            return format(value, "f")
        if isinstance(value, datetime):
            return value.isoformat()
        return storable_text(value) if isinstance(value, str) else value

    return json.dumps([{name: plain(row.get(name)) for name in _NAMES} for row in rows])
