"""Judges many trajectories at once: each is claimed and paid for within the budget, and stored as soon as it is known.

Its parts: ``call_budget`` (claims, reservations), ``claimed_verdicts`` (other workers), ``documents`` (what is shown),
``verdict_rows``, and ``judging_stats``.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.budget.caps import BudgetExhausted
from trajectory_pipeline.budget.token_estimate import TokenEstimate
from trajectory_pipeline.errors import PipelineError, ProviderDownError
from trajectory_pipeline.judge.client.backoff import RequestSlot
from trajectory_pipeline.judge.client.call_record import AskResult, CallRecord, JudgeReply
from trajectory_pipeline.judge.client.errors import is_outage
from trajectory_pipeline.judge.client.session import JudgeSession, open_session
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.judge_trajectory import build_judge_request, failed, judge
from trajectory_pipeline.pipeline.call_budget import CallBudget, ClaimedElsewhere, JudgingStopped, VerdictCalls
from trajectory_pipeline.pipeline.claimed_verdicts import look_up_claims
from trajectory_pipeline.pipeline.documents import DocumentLoader, MissingDocumentError
from trajectory_pipeline.pipeline.judging_stats import JudgingProgress, JudgingStats
from trajectory_pipeline.pipeline.micro_batcher import MicroBatcher
from trajectory_pipeline.pipeline.verdict_rows import deferred, document_missing, identity, not_eligible
from trajectory_pipeline.runtime.gc_threshold import raised_gc_threshold
from trajectory_pipeline.schema.enums import ErrorClass
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection
from trajectory_pipeline.storage.postgres.verdict_locks import new_worker
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore
from trajectory_pipeline.urls import endpoint_without_credentials

CLAIM_POLL_SECONDS = 0.5
"""Between two looks at verdicts that other workers have claimed."""
_TASKS_PER_CALL = 2
"""Concurrent trajectories for each call that may be in flight: one in its call, one before or after its own."""
_CALLS_PER_UNSTORED_ANSWER = 4
"""For so many calls that may be in flight, one more answer may be on its way into Postgres.

