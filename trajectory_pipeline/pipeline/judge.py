"""The third stage: a verdict on each trajectory of a partition, in Postgres as it arrives and then in Parquet."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import uuid4

import pyarrow as pa

from trajectory_pipeline.budget.caps import Cap, SpendTotals
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.lossless_json import write_json
from trajectory_pipeline.partition_keys import parse_partition_key, partition_key
from trajectory_pipeline.pipeline.judge_candidates import judge_candidates
from trajectory_pipeline.pipeline.judging_estimate import JudgingEstimate, due_reason, estimate_judging, needs_judging
from trajectory_pipeline.pipeline.judging_stats import JudgingStats
from trajectory_pipeline.pipeline.keep_batches import collect_batches
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.enums import JudgeMode, JudgeOrder
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.types import Scalar, Sink
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.parquet.store import WrittenFile
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.erasure import erase_verdicts_of
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry
from trajectory_pipeline.storage.postgres.redaction_key import redaction_key
from trajectory_pipeline.storage.postgres.search_texts import remove_texts_of_erased_verdicts
from trajectory_pipeline.storage.postgres.spend_ledger import day_of, spend_totals
from trajectory_pipeline.storage.postgres.verdict_status import (
    JudgingCandidate,
    judging_candidates,
    stored_verdicts,
    verdicts_digest,
)
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline.storage.storage import Storage

_ROWS_PER_GROUP = 500

Row = dict[str, Any]


@dataclass
class JudgingResult(JudgingStats):
    """What a materialization of ``refined_outcomes`` did, and what it cost.

    Attributes:
        statuses: verdicts by status.
        outcomes: judged ones by outcome.
        errors: failed and quarantined ones by error class.
        disagreements: judged ones whose outcome differs from the heuristic one.
        due_reasons: trajectories that were due, by reason.
        reused: verdicts that were there already, or that another worker reached in the meantime.
        caps: the caps that are set, each with its totals at the end.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    disagreements: int = 0
    due_reasons: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    caps: list[tuple[Cap, SpendTotals]] = field(default_factory=list)
    written: WrittenFile | None = None


