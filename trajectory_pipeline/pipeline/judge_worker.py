"""Judges many trajectories at once: each is claimed, paid for within the budget, and stored as soon as it is known."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

from trajectory_pipeline.budget.caps import BudgetExhausted
from trajectory_pipeline.budget.token_estimate import TokenEstimate
from trajectory_pipeline.errors import PipelineError, ProviderDownError, describe_defect
from trajectory_pipeline.judge.client.backoff import RequestSlot
from trajectory_pipeline.judge.client.call_record import AskResult, JudgeReply
from trajectory_pipeline.judge.client.decisions import DecisionResult
from trajectory_pipeline.judge.client.errors import is_outage
from trajectory_pipeline.judge.client.http_call import HttpReply
from trajectory_pipeline.judge.client.session import JudgeSession, open_session
from trajectory_pipeline.judge.config import JudgeConfig, Voter
from trajectory_pipeline.judge.decide import decide
from trajectory_pipeline.judge.judge_trajectory import (
    RENDERING_SECONDS,
    JudgeRequest,
    RequestBuilder,
    failed,
    judge,
)
from trajectory_pipeline.judge.policy import verdict_key
from trajectory_pipeline.judge.redaction.redactor import RedactionTimeoutError
from trajectory_pipeline.judge.transcript.context import TaskContext
from trajectory_pipeline.pipeline.agent_contexts import AgentContexts
from trajectory_pipeline.pipeline.batch_inbox import SUPERSEDED, BatchInbox
from trajectory_pipeline.pipeline.batch_outbox import BatchOutbox
from trajectory_pipeline.pipeline.call_budget import (
    CLAIM_EXTRA_SECONDS,
    CallBudget,
    ClaimedElsewhere,
    JudgingStopped,
    VerdictCalls,
)
from trajectory_pipeline.pipeline.documents import DocumentLoader, MissingDocumentError
from trajectory_pipeline.pipeline.judging_stats import JudgingStats
from trajectory_pipeline.pipeline.micro_batcher import MicroBatcher
from trajectory_pipeline.pipeline.renderer import Renderer
from trajectory_pipeline.runtime.gc_threshold import raised_gc_threshold
from trajectory_pipeline.schema.enums import FINAL_STATUSES, ErrorClass, VerdictStatus
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection
from trajectory_pipeline.storage.postgres.verdict_locks import ExpiredClaims, claim_holders, new_worker, renew_locks
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore
from trajectory_pipeline.urls import without_credentials

REPORT_SECONDS = 5.0
"""Least time between two progress lines."""
CLAIM_POLL_SECONDS = 0.5
"""Between two queries for verdicts that other workers have claimed."""
CLAIM_RENEW_SECONDS = 2.0
"""Between two renewals of this worker's claims."""
_TASKS_PER_CALL = 2
"""Concurrent trajectories for each call that may be in flight: one in its call, one before or after its own."""
_CALLS_PER_UNSTORED_ANSWER = 4
"""For so many calls that may be in flight, one more answer may be on its way into Postgres.

A killed process loses no more paid answers than both together.
"""
_GC_THRESHOLD = 2_000
"""New objects between two runs of the garbage collector; a full collection takes a hundred times as many.

What a call leaves behind refers to itself: with 50,000, two thousand calls left 180 MB.
"""

