"""The third stage: a verdict on each trajectory of a partition, in Postgres as it arrives and then in Parquet.

Belongs here: which trajectories are asked about, and how calls overlap. Does not belong here: what is asked and what
follows from the answer (``refinement``).
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.hours import hour_of, key_of
from trajectory_pipeline.refinement.ask import Answer, Asked, Attempt, Judge, Record, Session
from trajectory_pipeline.refinement.deliberate import case_of, deliberate, failed
from trajectory_pipeline.refinement.policy import RefinementPolicy, verdict_key
from trajectory_pipeline.refinement.pricing import is_simulated
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.trajectory import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.types import Scalar, Sink
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.sinks.database import LedgerEntry, TrajectoryDatabase
from trajectory_pipeline.sinks.parquet import ParquetStore, Written
from trajectory_pipeline.sinks.verdicts import Spent, VerdictStore, open_verdicts
from trajectory_pipeline.trajectories.document import document_of
from trajectory_pipeline.trajectories.json_text import write

FINAL = frozenset({"judged", "insufficient_evidence", "not_eligible", "quarantined"})
"""Statuses that are not asked about again under the same policy and content."""

_ROWS_PER_GROUP = 500
_LOG = logging.getLogger(__name__)

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
        SinkError: a sink cannot be read or written; verdicts stored so far stay, and calls under way are waited for.
        PipelineError: the partition has no trajectories yet.
    """
    key = key_of(hour)
    if not store.exists(TRAJECTORIES, hour):
        raise PipelineError(
            f"There are no trajectories of {key} in {store.uri}: materialise trajectories of that partition first."
        )
    result = RefinementResult()
    keys: list[tuple[str, str]] = []
    with open_verdicts(database) as verdict_store, verdict_store.judging(key):
        verdict_store.use_policy(policy.policy_id, policy.definition, policy.model)
        judging = _Judging(store, verdict_store, judge, policy, concurrency, result, progress or (lambda _: None))
        for batch in store.read(TRAJECTORIES, hour):
            tasks = [judging.task(row) for row in batch.to_pylist() if row["deleted_at"] is None]
            _run(judging.judge_all(tasks))
            keys.extend(task.key for task in tasks)
        with database.partition(REFINED_OUTCOMES.name, key) as partition:
            partition.erase_verdicts()
        rows = _batches(verdict_store, sorted(keys), result)
        with (
            database.partition(REFINED_OUTCOMES.name, key) as partition,
            store.prepare(REFINED_OUTCOMES, hour, rows) as prepared,
        ):
            partition.record(
                LedgerEntry(
                    asset=REFINED_OUTCOMES.name,
                    partition_key=key,
                    result="complete",
                    counts={**result.statuses, "calls": result.calls},
                    content_digest=prepared.sha256,
                    schema_version=SCHEMA_VERSION,
                    dagster_run_id=dagster_run_id,
                )
            )
            result.written = prepared.publish()
    return result


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, also where this thread runs a loop already, as a notebook's does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(asyncio.run, work).result()


@dataclass(frozen=True)
class _Task:
    """One trajectory to be judged, with the earlier runs of its chain."""

    row: Mapping[str, Any]
    earlier: Sequence[Mapping[str, Any]]
    verdict_key: str

    @property
    def key(self) -> tuple[str, str]:
        return str(self.row["run_id"]), self.verdict_key


