"""The third stage: a verdict on each trajectory of a partition, in Postgres as it arrives and then in Parquet.

Belongs here: which trajectories are asked about, and how calls overlap. Does not belong here: what is asked and what
follows from the answer (``refinement``).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.hours import key_of
from trajectory_pipeline.refinement.ask import Asked, Attempt, Judge, Session
from trajectory_pipeline.refinement.assess import assess
from trajectory_pipeline.refinement.policy import RefinementPolicy, verdict_key
from trajectory_pipeline.refinement.pricing import is_simulated
from trajectory_pipeline.refinement.prompt import messages
from trajectory_pipeline.refinement.render import render
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.trajectory import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.types import Scalar, Sink
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.sinks.database import LedgerEntry, TrajectoryDatabase
from trajectory_pipeline.sinks.parquet import ParquetStore, Written
from trajectory_pipeline.sinks.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline.trajectories.document import document_of
from trajectory_pipeline.trajectories.json_text import write

FINAL = frozenset({"judged", "insufficient_evidence", "not_eligible", "quarantined"})
"""Statuses that are not asked about again under the same policy and content."""

Row = dict[str, Any]


@dataclass
class RefinementResult:
    """What a materialisation of ``refined_outcomes`` did.

    Attributes:
        statuses: verdicts by status.
        outcomes: judged ones by outcome.
        errors: failed and quarantined ones by error class.
        disagreements: judged ones whose outcome differs from the heuristic one.
        asked: trajectories that were asked about now.
        reused: verdicts that were there already.
        calls: HTTP calls made now.
        cost_usd: of these calls, as far as it is known.
        unpriced_calls: calls whose price is not known.
        models: that answered.
        written: the Parquet file.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    disagreements: int = 0
    asked: int = 0
    reused: int = 0
    calls: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced_calls: int = 0
    models: set[str] = field(default_factory=set)
    written: Written | None = None


