"""Calls to a judge in the trajectory database: budget is reserved before each, and settled after it.

All workers share the totals. A worker that begins calls locks their rows for a few statements, checks the headroom and
reserves; the calls themselves are made with nothing locked.
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
from trajectory_pipeline.lossless_json import storable_value
from trajectory_pipeline.schema.types import Sink
from trajectory_pipeline.schema.verdicts import VERDICT_ATTEMPTS
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction
from trajectory_pipeline.storage.postgres.verdict_locks import (
    AlreadyClaimed,
    VerdictLock,
    lock_verdict,
    reached_verdicts,
)

_COLUMNS = VERDICT_ATTEMPTS.names(Sink.POSTGRES)
SEARCH, PANEL = "search", "panel"
"""Beginnings of materialization ids of calls that no Dagster run makes: a random id follows, after a space."""
_SET_AT_BEGIN = ("reserved_usd", "reserved_tokens", "budget_day", "organization_id", "materialization_id")
"""Columns that are written when a call begins, and not again."""
_AMOUNTS = ("calls", "reserved_usd", "spent_usd", "reserved_tokens", "spent_tokens")

_INSERT_ATTEMPTS = sql.SQL(
    "INSERT INTO trajectory.verdict_attempts ({columns}) SELECT {columns}"
    " FROM jsonb_populate_recordset(NULL::trajectory.verdict_attempts, %s::jsonb)"
    " ON CONFLICT (attempt_id) DO NOTHING RETURNING *"
).format(columns=sql.SQL(", ").join(map(sql.Identifier, _COLUMNS)))
_SETTLE_ATTEMPTS = sql.SQL(
    "UPDATE trajectory.verdict_attempts a SET {changes}"
    " FROM jsonb_populate_recordset(NULL::trajectory.verdict_attempts, %s::jsonb) n"
    " WHERE a.attempt_id = n.attempt_id AND a.duration_ns IS NULL RETURNING a.*"
).format(
    changes=sql.SQL(", ").join(
        sql.SQL("{0} = n.{0}").format(sql.Identifier(name)) for name in _COLUMNS if name not in _SET_AT_BEGIN
    )
)
_ADD_TO_TOTALS = sql.SQL(
    "INSERT INTO trajectory.spend_totals AS s (scope, scope_key, calls, reserved_usd, spent_usd, reserved_tokens,"
    " spent_tokens, updated_at) SELECT *, clock_timestamp() FROM unnest(%s::text[], %s::text[], %s::bigint[],"
    " %s::numeric[], %s::numeric[], %s::bigint[], %s::bigint[]) AS n (scope, scope_key) ORDER BY 1, 2"
    " ON CONFLICT (scope, scope_key) DO UPDATE SET {}, updated_at = clock_timestamp() RETURNING s.*"
).format(sql.SQL(", ").join(sql.SQL("{0} = s.{0} + EXCLUDED.{0}").format(sql.Identifier(name)) for name in _AMOUNTS))

SpendScopeKey = tuple[Scope, str]


@dataclass(frozen=True)
class CallReservation:
    """A call that is to begin.

    Attributes:
        attempt: its row, as far as it is known; ``cost_usd`` is its maximum cost until it ends.
        reserved: its maximum cost.
        headroom: that must be left for it to begin: more than ``reserved`` where other calls of the verdict follow.
        claims: on the verdict that it is made for, or on the texts.
    """

    attempt: Mapping[str, Any]
    reserved: Cost
    headroom: Cost
    claims: Sequence[VerdictLock]


ReservationResult = AlreadyClaimed | BudgetShortfall | None
"""Why a call may not begin: its verdict is claimed, or a cap has no headroom; None where it may."""


def scope_keys(day: str, organization_id: str | None, materialization_id: str) -> dict[Scope, SpendScopeKey]:
    """Return the totals that a call counts against."""
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
        calls: to begin, in the order in which they are served; their verdicts are claimed, and their rows stored.
        ended: rows of calls that ended; their cost replaces what was reserved. The ``cost_usd`` of a ``lost`` one is
            what was reserved.
    """

    def work(transaction: Transaction) -> list[ReservationResult]:
        # Claims before totals: the holder of a claim that is wanted here may be waiting for a total.
        claimed = lock_verdict(transaction, [claim for call in calls for claim in call.claims]) if calls else {}
        settled = transaction.rows(_SETTLE_ATTEMPTS, [_json(ended)]) if ended else []
        day = transaction.rows("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day")[0]["day"]
        keys = [scope_keys(day, call.attempt["organization_id"], call.attempt["materialization_id"]) for call in calls]
        needed: dict[SpendScopeKey, Mapping[str, Any]] = {key: {} for scopes in keys for key in scopes.values()}
        totals = _add_to_totals(transaction, {**needed, **_changes(settled, began=False)})
        # Not before the totals are locked: while that waits, the former holder of a claim may store its verdict.
        claimed |= reached_verdicts(transaction, [claim for call in calls for claim in call.claims]) if calls else {}
        refusals: list[ReservationResult] = []
        begun: list[dict[str, Any]] = []
        for call, scopes in zip(calls, keys, strict=True):
            here = {scope: totals[key] for scope, key in scopes.items()}
            taken = next((claimed[one.verdict_key] for one in call.claims if one.verdict_key in claimed), None)
            refusal = taken or find_shortfall(caps, here, call.headroom)
            refusals.append(refusal)
            if refusal is None:
                begun.append({**call.attempt, "budget_day": day})
                for scope, key in scopes.items():
                    totals[key] = SpendTotals(here[scope].spent, here[scope].reserved + call.reserved)
        inserted = transaction.rows(_INSERT_ATTEMPTS, [_json(begun)]) if begun else []
        _add_to_totals(transaction, _changes(inserted, began=True))
        return refusals

    return connection.run("Reserving room for calls, and settling those that ended", work)