@dataclass
class _Judging:
    """The judging of one partition.

    A verdict is stored before its task is done. If storing fails, nothing more is asked, and what is under way is
    waited for: it is paid for, and may still be stored. A fault of ours in one verdict is that verdict's.
    """

    parquet: ParquetStore
    verdicts: VerdictStore
    judge: Judge
    policy: RefinementPolicy
    concurrency: int
    result: RefinementResult
    progress: Callable[[str], None]

    def task(self, row: Row) -> _Task:
        earlier = self.verdicts.earlier_runs(row["run_id"]) if row["continues_run_id"] else []
        digests = [run["content_digest"] for run in earlier]
        return _Task(row, earlier, verdict_key([*digests, row["content_digest"]], self.policy))

    async def judge_all(self, tasks: Sequence[_Task]) -> None:
        there = self.verdicts.verdicts([task.key for task in tasks])
        due = [task for task in tasks if not _settled(there.get(task.key))]
        spent = self.verdicts.spent([task.key for task in due])
        self.result.reused += len(tasks) - len(due)
        # One connection: a statement at a time, and off the loop, which has answers to read.
        self._database_turn = asyncio.Lock()
        waiting, failures, done = deque(due), list[Exception](), 0

        async def work(session: Session) -> None:
            nonlocal done
            while waiting and not failures:
                task = waiting.popleft()
                try:
                    await self._judge_one(task, session, spent.get(task.key, Spent()))
                except Exception as error:  # raised below, when nothing is under way any more
                    failures.append(error)
                    return
                done += 1
                if done % 25 == 0 or done == len(due):
                    self.progress(f"{done} of {len(due)} trajectories judged, {self.result.cost_usd} USD")

        if not due:
            return
        async with self.judge.session() as session:
            await asyncio.gather(*(work(session) for _ in range(min(self.concurrency, len(due)))))
        if failures:
            raise failures[0]

    async def _judge_one(self, task: _Task, session: Session, before: Spent) -> None:
        made: dict[str, Attempt] = {}
        verdict: Row = {
            "run_id": task.row["run_id"],
            "verdict_key": task.verdict_key,
            "policy_id": self.policy.policy_id,
            "partition_key": task.row["partition_key"],
            "content_digest": task.row["content_digest"],
            "simulated": False,
            "shown_run_ids": [*(run["run_id"] for run in task.earlier), task.row["run_id"]],
            "shown_digests": [*(run["content_digest"] for run in task.earlier), task.row["content_digest"]],
            "erased": False,
        }

        async def record(attempt: Attempt) -> None:
            made[attempt.attempt_id] = attempt
            await self._in_database(self.verdicts.save_attempt, _attempt_row(attempt, verdict))

        try:
            said = await self._said(task, session, record)
        except PipelineError:
            raise
        except Exception as error:
            _LOG.exception("The verdict on %s failed by a fault of trajectory-pipeline", task.row["run_id"])
            said = failed("internal_error", f"a fault of trajectory-pipeline: {type(error).__name__}: {error}")
        attempts = list(made.values())
        self._count(attempts)
        await self._in_database(
            self.verdicts.save_verdict, {**verdict, **_spent(attempts, before), **self._model(attempts), **said}
        )

    async def _said(self, task: _Task, session: Session, record: Record) -> Row:
        """Return what there is to say of a trajectory: its verdict, or why there is none."""
        if task.row["message_count"] == 0:
            return {
                "verdict_status": "not_eligible",
                "error_class": "no_messages",
                "error_message": "the run ended before anything was said: there is nothing to judge",
            }
        documents: list[Mapping[str, Any]] = []
        for run in task.earlier:
            document = await self._in_database(self.verdicts.document, run["run_id"]) or self._whole_document(run)
            if document is None:
                words = f"the document of the earlier run {run['run_id']} is neither in Postgres nor in Parquet"
                return failed("earlier_run_missing", f"{words}: materialise trajectories of {run['partition_key']}")
            documents.append(document)
        case = case_of([*documents, document_of(task.row)], self.policy)

        async def ask(messages: Sequence[dict[str, str]], answer_type: type[Answer]) -> Asked[Answer]:
            return await session.ask(messages, answer_type, record, record)

        self.result.asked += case.calls > 0
        return await deliberate(case, task.row["heuristic_outcome"], ask)

    def _whole_document(self, run: Mapping[str, Any]) -> Row | None:
        """Return a document that ``jsonb`` cannot hold, from Parquet."""
        for batch in self.parquet.read(TRAJECTORIES, hour_of(run["partition_key"])):
            found = batch.filter(pc.equal(batch.column("run_id"), run["run_id"])).to_pylist()
            if found:
                return document_of(found[0])
        return None

    async def _in_database(self, work: Callable[[Any], Any], argument: Any) -> Any:
        async with self._database_turn:
            return await asyncio.to_thread(work, argument)

    def _count(self, attempts: Sequence[Attempt]) -> None:
        self.result.calls += len(attempts)
        self.result.unpriced_calls += sum(attempt.cost_usd is None for attempt in attempts)
        self.result.cost_usd += sum((attempt.cost_usd or Decimal(0) for attempt in attempts), Decimal(0))
        self.result.models |= {attempt.answered_model for attempt in attempts if attempt.answered_model}

    def _model(self, attempts: Sequence[Attempt]) -> Row:
        if not attempts:
            return {}
        answered = attempts[-1].answered_model
        # Whatever name it gives itself, it answers under the name that was asked for.
        return {
            "model": answered,
            "answer_format": attempts[-1].answer_format,
            "simulated": is_simulated(answered) or is_simulated(attempts[-1].model),
        }


def _settled(verdict: Row | None) -> bool:
    """Whether a verdict is not asked for again; one that was erased is, if what it showed is there again."""
    return verdict is not None and verdict["verdict_status"] in FINAL and not verdict["erased"]


def _spent(attempts: Sequence[Attempt], before: Spent) -> Row:
    """Return what all calls for a verdict took: those of now, and those before."""
    used = [attempt.usage for attempt in attempts if attempt.usage is not None]
    return {
        "attempts": before.attempts + len(attempts),
        "input_tokens": _sum(before.input_tokens, *(usage.input_tokens for usage in used)),
        "cached_input_tokens": _sum(before.cached_input_tokens, *(usage.cached_input_tokens for usage in used)),
        "output_tokens": _sum(before.output_tokens, *(usage.output_tokens for usage in used)),
        "cost_usd": _sum(before.cost_usd, *(attempt.cost_usd for attempt in attempts)),
    }


def _sum(*values: Any) -> Any:
    """Return the sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def _attempt_row(attempt: Attempt, verdict: Row) -> Row:
    row = asdict(attempt)
    usage = row.pop("usage") or {}
    return {**row, **usage, **{name: verdict[name] for name in ("run_id", "verdict_key", "policy_id")}}


def _batches(
    verdict_store: VerdictStore, keys: Sequence[tuple[str, str]], result: RefinementResult
) -> Iterator[pa.RecordBatch]:
    """Yield the verdicts as they are stored, some at a time, and count them."""
    json_columns = {column.name for column in REFINED_OUTCOMES.in_sink(Sink.PARQUET) if column.type is Scalar.JSON}
    for first in range(0, len(keys), _ROWS_PER_GROUP):
        portion = keys[first : first + _ROWS_PER_GROUP]
        found = verdict_store.verdicts(portion)
        rows = [found[key] for key in portion]
        for row in rows:
            _count(row, result)
        written = [
            {name: write(value) if name in json_columns and value is not None else value for name, value in row.items()}
            for row in rows
        ]
        yield pa.RecordBatch.from_pylist(written, schema=arrow_schema(REFINED_OUTCOMES))


def _count(verdict: Row, result: RefinementResult) -> None:
    result.statuses[verdict["verdict_status"]] += 1
    if verdict["outcome"] is not None:
        result.outcomes[verdict["outcome"]] += 1
    if verdict["verdict_status"] in ("failed", "quarantined"):
        result.errors[verdict["error_class"]] += 1
    result.disagreements += bool(verdict["disagrees"])