_LOG = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass
class JudgeWorker:
    """Judges a list of trajectories under one policy, once.

    If storing a verdict fails, no further call begins, and calls in flight are waited for: they are paid for, and their
    verdicts may still be stored. An unexpected error in one verdict affects that verdict only. Calls are reserved and
    settled on another connection, ``ledger``, and claims are renewed on a third, ``claims``. ``stats`` are by partition
    key, of all partitions that are judged.
    With an ``outbox``, what fits one prompt goes into batches instead; with an ``inbox``, answers come from a batch.
    ``on_complete`` is called in a thread, for one partition at a time, when the last verdict of a partition is stored.
    """

    candidates: Sequence[JudgingCandidate]
    parquet: ParquetStore
    verdicts: VerdictStore
    ledger: RetryingConnection
    claims: RetryingConnection
    judge: JudgeConfig
    materialization_id: str
    progress: Callable[[str], None]
    stats: Mapping[str, JudgingStats]
    request_slot: RequestSlot | None = None
    outbox: BatchOutbox | None = None
    inbox: BatchInbox | None = None
    on_complete: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self.unfinished = set(self.candidates)
        """Candidates without a verdict, so far."""
        self._left = Counter(candidate.partition_key for candidate in self.candidates)
        self._completing = asyncio.Lock()
        self._dead_holders: dict[str, str] = {}
        self._reported_at = time.monotonic()
        self._policy = self.judge.policy
        self._worker = self.inbox.worker if self.inbox else new_worker()
        self._started_at = self.verdicts.now()
        self._calls = CallBudget(self.ledger, self.judge, self.materialization_id, self._worker)
        connection_lock = asyncio.Lock()
        self._contexts = AgentContexts(self.parquet, self.candidates)
        self._documents = DocumentLoader(self.parquet, self.verdicts, connection_lock)
        self._save = MicroBatcher[Row, None](connection_lock, self._save_verdicts)
        self._stated = MicroBatcher[tuple[str, str], list[Row]](connection_lock, self._requirements)
        self._estimate = TokenEstimate()
        self._render = Renderer(len(self.candidates))
        self._unstored = asyncio.Semaphore(
            self.judge.concurrency + max(1, self.judge.concurrency // _CALLS_PER_UNSTORED_ANSWER)
        )

    async def judge_all(self) -> None:
        """Store a verdict on each candidate, or why it has none.

        Raises:
            ProviderDownError: the judge's provider is down; candidates that were not asked about stay without a
                verdict.
            PipelineError: verdicts cannot be stored.
        """
        waiting, judge = deque(self.candidates), self.judge
        endpoint = without_credentials(judge.base_url)
        latest = self.verdicts.latest_error_classes(endpoint, judge.model, judge.breaker_after)
        was_down = is_outage(latest, judge.breaker_after)
        renewal = asyncio.create_task(self._renew_claims())
        try:
            with raised_gc_threshold(_GC_THRESHOLD):
                async with open_session(judge, request_slot=self.request_slot, half_open=was_down) as session:
                    if self.outbox:
                        waiting = await self.outbox.open(session, self._worker, waiting, self._judge_waiting)
                    while waiting:
                        claimed = await self._judge_waiting(waiting, session)
                        waiting = await self._wait_for_others(claimed)
                    if self.outbox:
                        try:
                            await self.outbox.send()
                        finally:
                            self.unfinished |= self.outbox.unsent
        finally:
            renewal.cancel()
            self._render.close()
            if self.outbox:
                with suppress(PipelineError):
                    self.outbox.close()
            # Other workers would wait until these claims expire.
            with suppress(PipelineError):
                self.verdicts.release_locks(self._worker)
        self._report()

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(CLAIM_RENEW_SECONDS)
            with suppress(PipelineError):
                await asyncio.to_thread(renew_locks, self.claims, self._worker, CLAIM_EXTRA_SECONDS)

    async def _judge_waiting(self, waiting: "deque[JudgingCandidate]", session: JudgeSession) -> list[JudgingCandidate]:
        """Judge until nothing waits; returns what other workers have claimed."""
        failures: list[Exception] = []
        outages: list[ProviderDownError] = []
        claimed: list[JudgingCandidate] = []

        async def work() -> None:
            while waiting and not failures and not outages:
                candidate = waiting.popleft()
                try:
                    await self._judge_one(candidate, session)
                except ClaimedElsewhere:
                    claimed.append(candidate)
                    continue
                except JudgingStopped:
                    return
                except ProviderDownError as error:
                    outages.append(error)
                    return
                except Exception as error:  # raised below, when no call is in flight any more
                    self._calls.stopped = True
                    failures.append(error)
                    return
                await self._finish(candidate)
                if time.monotonic() - self._reported_at > REPORT_SECONDS:
                    self._report()

        # While calls are in flight, the next prompts are built and the last answers are stored.
        tasks = min(_TASKS_PER_CALL * self.judge.concurrency, len(waiting))
        await asyncio.gather(*(work() for _ in range(tasks)))
        if failures:
            raise failures[0]
        if outages:
            raise ProviderDownError(f"{outages[0]}: {self._done()} are done, the rest is left to a later run.")
        return claimed

    async def _finish(self, candidate: JudgingCandidate) -> None:
        self.unfinished.discard(candidate)
        key = candidate.partition_key
        self._left[key] -= 1
        if not self._left[key]:
            async with self._completing:
                await asyncio.to_thread(self.on_complete, key)

    def _done(self) -> str:
        return f"{len(self.candidates) - len(self.unfinished)} of {len(self.candidates)} trajectories"

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        deferred = sum(stats.deferred.total() for stats in self.stats.values())
        cost = sum((stats.cost_usd for stats in self.stats.values()), Decimal(0))
        suffix = f", {deferred} deferred by a cap" if deferred else ""
        self.progress(f"{self._done()} judged, {cost} USD{suffix}")

    async def _wait_for_others(self, claimed: Sequence[JudgingCandidate]) -> "deque[JudgingCandidate]":
        """Wait until a claim ends without a verdict; returns the candidates that are still to be judged, if any."""
        if claimed:
            self.progress(f"waiting for {len(claimed)} verdicts that other workers have claimed")
        expired = ExpiredClaims()
        while claimed:
            keys = [one.verdict_key for one in claimed]
            holders = await asyncio.to_thread(claim_holders, self.verdicts.connection, keys)
            dead = expired.dead_holders(holders)
            self._dead_holders |= dead
            waited_for = holders.keys() - dead.keys()
            ended = [one for one in claimed if one.verdict_key not in waited_for]
            claimed = [one for one in claimed if one.verdict_key in waited_for]
            stored = await asyncio.to_thread(self.verdicts.verdicts, [one.key for one in ended])
            free: list[JudgingCandidate] = []
            for candidate in ended:
                verdict = stored.get(candidate.key)
                # Whatever was stored meanwhile holds: a failed verdict is tried again when that is due.
                has_ended = (*FINAL_STATUSES, VerdictStatus.SUBMITTED)
                if verdict is not None and (
                    verdict["verdict_status"] in has_ended or verdict["updated_at"] >= self._started_at
                ):
                    self.stats[candidate.partition_key].claimed_elsewhere += 1
                    await self._finish(candidate)
                else:
                    free.append(candidate)
            if free:
                return deque([*free, *claimed])
            await asyncio.sleep(CLAIM_POLL_SECONDS if claimed else 0)
        return deque()

    async def _judge_one(self, candidate: JudgingCandidate, session: JudgeSession) -> None:
        """Reach a verdict and store it."""
        stats = self.stats[candidate.partition_key]
        batch_id = self.inbox.batch_id if self.inbox else None
        calls = VerdictCalls(self._calls, candidate, self._dead_holders.pop(candidate.verdict_key, None), batch_id)
        verdict: Row = {}
        async with AsyncExitStack() as until_stored:
            try:
                verdict = await self._reach_verdict(candidate, session, calls, until_stored)
            except BudgetExhausted as exhausted:
                verdict = _deferred(exhausted)
                stats.deferred[exhausted.shortfall.cap.name] += 1
            except (PipelineError, ClaimedElsewhere, JudgingStopped):
                raise
            except Exception as error:
                _LOG.exception("The verdict on %s failed: a defect of trajectory-pipeline", candidate.run_id)
                verdict = failed("internal_error", describe_defect(error))
            finally:
                if verdict.get("verdict_status") == VerdictStatus.SUBMITTED:
                    stats.submitted += 1
                else:
                    stats.add_calls(calls.by_id.values())
                await calls.release_lost()
            await self._save(
                {**verdict_identity(candidate, self._policy.policy_id), **calls.model_columns(), **verdict}
            )

    async def _reach_verdict(
        self, candidate: JudgingCandidate, session: JudgeSession, calls: VerdictCalls, until_stored: AsyncExitStack
    ) -> Row:
        """Return the columns of a verdict, or of why there is none."""
        if candidate.message_count == 0:
            return _not_eligible("no_messages", "the run has no messages: there is nothing to judge")
        refusal = self.judge.access.refusal(candidate.agent_id, candidate.organization_id)
        if refusal is not None:
            return _not_eligible(ErrorClass.DENIED, f"it may not be sent to a judge: {refusal}")
        if self.inbox is None:
            # An answer of a batch is paid for, whatever a cap has left.
            self._calls.check_headroom(candidate.organization_id)
        try:
            documents = await self._documents.of_task(candidate)
            earlier = await self._documents.of_conversation(candidate)
            # A file is read off the loop.
            context = TaskContext(await asyncio.to_thread(self._contexts.of, candidate), earlier)
        except MissingDocumentError as missing:
            error_class = "document_missing" if missing.run_id == candidate.run_id else "earlier_run_missing"
            return failed(error_class, str(missing))
        try:
            # A batch is collected by another process, which must see the same text.
            estimate = TokenEstimate() if self.outbox or self.inbox else self._estimate
            builder = RequestBuilder(documents, self._policy, estimate, RENDERING_SECONDS, context)
            tokens = self._policy.max_prompt_tokens
            request = builder.request(tokens, await self._render(builder.rendering(tokens)))
        except RedactionTimeoutError:
            return _too_slow()
        if self.outbox and self.outbox.takes(request):
            return await self.outbox.add(calls, request)
        in_batch: HttpReply | None = None
        if self.inbox:
            in_batch = self.inbox.reply(candidate, request)
            if in_batch is None:
                return failed(ErrorClass.SUPERSEDED, SUPERSEDED)
            await calls.resume(self.inbox.sent(candidate))

        async def ask(messages: Sequence[dict[str, str]], answer_type: type[JudgeReply]) -> AskResult[JudgeReply]:
            nonlocal in_batch
            answered, in_batch = in_batch, None
            return await session.ask(messages, answer_type, partial(calls.begin, request=request), calls.end, answered)

        self.stats[candidate.partition_key].judged += request.calls > 0
        await until_stored.enter_async_context(self._unstored)
        if self.judge.statements_from is not None:
            return await self._decide(candidate, request, session, calls, self.judge.statements_from)
        try:
            return await judge(request, candidate.heuristic_outcome, ask)
        except RedactionTimeoutError:  # of a smaller prompt
            return _too_slow()

    async def _decide(
        self,
        candidate: JudgingCandidate,
        request: JudgeRequest,
        session: JudgeSession,
        calls: VerdictCalls,
        stated_by: Voter,
    ) -> Row:
        """Return a vote of a decision endpoint on the requirements of a text judge's first vote."""
        stated = await self._stated(sample_of(candidate, stated_by, 0).key)

        async def ask(messages: Sequence[dict[str, str]], statements: Sequence[str]) -> DecisionResult:
            return await session.decide(messages, statements, partial(calls.begin, request=request), calls.end)

        return await decide(request, stated, candidate.heuristic_outcome, ask)

    def _requirements(self, keys: Sequence[tuple[str, str]]) -> list[list[Row]]:
        found = self.verdicts.verdicts(keys)
        return [found[key]["requirements"] or [] if key in found else [] for key in keys]

    def _save_verdicts(self, rows: Sequence[Row]) -> list[None]:
        self.verdicts.save_verdicts(rows, self._worker)
        return [None] * len(rows)


def sample_of(candidate: JudgingCandidate, voter: Voter, sample: int) -> JudgingCandidate:
    """Return the verdict that a judge is asked for as one of its votes on a trajectory."""
    repetition = candidate.repetition * voter.samples + sample
    key = verdict_key(
        [*candidate.earlier_digests, candidate.content_digest],
        voter.judge.policy,
        repetition,
        conversation_digests=candidate.conversation_digests,
        context_digest=candidate.context_digest,
    )
    return replace(
        candidate,
        verdict_key=key,
        repetition=repetition,
        status="new",
        error_class=None,
        backing_off=False,
    )


def verdict_identity(candidate: JudgingCandidate, policy_id: str) -> Row:
    """Return the columns of a verdict that say what it is on, and under which policy."""
    return {
        "run_id": candidate.run_id,
        "verdict_key": candidate.verdict_key,
        "policy_id": policy_id,
        "repetition": candidate.repetition,
        "partition_key": candidate.partition_key,
        "content_digest": candidate.content_digest,
        "simulated": False,
        "shown_run_ids": list(candidate.shown_run_ids),
        "shown_digests": list(candidate.shown_digests),
        "erased": False,
    }


def _not_eligible(error_class: str, message: str) -> Row:
    return {"verdict_status": "not_eligible", "error_class": error_class, "error_message": message}


def _too_slow() -> Row:
    return failed(
        ErrorClass.RENDERING_TIMEOUT,
        f"rendering and redacting the transcript took longer than {RENDERING_SECONDS:g} seconds: nothing more of it was"
        " sent. Look for a very large or odd text in it with `trajectory-pipeline show`, or deny its agent.",
    )


def _deferred(exhausted: BudgetExhausted) -> Row:
    shortfall = exhausted.shortfall
    return {
        "verdict_status": "deferred_budget",
        "error_class": shortfall.cap.name,
        "error_message": str(exhausted),
        "deferred_usd": shortfall.headroom.usd,
        "deferred_tokens": shortfall.headroom.tokens,
    }
