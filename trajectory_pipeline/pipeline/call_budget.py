"""Budget for a worker's calls: reserved before a call is sent, settled when it has ended."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from trajectory_pipeline.budget.caps import BudgetExhausted, BudgetShortfall, Cost
from trajectory_pipeline.budget.prices import Prices
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.judge_trajectory import JudgeRequest
from trajectory_pipeline.pipeline.micro_batcher import MicroBatcher
from trajectory_pipeline.storage.postgres.rate_limiter import RateLimit
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection
from trajectory_pipeline.storage.postgres.spend_ledger import CallReservation, ReservationResult, settle_and_reserve
from trajectory_pipeline.storage.postgres.verdict_locks import AlreadyClaimed, VerdictLock
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.urls import without_credentials

CLAIM_EXTRA_SECONDS = 120.0
"""How much longer a claim lasts than its call, and how long from each renewal: a worker may be out of touch so long."""

Row = dict[str, Any]


def _prices_of(call: CallRecord, judge: JudgeConfig) -> Prices:
    return judge.budget.prices.of_batches if call.batch_id is not None else judge.budget.prices


def priced(call: CallRecord, reserved_usd: Decimal | None, judge: JudgeConfig) -> CallRecord:
    """Return a call that ended with what it cost: what was reserved, where its end is not known."""
    cost = reserved_usd
    if call.result != "lost":
        cost = _prices_of(call, judge).cost(call.model, call.response_model, call.usage, judge.base_url)
        if call.billed_usd is not None:
            cost = max(cost or Decimal(0), call.billed_usd)
    return replace(call, cost_usd=cost)


def rate_limit(judge: JudgeConfig) -> RateLimit:
    """Return the limit of a model at its endpoint, which all workers share."""
    return RateLimit(
        without_credentials(judge.base_url), judge.model, judge.requests_per_minute, judge.tokens_per_minute
    )


class ClaimedElsewhere(Exception):  # noqa: N818 - no error
    """Another worker is judging this trajectory, or has judged it."""


class JudgingStopped(Exception):  # noqa: N818 - no error
    """No further call may begin, because something else failed."""


class CallBudget:
    """What all calls of one worker share: the spend ledger, and how many calls are in flight.

    The connection is for the ledger alone, so that a call that may begin waits for nothing else. Verdicts are claimed
    under the worker's name. ``least`` is the maximum cost of the smallest call; None for that of a judge.
    """

    def __init__(
        self,
        connection: RetryingConnection,
        judge: JudgeConfig,
        materialization_id: str,
        worker: str,
        least: Cost | None = None,
    ) -> None:
        self.judge = judge
        self.stopped = False
        self.policy_id = judge.policy.policy_id
        self.materialization_id = materialization_id
        self.worker = worker
        self._least = least or judge.least_call_cost
        self._connection = connection
        self._book = MicroBatcher[CallReservation | Row, ReservationResult](asyncio.Lock(), self._settle_and_reserve)
        self._settled = asyncio.Condition()
        self._in_flight = 0
        # By organization; under None those of the caps that all organizations share.
        self._exhausted: dict[str | None, BudgetShortfall] = {}

    def check_headroom(self, organization_id: str | None) -> None:
        """Raise BudgetExhausted, without a query, if a cap is known to lack headroom even for the smallest call."""
        for scope in (None, organization_id or ""):
            if scope in self._exhausted:
                raise BudgetExhausted(self._exhausted[scope])

    async def reserve(self, reservation: CallReservation) -> None:
        """Reserve budget for a call; waits while this worker's own calls in flight could free up headroom.

        Raises BudgetExhausted where there is no headroom, ClaimedElsewhere, or JudgingStopped.
        """
        while True:
            if self.stopped:
                raise JudgingStopped
            refusal = await self._book(reservation)
            if refusal is None:
                self._in_flight += 1
                return
            if isinstance(refusal, AlreadyClaimed):
                raise ClaimedElsewhere
            async with self._settled:
                if not (refusal.could_free_up and self._in_flight):
                    self._remember(refusal, reservation.attempt["organization_id"])
                    raise BudgetExhausted(refusal)
                await self._settled.wait()

    async def settle(self, row: Row) -> None:
        """Settle a call that ended."""
        await self._book(row)
        await self.release(1)

    async def release(self, calls: int) -> None:
        """Count so many calls as no longer in flight, and let those that wait for headroom try again."""
        if calls:
            async with self._settled:
                self._in_flight -= calls
                self._settled.notify_all()

    def _remember(self, shortfall: BudgetShortfall, organization_id: str | None) -> None:
        least = self._least
        # Calls in flight may still cost less than was reserved for them.
        if not self._in_flight and shortfall.remaining < shortfall.cap.amount_of(least):
            scope = (organization_id or "") if shortfall.cap.scope == "organization" else None
            self._exhausted[scope] = replace(shortfall, headroom=least)

    def _settle_and_reserve(self, items: "Sequence[CallReservation | Row]") -> list[ReservationResult]:
        reservations = [item for item in items if isinstance(item, CallReservation)]
        ended = [item for item in items if not isinstance(item, CallReservation)]
        results = iter(settle_and_reserve(self._connection, self.judge.budget.caps, reservations, ended))
        return [next(results) if isinstance(item, CallReservation) else None for item in items]


@dataclass
class VerdictCalls:
    """The calls for one verdict so far, by id; a call whose end was not seen has no duration.

    ``former`` is a dead worker whose claim on the verdict is taken over, ``batch_id`` the batch that is collected.
    """

    shared: CallBudget
    candidate: JudgingCandidate
    former: str | None = None
    batch_id: str | None = None
    by_id: dict[str, CallRecord] = field(default_factory=dict)

    async def begin(self, call: CallRecord, request: JudgeRequest) -> None:
        """Claim the verdict and reserve what a call may cost at most, as ``CallBudget.reserve`` does.

        To be awaited before the call is sent.
        """
        shared, judge = self.shared, self.shared.judge
        prompt_tokens, prices = call.estimated_prompt_tokens, _prices_of(call, judge)
        usd = prices.max_cost(call.model, judge.base_url, prompt_tokens, call.max_response_tokens)
        # If its end is never seen, it stays lost, at what it may have cost.
        begun = replace(call, cost_usd=usd)
        reserved = Cost(usd or Decimal(0), prompt_tokens + call.max_response_tokens)
        row = {
            **self._row(begun),
            "reserved_usd": usd,
            "reserved_tokens": reserved.tokens,
            "organization_id": self.candidate.organization_id,
            "materialization_id": shared.materialization_id,
        }
        candidate, seconds = self.candidate, judge.timeout_seconds + CLAIM_EXTRA_SECONDS
        claim = VerdictLock(
            candidate.run_id, candidate.verdict_key, shared.worker, seconds, self.former, collects=bool(self.batch_id)
        )
        await shared.reserve(CallReservation(row, reserved, self._headroom(reserved, request), [claim]))
        self.by_id[call.attempt_id] = begun

    async def resume(self, call: CallRecord) -> None:
        """Take up a call that began in a batch."""
        await self.shared.release(-1)
        self.by_id[call.attempt_id] = call

    async def end(self, call: CallRecord) -> None:
        """Replace what was reserved for a call by what it cost."""
        settled = priced(call, self.by_id[call.attempt_id].cost_usd, self.shared.judge)
        await self.shared.settle(self._row(settled))
        self.by_id[call.attempt_id] = settled

    async def release_lost(self) -> None:
        """Count the calls whose end was not seen as no longer in flight."""
        await self.shared.release(sum(call.duration_ns is None for call in self.by_id.values()))

    def model_columns(self) -> Row:
        """Return the columns of a verdict that say which model answered last, and how it was asked."""
        if not self.by_id:
            return {}
        last = next(reversed(self.by_id.values()))
        # A lost call says nothing of its server, but its cost is made up all the same.
        simulated_price = self.shared.judge.budget.prices.is_simulated(last.model, self.shared.judge.base_url)
        return {
            "model": last.response_model,
            "response_format": last.response_format,
            "simulated": last.simulated or simulated_price,
        }

    def _headroom(self, reserved: Cost, request: JudgeRequest) -> Cost:
        # Before the first of several calls there must be headroom for all of them, or none is made.
        if self.by_id or request.calls <= 1:
            return reserved
        judge = self.shared.judge
        total = judge.max_call_cost(request.prompt_tokens, request.calls * judge.max_response_tokens)
        return Cost(max(reserved.usd, total.usd), max(reserved.tokens, total.tokens))

    def _row(self, call: CallRecord) -> Row:
        return {
            **call.as_row(),
            "run_id": self.candidate.run_id,
            "verdict_key": self.candidate.verdict_key,
            "policy_id": self.shared.policy_id,
        }
