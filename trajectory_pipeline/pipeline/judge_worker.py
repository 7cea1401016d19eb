"""Judging many trajectories at once: each is claimed, paid within the budget, and stored when it is known.

Belongs here: how calls overlap, and what money and claims do to them. Does not belong here: which trajectories are due
(``refined_outcomes``), what is asked (``refinement``), and statements (``sinks``).
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from trajectory_pipeline.budget.caps import Budget, BudgetExhausted, BudgetShortfall, Cost
from trajectory_pipeline.budget.prices import is_simulated
from trajectory_pipeline.budget.token_estimate import Estimate
from trajectory_pipeline.errors import PipelineError, ProviderDownError
from trajectory_pipeline.judge.client.backoff import RequestSlot
from trajectory_pipeline.judge.client.errors import is_outage
from trajectory_pipeline.judge.client.session import (
    AskResult,
    CallRecord,
    JudgeConfig,
    JudgeReply,
    JudgeSession,
)
from trajectory_pipeline.judge.judge_trajectory import JudgeRequest, build_judge_request, failed, judge
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import overhead_tokens
from trajectory_pipeline.judge.redaction.egress_policy import UNRESTRICTED, JudgeAccessList
from trajectory_pipeline.pipeline.documents import whole_document
from trajectory_pipeline.pipeline.micro_batcher import MicroBatcher
from trajectory_pipeline.runtime.gc_threshold import raised_gc_threshold
from trajectory_pipeline.schema.verdicts import DENIED, FINAL_STATUSES
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.recent_calls import latest_error_classes
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection
from trajectory_pipeline.storage.postgres.spend_ledger import CallReservation, ReservationResult, settle_and_reserve
from trajectory_pipeline.storage.postgres.verdict_locks import AlreadyClaimed, VerdictLock, live_locks, new_worker
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore
from trajectory_pipeline.urls import endpoint_without_credentials

CLAIM_SECONDS = 30.0
"""That a claim lasts longer than the call it was made for: to store the answer, or to begin the next call."""
LOOK_AGAIN_SECONDS = 0.5
"""Between two looks at verdicts that another worker is at."""
_TELL_EVERY_SECONDS = 5.0
_TASKS_PER_CALL = 2
"""Trajectories at work for each call that may be under way: one whose call is, and one before or after its own."""
_CALLS_PER_ANSWER_TO_STORE = 4
"""For so many calls that may be under way, one answer more may be on its way into Postgres.