def materialize_refined_outcomes(
    hour: datetime,
    store: ParquetStore,
    database: TrajectoryDatabase,
    judge: Judge,
    policy: RefinementPolicy,
    *,
    concurrency: int = 16,
    dagster_run_id: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> RefinementResult:
    """Judge a partition's trajectories that have no verdict under the policy yet.

    A verdict is stored the moment it is known; a call that failed leaves a verdict that says so, without any score,
    and is tried again at the next materialisation.

    Args:
        hour: start of the partition, UTC.
        store: where the trajectories are, and where the Parquet file goes.
        database: where verdicts and attempts go.
        judge: who is asked.
        policy: under which.
        concurrency: calls under way at once.
        dagster_run_id: for the ledger.
        progress: is told how far it is, now and then.

    Raises:
        SinkError: a sink cannot be read or written; verdicts stored so far stay.
        PipelineError: the partition has no trajectories yet.
    """
    key = key_of(hour)
    if not store.exists(TRAJECTORIES, hour):
        raise PipelineError(
            f"There are no trajectories of {key} in {store.uri}: materialise trajectories of that partition first."
        )
    result = RefinementResult()
    verdicts: list[Row] = []
    with open_verdicts(database) as verdict_store, verdict_store.judging(key):
        verdict_store.use_policy(policy.policy_id, policy.definition, policy.model)
        for batch in store.read(TRAJECTORIES, hour):
            rows = [row for row in batch.to_pylist() if row["deleted_at"] is None]
            tasks = [_task(row, verdict_store, policy) for row in rows]
            asyncio.run(_judge_all(tasks, verdict_store, judge, policy, concurrency, result, progress))
            found = verdict_store.verdicts([(task.run_id, task.verdict_key) for task in tasks])
            verdicts.extend(found[task.run_id, task.verdict_key] for task in tasks)
    for verdict in verdicts:
        _count(verdict, result)
    with database.partition(REFINED_OUTCOMES.name, key) as partition:
        result.written = store.write(REFINED_OUTCOMES, hour, [_batch(verdicts)] if verdicts else [])
        partition.record(
            LedgerEntry(
                asset=REFINED_OUTCOMES.name,
                partition_key=key,
                result="complete",
                counts={**result.statuses, "calls": result.calls},
                content_digest=result.written.sha256,
                schema_version=SCHEMA_VERSION,
                dagster_run_id=dagster_run_id,
            )
        )
    return result


@dataclass(frozen=True)
class _Task:
    """One trajectory to be judged, with the earlier runs of its chain."""

    row: Mapping[str, Any]
    earlier: Sequence[Mapping[str, Any]]
    verdict_key: str

    @property
    def run_id(self) -> str:
        return str(self.row["run_id"])


def _task(row: Row, verdict_store: VerdictStore, policy: RefinementPolicy) -> _Task:
    earlier = verdict_store.earlier_runs(row["run_id"]) if row["continues_run_id"] else []
    digests = [run["content_digest"] for run in earlier]
    return _Task(row, earlier, verdict_key([*digests, row["content_digest"]], policy))


async def _judge_all(
    tasks: Sequence[_Task],
    verdict_store: VerdictStore,
    judge: Judge,
    policy: RefinementPolicy,
    concurrency: int,
    result: RefinementResult,
    progress: Callable[[str], None] | None,
) -> None:
    there = verdict_store.verdicts([(task.run_id, task.verdict_key) for task in tasks])
    due = [
        task for task in tasks if (there.get((task.run_id, task.verdict_key)) or {}).get("verdict_status") not in FINAL
    ]
    result.reused += len(tasks) - len(due)
    slots = asyncio.Semaphore(concurrency)
    database_turn = asyncio.Lock()
    done = 0

    async def stored(save: Callable[[Row], None], row: Row) -> None:
        async with database_turn:
            await asyncio.to_thread(save, row)

    async def judge_one(task: _Task, session: Session) -> None:
        nonlocal done
        async with slots:
            before = (there.get((task.run_id, task.verdict_key)) or {}).get("attempts", 0)
            await stored(
                verdict_store.save_verdict, await _verdict(task, session, verdict_store, policy, before, stored, result)
            )
        done += 1
        if progress is not None and (done % 25 == 0 or done == len(due)):
            progress(f"{done} of {len(due)} trajectories judged, {result.cost_usd} USD")

    async with judge.session() as session, asyncio.TaskGroup() as group:
        for task in due:
            group.create_task(judge_one(task, session))


Stored = Callable[[Callable[[Row], None], Row], Any]


async def _verdict(
    task: _Task,
    session: Session,
    verdict_store: VerdictStore,
    policy: RefinementPolicy,
    attempts_before: int,
    stored: Stored,
    result: RefinementResult,
) -> Row:
    verdict: Row = {
        "run_id": task.run_id,
        "verdict_key": task.verdict_key,
        "policy_id": policy.policy_id,
        "partition_key": task.row["partition_key"],
        "content_digest": task.row["content_digest"],
        "simulated": False,
        "attempts": attempts_before,
    }
    if task.row["message_count"] == 0:
        reason = "the run ended before anything was said: there is nothing to judge"
        return {**verdict, "verdict_status": "not_eligible", "error_class": "no_messages", "error_message": reason}
    rendered = render([*(run["data"] for run in task.earlier), document_of(task.row)], policy.max_prompt_tokens)
    if not rendered.fits:
        reason = (
            f"the transcript does not fit into {policy.max_prompt_tokens} tokens (TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS)"
        )
        return {**verdict, "verdict_status": "failed", "error_class": "too_long", "error_message": reason}
    result.asked += 1

    async def record(attempt: Attempt) -> None:
        await stored(verdict_store.save_attempt, _attempt_row(attempt, verdict))

    asked = await session.ask(messages(rendered.text), record, record)
    result.calls += len(asked.attempts)
    for attempt in asked.attempts:
        result.cost_usd += attempt.cost_usd or 0
        result.unpriced_calls += attempt.cost_usd is None
    answered = {attempt.answered_model for attempt in asked.attempts if attempt.answered_model}
    result.models |= answered
    verdict = {**verdict, **_spent(asked, attempts_before), "coverage": rendered.coverage}
    verdict["model"] = asked.attempts[-1].answered_model
    verdict["simulated"] = is_simulated(verdict["model"])
    if asked.answer is not None:
        assessment = assess(asked.answer, rendered, task.row["heuristic_outcome"])
        judged_at = datetime.now(UTC)
        return {**verdict, **assessment.columns, "verdict_status": assessment.verdict_status, "judged_at": judged_at}
    last = asked.attempts[-1]
    return {
        **verdict,
        "verdict_status": "quarantined" if asked.unusable else "failed",
        "error_class": last.error_class,
        "error_message": last.error_message,
        "raw_answer": asked.raw_answer,
    }


def _spent(asked: Asked, attempts_before: int) -> Row:
    used = [attempt.usage for attempt in asked.attempts if attempt.usage is not None]
    costs = [attempt.cost_usd for attempt in asked.attempts]
    told = [usage.cached_input_tokens for usage in used if usage.cached_input_tokens is not None]
    known = [cost for cost in costs if cost is not None]
    return {
        "input_tokens": sum(usage.input_tokens for usage in used) if used else None,
        "cached_input_tokens": sum(told) if told else None,
        "output_tokens": sum(usage.output_tokens for usage in used) if used else None,
        "cost_usd": sum(known, Decimal(0)) if known else None,
        "attempts": attempts_before + len(asked.attempts),
    }


def _attempt_row(attempt: Attempt, verdict: Row) -> Row:
    row = asdict(attempt)
    usage = row.pop("usage") or {}
    return {**row, **usage, **{name: verdict[name] for name in ("run_id", "verdict_key", "policy_id")}}


def _count(verdict: Row, result: RefinementResult) -> None:
    result.statuses[verdict["verdict_status"]] += 1
    if verdict["outcome"] is not None:
        result.outcomes[verdict["outcome"]] += 1
    if verdict["verdict_status"] in ("failed", "quarantined"):
        result.errors[verdict["error_class"]] += 1
    result.disagreements += bool(verdict["disagrees"])


def _batch(verdicts: Sequence[Row]) -> pa.RecordBatch:
    json_columns = {column.name for column in REFINED_OUTCOMES.in_sink(Sink.PARQUET) if column.type is Scalar.JSON}
    rows = [
        {name: write(value) if name in json_columns and value is not None else value for name, value in row.items()}
        for row in sorted(verdicts, key=lambda row: str(row["run_id"]))
    ]
    return pa.RecordBatch.from_pylist(rows, schema=arrow_schema(REFINED_OUTCOMES))