A killed process loses no more paid answers than both together.
"""
_GC_THRESHOLD = 50_000
"""New objects between two runs of the garbage collector; a full collection takes a hundred times as many."""

_LOG = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass
class JudgeWorker:
    """Judges a list of trajectories under one policy, once.

    If storing a verdict fails, no further call begins, and calls in flight are waited for: they are paid for, and their
    verdicts may still be stored. An unexpected error in one verdict affects that verdict only.

    Attributes:
        candidates: what to judge, in this order.
        parquet: where documents are that ``jsonb`` cannot hold.
        verdicts: where verdicts are stored.
        ledger: another connection, on which calls are reserved and settled.
        judge: that is asked, under its policy and within its budget.
        materialization_id: that calls are charged to.
        progress: takes a progress line now and then.
        stats: by partition key, of all partitions that are judged.
        request_slot: waits under a rate limit that workers share; None without a limit.
    """

    candidates: Sequence[JudgingCandidate]
    parquet: ParquetStore
    verdicts: VerdictStore
    ledger: RetryingConnection
    judge: JudgeConfig
    materialization_id: str
    progress: Callable[[str], None]
    stats: Mapping[str, JudgingStats]
    request_slot: RequestSlot | None = None

    def __post_init__(self) -> None:
        self.unfinished = set(self.candidates)
        """Candidates without a verdict, so far."""
        self._progress = JudgingProgress(len(self.candidates), self.stats, self.progress)
        self._policy = self.judge.policy
        self._worker = new_worker()
        self._started_at = self.verdicts.now()
        self._calls = CallBudget(
            self.ledger,
            self.judge,
            policy_id=self._policy.policy_id,
            materialization_id=self.materialization_id,
            worker=self._worker,
        )
        connection_lock = asyncio.Lock()
        self._documents = DocumentLoader(self.parquet, self.verdicts, connection_lock)
        self._save = MicroBatcher[Row, None](connection_lock, self._save_verdicts)
        self._estimate = TokenEstimate()
        self._rendering = asyncio.Lock()
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
        waiting = deque(self.candidates)
        try:
            with raised_gc_threshold(_GC_THRESHOLD):
                async with open_session(
                    self.judge, request_slot=self.request_slot, half_open=self._was_down()
                ) as session:
                    while waiting:
                        claimed = await self._judge_waiting(waiting, session)
                        waiting = await self._wait_for_others(claimed)
        finally:
            # Other workers would wait until these claims expire.
            with suppress(PipelineError):
                self.verdicts.release_locks(self._worker)
        self._progress.report_now()

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
                    self._calls.stop()
                    failures.append(error)
                    return
                self._finish(candidate)
                self._progress.report_if_due()

        # While calls are in flight, the next prompts are built and the last answers are stored.
        tasks = min(_TASKS_PER_CALL * self.judge.concurrency, len(waiting))
        await asyncio.gather(*(work() for _ in range(tasks)))
        if failures:
            raise failures[0]
        if outages:
            raise ProviderDownError(f"{outages[0]}: {self._progress} are done, the rest is left to a later run.")
        return claimed

    def _was_down(self) -> bool:
        judge = self.judge
        base_url = endpoint_without_credentials(judge.base_url)
        latest = self.verdicts.latest_error_classes(base_url, judge.model, judge.breaker_after)
        return is_outage(latest, judge.breaker_after)

    def _finish(self, candidate: JudgingCandidate) -> None:
        self.unfinished.discard(candidate)
        self._progress.count_done()

    async def _wait_for_others(self, claimed: Sequence[JudgingCandidate]) -> "deque[JudgingCandidate]":
        """Wait until a claim ends without a verdict; returns the candidates that are still to be judged, if any."""
        if claimed:
            self.progress(f"waiting for {len(claimed)} verdicts that other workers have claimed")
        while claimed:
            found = await look_up_claims(self.verdicts, claimed, since=self._started_at)
            for candidate in found.reached:
                self.stats[candidate.partition_key].claimed_elsewhere += 1
                self._finish(candidate)
            if found.free:
                return deque([*found.free, *found.claimed])
            claimed = found.claimed
            await asyncio.sleep(CLAIM_POLL_SECONDS if claimed else 0)
        return deque()

    async def _judge_one(self, candidate: JudgingCandidate, session: JudgeSession) -> None:
        """Reach a verdict and store it.

        Raises:
            ClaimedElsewhere: another worker has claimed it.
            JudgingStopped: something else failed meanwhile.
            PipelineError: the provider is down, or the verdict cannot be stored.
        """
        stats = self.stats[candidate.partition_key]
        calls = VerdictCalls(self._calls, candidate)
        async with AsyncExitStack() as until_stored:
            try:
                verdict = await self._reach_verdict(candidate, session, calls, until_stored)
            except BudgetExhausted as exhausted:
                verdict = deferred(exhausted)
                stats.deferred[exhausted.shortfall.cap.name] += 1
            except (PipelineError, ClaimedElsewhere, JudgingStopped):
                raise
            except Exception as error:
                _LOG.exception("The verdict on %s failed: a defect of trajectory-pipeline", candidate.run_id)
                verdict = failed("internal_error", f"a defect of trajectory-pipeline: {type(error).__name__}: {error}")
            finally:
                stats.add_calls(calls.records)
                await calls.release_lost()
            await self._save({**identity(candidate, self._policy.policy_id), **calls.model_columns(), **verdict})

    async def _reach_verdict(
        self, candidate: JudgingCandidate, session: JudgeSession, calls: VerdictCalls, until_stored: AsyncExitStack
    ) -> Row:
        """Return the columns of a verdict, or of why there is none."""
        if candidate.message_count == 0:
            return not_eligible("no_messages", "the run has no messages: there is nothing to judge")
        refusal = self.judge.access.refusal(candidate.agent_id, candidate.organization_id)
        if refusal is not None:
            return not_eligible(ErrorClass.DENIED, f"it may not be sent to a judge: {refusal}")
        self._calls.check_headroom(candidate.organization_id)
        try:
            documents = await self._documents.load(candidate)
        except MissingDocumentError as missing:
            return document_missing(candidate, missing)
        async with self._rendering:
            request = build_judge_request(documents, self._policy, self._estimate)
            # One prompt for each pass of the loop: else answers wait until many prompts are built.
            await asyncio.sleep(0)

        async def begin(call: CallRecord) -> None:
            await calls.begin(call, request)

        async def ask(messages: Sequence[dict[str, str]], answer_type: type[JudgeReply]) -> AskResult[JudgeReply]:
            return await session.ask(messages, answer_type, begin, calls.end)

        self.stats[candidate.partition_key].judged += request.calls > 0
        await until_stored.enter_async_context(self._unstored)
        return await judge(request, candidate.heuristic_outcome, ask)

    def _save_verdicts(self, rows: Sequence[Row]) -> list[None]:
        self.verdicts.save_verdicts(rows, self._worker)
        return [None] * len(rows)