What a process that is killed had paid for and not stored is no more than both.
"""

_CONTAINERS = 50_000
"""New ones until the garbage collector looks at them; until it looks at all of the process, a hundred times as many."""

_LOG = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass
class JudgingStats:
    """What judging did.

    Attributes:
        asked: trajectories that were asked about.
        calls: HTTP calls made.
        cost_usd: of these calls, as far as it is known; lost ones at what they may have cost.
        unpriced_calls: answered calls whose price is not known.
        models: that answered.
        held_back: deferred verdicts by the cap that had no room.
        elsewhere: verdicts that another worker reached in the meantime.
    """

    judged: int = 0
    calls: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced_calls: int = 0
    models: set[str] = field(default_factory=set)
    deferred: Counter[str] = field(default_factory=Counter)
    claimed_elsewhere: int = 0


class _ClaimedElsewhere(Exception):  # noqa: N818 - no error
    """Another worker is at this verdict, or has reached it."""


class _Stopped(Exception):  # noqa: N818 - no error
    """Nothing more is begun, because something else failed."""


@dataclass
class JudgeWorker:
    """The judging of trajectories under one policy.

    A verdict is stored before its task is done. If storing fails, nothing more is asked, and what is under way is
    waited for: it is paid for, and may still be stored. A fault of ours in one verdict is that verdict's.

    Attributes:
        parquet: where documents are that ``jsonb`` cannot hold.
        verdicts: where they are stored.
        accounts: a connection of its own, on which calls are reserved and settled.
        judge: who is asked.
        policy: under which.
        budget: within which.
        concurrency: calls under way at once.
        materialization_id: whose account is charged.
        progress: is told how far it is, now and then.
        tallies: by partition key, of all partitions that are judged.
        access: whose trajectories may be shown.
        turn: takes a turn under a limit that is shared with other workers; None where there is no limit.
    """

    parquet: ParquetStore
    verdicts: VerdictStore
    accounts: RetryingConnection
    judge: JudgeConfig
    policy: RefinementPolicy
    budget: Budget
    concurrency: int
    materialization_id: str
    progress: Callable[[str], None]
    stats: Mapping[str, JudgingStats]
    access: JudgeAccessList = UNRESTRICTED
    turn: RequestSlot | None = None

    def __post_init__(self) -> None:
        self.worker = new_worker()
        self._caps = self.budget.caps
        self._estimate = Estimate()
        self.left: set[JudgingCandidate] = set()
        """What ``judge_all`` has not come to an end with."""

    async def judge_all(self, tasks: Sequence[JudgingCandidate]) -> None:
        """Reach a verdict on each of these trajectories, in this order, or say why there is none.

        Raises:
            ProviderDownError: the judge's provider is down; what was not asked is left as it is, without a verdict.
            PipelineError: verdicts cannot be stored.
        """
        # On each connection a statement at a time, and off the loop, which has answers to read. That of the accounts is
        # one of its own: a call that may be made waits for nothing but them.
        accounting, storing = asyncio.Lock(), asyncio.Lock()
        self._account = MicroBatcher[CallReservation | Row, ReservationResult](accounting, self._accounted)
        self._save = MicroBatcher[Row, None](storing, self._saved)
        self._document = MicroBatcher[str, tuple[Row | None, str] | None](storing, self._documents)
        self._rendering = asyncio.Lock()
        self._open = asyncio.Semaphore(self.concurrency + max(1, self.concurrency // _CALLS_PER_ANSWER_TO_STORE))
        self._settled = asyncio.Condition()
        self._under_way = 0
        self._stopped = False
        self._exhausted: dict[str | None, BudgetShortfall] = {}
        self._began_at = self.verdicts.now()
        self._done, self._total, self._told_at = 0, len(tasks), time.monotonic()
        waiting = deque(tasks)
        self.left = set(tasks)
        try:
            with raised_gc_threshold(_CONTAINERS):
                async with self.judge.open_session(
                    turn=self.turn, half_open=self._was_down(), concurrency=self.concurrency
                ) as session:
                    while waiting:
                        elsewhere = await self._judge_waiting(waiting, session)
                        waiting = await self._left_by_others(elsewhere)
        finally:
            # Else others would wait until they expire.
            with suppress(PipelineError):
                self.verdicts.give_back_all(self.worker)
        self._log_progress()

    async def _judge_waiting(self, waiting: "deque[JudgingCandidate]", session: JudgeSession) -> list[JudgingCandidate]:
        """Work until nothing waits; returns what other workers are at."""
        failures: list[Exception] = []
        down: list[ProviderDownError] = []
        elsewhere: list[JudgingCandidate] = []

        async def work() -> None:
            while waiting and not failures and not down:
                task = waiting.popleft()
                try:
                    await self._judge_one(task, session)
                except _ClaimedElsewhere:
                    elsewhere.append(task)
                    continue
                except _Stopped:
                    return
                except ProviderDownError as error:
                    down.append(error)
                    return
                except Exception as error:  # raised below, when nothing is under way any more
                    self._stopped = True
                    failures.append(error)
                    return
                self._finish(task)
                if time.monotonic() - self._told_at > _TELL_EVERY_SECONDS:
                    self._log_progress()

        # While as many calls are under way as may be, the next are made ready, and the last are stored.
        workers = min(_TASKS_PER_CALL * self.concurrency, len(waiting))
        await asyncio.gather(*(work() for _ in range(workers)))
        if failures:
            raise failures[0]
        if down:
            left = f"{self._done} of {self._total} trajectories are done, the rest is left to a later run"
            raise ProviderDownError(f"{down[0]}: {left}.")
        return elsewhere

    def _was_down(self) -> bool:
        judge = self.judge
        latest = latest_error_classes(
            self.verdicts.connection, endpoint_without_credentials(judge.base_url), judge.model, judge.breaker_after
        )
        return is_outage(latest, judge.breaker_after)

    def _log_progress(self) -> None:
        self._told_at = time.monotonic()
        held = sum(tally.deferred.total() for tally in self.stats.values())
        cost = sum((tally.cost_usd for tally in self.stats.values()), Decimal(0))
        words = f", {held} held back by a cap" if held else ""
        self.progress(f"{self._done} of {self._total} trajectories judged, {cost} USD{words}")

    def _tally(self, task: JudgingCandidate) -> JudgingStats:
        return self.stats[task.partition_key]

    def _finish(self, task: JudgingCandidate) -> None:
        self.left.discard(task)
        self._done += 1

    async def _left_by_others(self, tasks: Sequence[JudgingCandidate]) -> "deque[JudgingCandidate]":
        """Wait for verdicts that other workers are at; returns those that nobody is at any more and that are due."""
        if tasks:
            self.progress(f"waiting for {len(tasks)} verdicts that another worker is at")
        open_tasks = {task.verdict_key: task for task in tasks}
        while open_tasks:
            live = await asyncio.to_thread(live_locks, self.verdicts.connection, list(open_tasks))
            ended = [task for key, task in open_tasks.items() if key not in live]
            there = await asyncio.to_thread(self.verdicts.verdicts, [task.key for task in ended])
            left: deque[JudgingCandidate] = deque()
            for task in ended:
                verdict = there.get(task.key)
                # Whatever another came to in the meantime holds: a failed one is tried again when that is due.
                if verdict is not None and (
                    verdict["verdict_status"] in FINAL_STATUSES or verdict["updated_at"] >= self._began_at
                ):
                    self._tally(task).claimed_elsewhere += 1
                    self._finish(task)
                    del open_tasks[task.verdict_key]
                else:
                    left.append(task)
            if left:
                left.extend(task for key, task in open_tasks.items() if key in live)
                return left
            await asyncio.sleep(LOOK_AGAIN_SECONDS if open_tasks else 0)
        return deque()

    async def _judge_one(self, task: JudgingCandidate, session: JudgeSession) -> None:
        made: dict[str, CallRecord] = {}
        held_back: Row = {}
        async with AsyncExitStack() as until_stored:
            try:
                said = await self._reach_verdict(task, session, made, until_stored)
            except BudgetExhausted as exhausted:
                room = exhausted.no_room.headroom
                held_back = {"deferred_usd": room.usd, "deferred_tokens": room.tokens}
                said = _deferred(exhausted)
                self._tally(task).deferred[exhausted.no_room.cap.name] += 1
            except (PipelineError, _ClaimedElsewhere, _Stopped):
                raise
            except Exception as error:
                _LOG.exception("The verdict on %s failed by a fault of trajectory-pipeline", task.run_id)
                said = failed("internal_error", f"a fault of trajectory-pipeline: {type(error).__name__}: {error}")
            finally:
                attempts = list(made.values())
                self._count(attempts, self._tally(task))
                await self._forget([attempt for attempt in attempts if attempt.duration_ns is None])
            verdict = {
                "run_id": task.run_id,
                "verdict_key": task.verdict_key,
                "policy_id": self.policy.policy_id,
                "partition_key": task.partition_key,
                "content_digest": task.content_digest,
                "simulated": False,
                "shown_run_ids": [*task.earlier_run_ids, task.run_id],
                "shown_digests": [*task.earlier_digests, task.content_digest],
                "erased": False,
            }
            await self._save({**verdict, **_model(attempts), **held_back, **said})

    async def _reach_verdict(
        self, task: JudgingCandidate, session: JudgeSession, made: dict[str, CallRecord], until_stored: AsyncExitStack
    ) -> Row:
        """Return what there is to say of a trajectory: its verdict, or why there is none."""
        if task.message_count == 0:
            return {
                "verdict_status": "not_eligible",
                "error_class": "no_messages",
                "error_message": "the run ended before anything was said: there is nothing to judge",
            }
        refusal = self.access.refusal(task.agent_id, task.organization_id)
        if refusal is not None:
            return {
                "verdict_status": "not_eligible",
                "error_class": DENIED,
                "error_message": f"it may not be shown to a judge: {refusal}",
            }
        for scope in (None, task.organization_id or ""):
            if scope in self._exhausted:
                raise BudgetExhausted(self._exhausted[scope])
        documents: list[Mapping[str, Any]] = []
        for run_id in (*task.earlier_run_ids, task.run_id):
            found = await self._document(run_id)
            document, partition_key = found or (None, task.partition_key)
            if document is None:
                document = await asyncio.to_thread(whole_document, self.parquet, run_id, partition_key)
            if document is None:
                run = "it" if run_id == task.run_id else f"the earlier run {run_id}"
                words = f"the document of {run} is neither in Postgres nor in Parquet"
                missing = "document_missing" if run_id == task.run_id else "earlier_run_missing"
                return failed(missing, f"{words}: materialise trajectories of {partition_key}")
            documents.append(document)
        async with self._rendering:
            case = build_judge_request(documents, self.policy, self._estimate)
            # One for each pass of the loop: else answers would wait until the prompts of many are made.
            await asyncio.sleep(0)
        calls = _Calls(self, task, case, made)

        async def ask(messages: Sequence[dict[str, str]], answer_type: type[JudgeReply]) -> AskResult[JudgeReply]:
            return await session.ask(messages, answer_type, calls.began, calls.ended)

        self._tally(task).judged += case.calls > 0
        await until_stored.enter_async_context(self._open)
        return await judge(case, task.heuristic_outcome, ask)

    async def begin(self, beginning: CallReservation) -> None:
        """Reserve room for a call; waits while calls of this worker's own that are under way may make room.

        Raises:
            BudgetExhausted: there is no room.
            _Elsewhere: another worker is at the verdict.
            _Stopped: something else failed meanwhile.
        """
        while True:
            if self._stopped:
                raise _Stopped
            refusal = await self._account(beginning)
            if refusal is None:
                self._under_way += 1
                return
            if isinstance(refusal, AlreadyClaimed):
                raise _ClaimedElsewhere
            async with self._settled:
                if not (refusal.could_free_up and self._under_way):
                    self._note(refusal, beginning.attempt["organization_id"])
                    raise BudgetExhausted(refusal)
                await self._settled.wait()

    async def end(self, row: Row) -> None:
        """Settle a call that ended."""
        await self._account(row)
        await self._forget([row])

    async def _forget(self, calls: Sequence[object]) -> None:
        """Count calls as not under way any more, and let those who wait for room look again."""
        if calls:
            async with self._settled:
                self._under_way -= len(calls)
                self._settled.notify_all()

    def _note(self, refusal: BudgetShortfall, organization_id: str | None) -> None:
        """Remember a cap that has no room even for the smallest call: what else it holds back is not looked at."""
        least = self.budget.max_call_cost(
            self.judge.model, self.judge.base_url, overhead_tokens(), self.judge.max_response_tokens
        )
        if not self._under_way and refusal.remaining < refusal.cap.of(least):
            scope = (organization_id or "") if refusal.cap.scope == "organization" else None
            self._exhausted[scope] = replace(refusal, headroom=least)

    def _accounted(self, items: "Sequence[CallReservation | Row]") -> list[ReservationResult]:
        calls = [item for item in items if isinstance(item, CallReservation)]
        ended = [item for item in items if not isinstance(item, CallReservation)]
        refusals = iter(settle_and_reserve(self.accounts, self._caps, calls, ended))
        return [next(refusals) if isinstance(item, CallReservation) else None for item in items]

    def _saved(self, rows: Sequence[Row]) -> list[None]:
        self.verdicts.save_verdicts(rows, self.worker)
        return [None] * len(rows)

    def _documents(self, run_ids: Sequence[str]) -> list[tuple[Row | None, str] | None]:
        found = self.verdicts.documents(run_ids)
        return [found.get(run_id) for run_id in run_ids]

    def _count(self, attempts: Sequence[CallRecord], tally: JudgingStats) -> None:
        tally.calls += len(attempts)
        tally.unpriced_calls += sum(
            attempt.cost_usd is None for attempt in attempts if attempt.result not in ("error", "lost")
        )
        tally.cost_usd += sum((attempt.cost_usd or Decimal(0) for attempt in attempts), Decimal(0))
        tally.models |= {attempt.response_model for attempt in attempts if attempt.response_model}


@dataclass
class _Calls:
    """The calls for one verdict: reserved before they are sent, settled when they ended."""

    judging: JudgeWorker
    task: JudgingCandidate
    case: JudgeRequest
    made: dict[str, CallRecord]

    async def began(self, attempt: CallRecord) -> None:
        judging = self.judging
        prompt, answer = attempt.estimated_prompt_tokens, attempt.max_response_tokens
        usd = judging.budget.prices.max_cost(attempt.model, judging.judge.base_url, prompt, answer)
        reserved = Cost(usd or Decimal(0), prompt + answer)
        # Until its end is seen, it is lost, at what it may have cost.
        row = {
            **self._row(replace(attempt, cost_usd=usd)),
            "reserved_usd": usd,
            "reserved_tokens": reserved.tokens,
            "organization_id": self.task.organization_id,
            "materialization_id": judging.materialization_id,
        }
        claim = VerdictLock(
            self.task.run_id,
            self.task.verdict_key,
            judging.worker,
            judging.judge.timeout_seconds + CLAIM_SECONDS,
        )
        await judging.begin(CallReservation(row, reserved, self._room(reserved), claim))
        self.made[attempt.attempt_id] = replace(attempt, cost_usd=usd)

    async def ended(self, attempt: CallRecord) -> None:
        reserved = self.made[attempt.attempt_id].cost_usd
        if attempt.result == "lost":
            settled = replace(attempt, cost_usd=reserved)
        else:
            cost = self.judging.budget.prices.cost(
                attempt.model, attempt.response_model, attempt.usage, self.judging.judge.base_url
            )
            settled = replace(attempt, cost_usd=cost)
        await self.judging.end(self._row(settled))
        self.made[attempt.attempt_id] = settled

    def _room(self, reserved: Cost) -> Cost:
        """Return the room that must be there: for the first of several calls, that of all, or none is made."""
        if self.made or self.case.calls <= 1:
            return reserved
        judge = self.judging.judge
        whole = self.judging.budget.max_call_cost(
            judge.model, judge.base_url, self.case.prompt_tokens, self.case.calls * judge.max_response_tokens
        )
        return Cost(max(reserved.usd, whole.usd), max(reserved.tokens, whole.tokens))

    def _row(self, attempt: CallRecord) -> Row:
        return {
            **attempt.as_row(),
            "run_id": self.task.run_id,
            "verdict_key": self.task.verdict_key,
            "policy_id": self.judging.policy.policy_id,
        }


def _deferred(exhausted: BudgetExhausted) -> Row:
    return {
        "verdict_status": "deferred_budget",
        "error_class": exhausted.no_room.cap.name,
        "error_message": str(exhausted),
    }


def _model(attempts: Sequence[CallRecord]) -> Row:
    if not attempts:
        return {}
    answered = attempts[-1].response_model
    # Whatever name it gives itself, it answers under the name that was asked for.
    return {
        "model": answered,
        "response_format": attempts[-1].response_format,
        "simulated": is_simulated(answered) or is_simulated(attempts[-1].model),
    }
