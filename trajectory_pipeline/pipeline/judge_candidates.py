"""Judges given trajectories, with one judge or with all that vote: opens what a worker needs, and runs it."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.pipeline.batch_inbox import BatchInbox
from trajectory_pipeline.pipeline.batch_outbox import BatchOutbox
from trajectory_pipeline.pipeline.call_budget import rate_limit
from trajectory_pipeline.pipeline.judge_worker import JudgeWorker
from trajectory_pipeline.pipeline.judging_stats import JudgingStats
from trajectory_pipeline.pipeline.voting import Unfinished, Voting
from trajectory_pipeline.schema.enums import JudgeMode
from trajectory_pipeline.storage.postgres.judge_batches import open_batches
from trajectory_pipeline.storage.postgres.rate_limiter import open_rate_limiter
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline.storage.storage import Storage

_T = TypeVar("_T")


def judge_candidates(
    candidates: Sequence[JudgingCandidate],
    storage: Storage,
    judge: JudgeConfig,
    *,
    verdicts: VerdictStore,
    materialization_id: str,
    progress: Callable[[str], None],
    stats: Mapping[str, JudgingStats],
    on_complete: Callable[[str], None] = lambda _: None,
    mode: JudgeMode = JudgeMode.ONLINE,
    inbox: BatchInbox | None = None,
) -> Unfinished:
    """Judge each of them; returns those that are left without a verdict, and the error that ended it, if any.

    In the mode ``batch``, what fits one prompt is submitted instead; with an ``inbox``, answers come from a batch. The
    judge's redaction key must be resolved. For the other arguments see ``JudgeWorker``.
    """
    if not candidates:
        return (), None
    if judge.voters:

        def judge_alone(
            votes: Sequence[JudgingCandidate],
            voter: JudgeConfig,
            voter_stats: Mapping[str, JudgingStats],
            on_votes: Callable[[str], None],
        ) -> Unfinished:
            return judge_candidates(
                votes,
                storage,
                voter,
                verdicts=verdicts,
                materialization_id=materialization_id,
                progress=progress,
                stats=voter_stats,
                on_complete=on_votes,
            )

        return Voting(candidates, storage, judge, verdicts, stats, judge_alone, on_complete).run()
    with (
        open_verdicts(storage.postgres) as calls,
        open_verdicts(storage.postgres) as claims,
        open_rate_limiter(storage.postgres, rate_limit(judge)) as request_slot,
        open_batches(storage.postgres) as batches,
    ):
        outbox = BatchOutbox(batches, judge, materialization_id, progress) if mode == JudgeMode.BATCH else None
        worker = JudgeWorker(
            candidates,
            parquet=storage.parquet,
            verdicts=verdicts,
            ledger=calls.connection,
            claims=claims.connection,
            judge=judge,
            materialization_id=materialization_id,
            progress=progress,
            stats=stats,
            request_slot=request_slot,
            outbox=outbox,
            inbox=inbox,
            on_complete=on_complete,
        )
        try:
            run_to_end(worker.judge_all())
        except Exception as error:
            return worker.unfinished, error
    return (), None


def run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end; returns its result.

    Also where this thread runs an event loop already, as a notebook does.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, work).result()