@dataclass
class JudgingRun:
    """Judges partitions together, and publishes each of them as soon as its last verdict is stored.

    Together, so that small partitions do not leave the judge idle. A verdict is stored as soon as it is known. A failed
    call leaves a verdict without scores that names the error. The next materialization tries failed and deferred
    verdicts again.

    Attributes:
        order: which trajectories go first, over all partitions.
        limit: the most trajectories to judge; the others stay without a verdict.
        dagster_run_id: for the ledger; all partitions of a Dagster run are one materialization to the budget.
        progress: takes a progress line now and then.
        publish_only: whether stored verdicts are published and no judge is asked.
        collect_only: whether batches that ended are collected, and nothing else is asked.
        mode: whether what fits one prompt is asked at once or submitted in batches.
        run_ids: the runs that are judged; the others stay as they are. None: all.
    """

    storage: Storage
    judge: JudgeConfig
    order: JudgeOrder = JudgeOrder.NEWEST
    limit: int | None = None
    dagster_run_id: str | None = None
    progress: Callable[[str], None] = field(default=lambda _: None, repr=False)
    publish_only: bool = False
    collect_only: bool = False
    mode: JudgeMode = JudgeMode.ONLINE
    run_ids: Collection[str] | None = None

    def __post_init__(self) -> None:
        self._materialization_id = self.dagster_run_id or str(uuid4())
        self._results: dict[str, JudgingResult] = {}
        self._failures: dict[str, Exception] = {}
        self._candidates: dict[str, list[JudgingCandidate]] = {}

    def estimate(self, hours: Sequence[datetime], lookback: timedelta, *, render: bool = True) -> JudgingEstimate:
        """Return what judging these partitions would do now; see ``estimate_judging``."""
        now = datetime.now(UTC)
        return estimate_judging(
            hours,
            self.storage,
            self.judge,
            now=now,
            lookback=lookback,
            order=self.order,
            render=render,
            mode=self.mode,
        )

    def judge_partitions(self, hours: Sequence[datetime]) -> None:
        """Judge the trajectories of partitions that have no verdict under the policy yet, as far as the budget goes.

        Each partition is published when it has its last verdict: a worker that is killed later leaves it complete. An
        error that keeps a partition from being completed is raised by its ``publish``.

        Raises:
            SinkError: a sink cannot be read.
            JudgeError: the model has no known price, and that is not allowed.
        """
        if not self.publish_only:
            self.judge.require_price()
        if self.mode == JudgeMode.BATCH and not (self.publish_only or self.collect_only):
            self.judge.require_batch_price()
        judge = self.judge.with_redaction_key(redaction_key(self.storage.postgres, self.judge.redaction_key))
        policy = judge.policy
        for hour in hours:
            key = partition_key(hour)
            if self.storage.parquet.exists(TRAJECTORIES, hour):
                self._results[key], self._candidates[key] = JudgingResult(), []
            else:
                self._failures[key] = PipelineError(
                    f"There are no trajectories of {key} in {self.storage.parquet.shown_uri}: materialize trajectories"
                    " of that partition first."
                )
        with open_verdicts(self.storage.postgres) as verdicts:
            verdicts.use_policy(policy.policy_id, policy.definition, policy.model)
            self._collect(judge, verdicts)
            due = self._due(judging_candidates(verdicts.connection, policy.policy_id, list(self._results), self.order))[
                : self.limit
            ]
            for key in self._results.keys() - {candidate.partition_key for candidate in due}:
                self._publish_early(key)
            unfinished, error = judge_candidates(
                due,
                self.storage,
                judge,
                verdicts=verdicts,
                materialization_id=self._materialization_id,
                progress=self.progress,
                stats=self._results,
                on_complete=self._publish_early,
                mode=self.mode,
            )
            if error is not None:
                # A partition that was judged to its end is published all the same.
                self._failures |= dict.fromkeys({one.partition_key for one in unfinished}, error)
        for result in self._results.values():
            result.reused += result.claimed_elsewhere

    def publish(self, hour: datetime) -> JudgingResult:
        """Write the verdicts of a judged partition to Parquet, unless that is done; returns what judging did and cost.

        Raises:
            SinkError: a sink cannot be read or written; verdicts stored so far stay.
            ProviderDownError: the judge's provider is down; verdicts stored so far stay.
            PipelineError: the partition has no trajectories yet.
        """
        key = partition_key(hour)
        if key in self._failures:
            raise self._failures[key]
        if self._results[key].written is None:
            self._publish(key)
        return self._results[key]

    def _publish_early(self, key: str) -> None:
        # Where this fails, ``publish`` tries again, and raises.
        with suppress(Exception):
            self._publish(key)

    def _publish(self, key: str) -> None:
        result, hour = self._results[key], parse_partition_key(key)
        result.statuses, result.outcomes, result.errors = Counter(), Counter(), Counter()
        result.disagreements = 0
        policy_id = self.judge.policy.policy_id
        # A run may have been erased while it was judged: its verdict loses its texts before it is published.
        with (
            self.storage.postgres.partition(REFINED_OUTCOMES.name, key) as partition,
            translating_database_errors(partition.url, f"Erasing verdicts of {key}"),
        ):
            erase_verdicts_of(partition.connection, key)
            remove_texts_of_erased_verdicts(partition.connection, key)
        with open_verdicts(self.storage.postgres) as verdicts:
            result.caps = self._caps(verdicts, {candidate.organization_id for candidate in self._candidates[key]})
        states: list[str] = []
        with (
            self.storage.postgres.partition(REFINED_OUTCOMES.name, key) as partition,
            translating_database_errors(partition.url, f"Reading verdicts of {key}"),
            self.storage.parquet.stage(
                REFINED_OUTCOMES,
                hour,
                _batches(stored_verdicts(partition.connection, policy_id, key), result, states),
            ) as staged,
        ):
            partition.record(
                LedgerEntry(
                    asset=REFINED_OUTCOMES.name,
                    partition_key=key,
                    result="complete",
                    counts={**result.statuses, "calls": result.calls},
                    content_digest=staged.sha256,
                    schema_version=SCHEMA_VERSION,
                    dagster_run_id=self.dagster_run_id,
                    inputs_digest=policy_id,
                    rows_checksum=verdicts_digest(states),
                )
            )
            written = partition.publish(staged)
        result.written = written

    def _collect(self, judge: JudgeConfig, verdicts: VerdictStore) -> None:
        """Store the verdicts of the batches that ended; where that fails, a run for nothing else fails."""
        if self.publish_only:
            return
        failures = collect_batches(
            self.storage,
            judge,
            list(self._results),
            verdicts=verdicts,
            materialization_id=self._materialization_id,
            progress=self.progress,
            stats=self._results,
        )
        for failure in failures:
            self.progress(str(failure))
        if failures and self.collect_only:
            self._failures |= dict.fromkeys(self._results, failures[0])

    def _due(self, candidates: Sequence[JudgingCandidate]) -> list[JudgingCandidate]:
        due: list[JudgingCandidate] = []
        for candidate in candidates:
            self._candidates[candidate.partition_key].append(candidate)
            result = self._results[candidate.partition_key]
            asked_for = self.run_ids is None or candidate.run_id in self.run_ids
            if (
                asked_for
                and not (self.publish_only or self.collect_only)
                and (candidate.due or needs_judging(candidate, self.judge.access))
            ):
                result.due_reasons[due_reason(candidate)] += 1
                due.append(candidate)
            else:
                result.reused += 1
        return due

    def _caps(self, verdicts: VerdictStore, organizations: Collection[str | None]) -> list[tuple[Cap, SpendTotals]]:
        """Return the caps with their totals now; those of an organization once for each organization."""
        day = day_of(verdicts.now())
        caps: list[tuple[Cap, SpendTotals]] = []
        for cap in self.judge.budget.caps:
            is_per_organization = cap.scope == "organization"
            for organization in sorted(organizations, key=str) if is_per_organization else [None]:
                totals = spend_totals(verdicts.connection, day, organization, self._materialization_id)
                label = f"{cap.label}: {organization or 'none recorded'}" if is_per_organization else cap.label
                caps.append((replace(cap, label=label), totals.get(cap.scope, SpendTotals())))
        return caps


def _batches(verdicts: Iterable[tuple[Row, str]], result: JudgingResult, states: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield stored verdicts in batches, count them, and collect their states."""
    json_columns = {column.name for column in REFINED_OUTCOMES.in_sink(Sink.PARQUET) if column.type is Scalar.JSON}
    remaining = iter(verdicts)
    while batch := list(islice(remaining, _ROWS_PER_GROUP)):
        for row, state in batch:
            states.append(state)
            result.statuses[row["verdict_status"]] += 1
            if row["outcome"] is not None:
                result.outcomes[row["outcome"]] += 1
            if row["verdict_status"] in ("failed", "quarantined"):
                result.errors[row["error_class"]] += 1
            result.disagreements += bool(row["disagrees"])
        encoded = [
            {
                name: write_json(value) if name in json_columns and value is not None else value
                for name, value in row.items()
            }
            for row, _ in batch
        ]
        yield pa.RecordBatch.from_pylist(encoded, schema=arrow_schema(REFINED_OUTCOMES))