def day_of(moment: datetime) -> str:
    """Return the UTC day of a moment, as scope keys name it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d")


def spend_totals(
    connection: RetryingConnection, day: str, organization_id: str | None, materialization_id: str
) -> dict[Scope, SpendTotals]:
    """Return the totals that a call would count against, by scope; one without any call is left out."""
    keys = list(scope_keys(day, organization_id, materialization_id).values())
    rows = connection.rows(
        "Reading what was spent",
        "SELECT s.* FROM trajectory.spend_totals s JOIN unnest(%s::text[], %s::text[]) AS k (scope, scope_key)"
        " USING (scope, scope_key)",
        [[scope for scope, _ in keys], [key for _, key in keys]],
    )
    return {row["scope"]: _totals(row) for row in rows}


def billable_cost(attempt: Mapping[str, Any]) -> Cost:
    """Return what an attempt that ended counts against the caps.

    What a provider refused costs nothing. Where a response came, or may have, without a price or token counts, the
    reserved amount counts.
    """
    if attempt["result"] == "error":
        return Cost()
    usd = attempt["reserved_usd"] if attempt["cost_usd"] is None else attempt["cost_usd"]
    counted = attempt["input_tokens"] is not None and attempt["output_tokens"] is not None
    tokens = attempt["input_tokens"] + attempt["output_tokens"] if counted else attempt["reserved_tokens"]
    return Cost(usd or Decimal(0), tokens)


def _changes(attempts: Iterable[Mapping[str, Any]], *, began: bool) -> dict[SpendScopeKey, dict[str, Any]]:
    """Return what attempts that began, or ended, add to each total."""
    changes: dict[SpendScopeKey, dict[str, Any]] = defaultdict(lambda: dict.fromkeys(_AMOUNTS, 0))
    for attempt in attempts:
        spent = Cost() if began else billable_cost(attempt)
        sign = 1 if began else -1
        scopes = scope_keys(attempt["budget_day"], attempt["organization_id"], attempt["materialization_id"])
        for key in scopes.values():
            change = changes[key]
            change["calls"] += began
            change["reserved_usd"] += sign * (attempt["reserved_usd"] or Decimal(0))
            change["reserved_tokens"] += sign * attempt["reserved_tokens"]
            change["spent_usd"] += spent.usd
            change["spent_tokens"] += spent.tokens
    return changes


def _add_to_totals(
    transaction: Transaction, changes: Mapping[SpendScopeKey, Mapping[str, Any]]
) -> dict[SpendScopeKey, SpendTotals]:
    """Add amounts to totals, and lock them until the transaction ends; returns the new totals.

    In one order for all workers, so that they wait for each other instead of deadlocking.
    """
    if not changes:
        return {}
    keys = sorted(changes)
    columns = [
        [(Decimal if name.endswith("usd") else int)(changes[key].get(name, 0)) for key in keys] for name in _AMOUNTS
    ]
    rows = transaction.rows(_ADD_TO_TOTALS, [[scope for scope, _ in keys], [key for _, key in keys], *columns])
    return {(row["scope"], row["scope_key"]): _totals(row) for row in rows}


def _totals(row: Mapping[str, Any]) -> SpendTotals:
    return SpendTotals(
        Cost(row["spent_usd"], row["spent_tokens"]),
        Cost(row["reserved_usd"], row["reserved_tokens"]),
    )


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as JSON that Postgres turns into rows; money as text, which loses no digit."""

    def plain(value: Decimal | datetime) -> str:
        return format(value, "f") if isinstance(value, Decimal) else value.isoformat()

    return json.dumps([{name: storable_value(row.get(name)) for name in _COLUMNS} for row in rows], default=plain)
