"""An estimate of what judging partitions would ask, cost and defer. Calls no judge and writes nothing."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from trajectory_pipeline.budget.caps import Cost, Scope, SpendTotals, find_shortfall
from trajectory_pipeline.budget.prices import Prices
from trajectory_pipeline.errors import PipelineError, describe_defect
from trajectory_pipeline.judge.access_lists import JudgeAccessList
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.judge_trajectory import build_judge_request
from trajectory_pipeline.judge.transcript.context import TaskContext
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.agent_contexts import AgentContexts
from trajectory_pipeline.pipeline.documents import MissingDocumentError, shown_documents
from trajectory_pipeline.schema.enums import ErrorClass, JudgeMode, JudgeOrder, VerdictStatus
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.spend_ledger import day_of, spend_totals
from trajectory_pipeline.storage.postgres.verdict_status import (
    JudgingCandidate,
    judging_candidates,
    panel_candidates,
    partitions_with_unpublished_verdicts,
)
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline.text import pluralize

_DOCUMENTS_AT_ONCE = 50
_BYTES_PER_TOKEN = 3

_DUE_REASONS = {
    "failed": "failed before",
    "quarantined": "quarantined before",
    "not_eligible": "denied before",
    "deferred_budget": "deferred before",
}


def due_reason(candidate: JudgingCandidate) -> str:
    """Return why a trajectory is judged."""
    return _DUE_REASONS.get(candidate.status, candidate.status)


@dataclass
class JudgingEstimate:
    """What judging would do.

    Attributes:
        judged: trajectories that would be judged, by reason.
        submitted: trajectories whose verdicts wait for a batch.
        not_eligible: trajectories without messages.
        denied: trajectories that may not be sent to a judge, by the lists of agents and organizations.
        too_long: trajectories that fit into no prompt, or whose documents are missing.
        outside_lookback: of those that would be judged, those that are too old for the sensor.
        calls: without repeated ones; those of judges that may be escalated to are counted.
        prompt_tokens: of these calls, by a conservative estimate.
        max_usd: of these calls; None if the model has no known price.
        expected_usd: with answers as long as former ones under this policy; None if there are none.
        not_judged: trajectories that the caps may defer, by cap, if each call costs the maximum.
        not_rendered: why trajectories cannot be rendered, by run id: the verdicts on them would fail.
        sized: whether prompts were estimated from the size of documents, not rendered.
        unpublished: partitions whose file in Parquet was not made of the verdicts that are stored.
        missing: run ids of a panel without a trajectory, or deleted at the source.
    """

    partitions: int = 0
    judged: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    submitted: int = 0
    not_eligible: int = 0
    denied: int = 0
    too_long: int = 0
    outside_lookback: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    max_response_tokens_total: int = 0
    max_usd: Decimal | None = Decimal(0)
    expected_usd: Decimal | None = None
    not_judged: Counter[str] = field(default_factory=Counter)
    not_rendered: dict[str, str] = field(default_factory=dict)
    sized: bool = False
    unpublished: int = 0
    missing: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values; money as text, which keeps every digit."""
        # Not `asdict`, which makes counts of the pairs of a Counter.
        return {name: str(value) if isinstance(value, Decimal) else value for name, value in vars(self).items()}

    def sentences(self) -> list[str]:
        """Return the estimate in sentences."""
        judged = self.judged.total()
        others = self.reused + self.submitted + self.not_eligible + self.denied + self.too_long
        total = judged + others + len(self.not_rendered)
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.judged.most_common())
        sentences = [
            f"{judged} of {total} trajectories in {self.partitions} partitions would be judged"
            + (f": {reasons}." if reasons else "."),
            f"{self.reused} verdicts exist, {self.not_eligible} trajectories have nothing to judge,"
            f" {self.too_long} cannot be sent to the judge.",
        ]
        if self.submitted:
            sentences.append(f"{pluralize(self.submitted, 'verdict')} to come from a batch that runs.")
        for run_id, defect in self.not_rendered.items():
            sentences.append(f"{run_id} cannot be rendered, so that its verdict would fail: {defect}.")
        if self.unpublished:
            sentences.append(
                f"{pluralize(self.unpublished, 'partition')} would be written again without a call: the file does not"
                " hold the verdicts that are stored."
            )
        if self.denied:
            sentences.append(
                f"{self.denied} may not be sent to a judge (TRAJECTORY_JUDGE_ALLOW_…, TRAJECTORY_JUDGE_DENY_…)."
            )
        if self.outside_lookback:
            sentences.append(
                f"{self.outside_lookback} of them are older than TRAJECTORY_JUDGE_LOOKBACK_DAYS: only an explicit"
                " materialization judges them."
            )
        if judged:
            usd = "no price is known" if self.max_usd is None else f"at most {self.max_usd:.4f} USD"
            expected = "" if self.expected_usd is None else f", about {self.expected_usd:.4f} USD by former answers"
            measured = "measured by the size of documents" if self.sized else "estimated"
            sentences.append(
                f"{self.calls} calls, {self.prompt_tokens} prompt tokens ({measured}), at most"
                f" {self.max_response_tokens_total} answer tokens: {usd}{expected}."
            )
            deferred = ", ".join(f"{number} by {cap}" for cap, number in self.not_judged.most_common())
            sentences.append(
                f"The caps may defer {deferred}, if each call costs the maximum."
                if deferred
                else "All of it fits under the caps."
            )
        return sentences


def needs_judging(candidate: JudgingCandidate, access: JudgeAccessList) -> bool:
    """Whether a trajectory is to be judged: it is due, or was denied, and may be sent to a judge."""
    return (candidate.due or candidate.error_class == ErrorClass.DENIED) and access.refusal(
        candidate.agent_id, candidate.organization_id
    ) is None


def estimate_judging(
    hours: Sequence[datetime],
    storage: Storage,
    judge: JudgeConfig,
    *,
    now: datetime,
    lookback: timedelta,
    order: JudgeOrder = JudgeOrder.NEWEST,
    render: bool = True,
    mode: JudgeMode = JudgeMode.ONLINE,
) -> JudgingEstimate:
    """Return what judging these partitions would do, the latest first.

    ``lookback`` is the age up to which the sensor requests verdicts; ``order`` says which trajectories go first in a
    partition. With ``render``, prompts are rendered and measured; else documents are, which is quicker and gives more.

    Raises:
        SinkError: a sink cannot be read.
    """
    estimate = JudgingEstimate(sized=not render)
    policy_id = judge.policy.policy_id
    with open_verdicts(storage.postgres) as verdicts:
        estimator = _Estimator(storage.parquet, verdicts, judge, estimate, now, mode)
        for hour in sorted(hours, reverse=True):
            found = judging_candidates(verdicts.connection, policy_id, [partition_key(hour)], order)
            estimate.partitions += 1
            estimator.add_all(found, now - lookback, render=render)
        keys = [partition_key(hour) for hour in hours]
        estimate.unpublished = len(partitions_with_unpublished_verdicts(verdicts.connection, policy_id, keys))
        estimator.compare_with_former()
    return estimate


def estimate_panel(
    run_ids: Sequence[str], repetitions: int, storage: Storage, judge: JudgeConfig, *, now: datetime
) -> JudgingEstimate:
    """Return what judging these runs so many times would do, with their prompts rendered.

    Raises:
        SinkError: a sink cannot be read.
    """
    estimate = JudgingEstimate()
    partitions: set[str] = set()
    known: set[str] = set()
    with open_verdicts(storage.postgres) as verdicts:
        estimator = _Estimator(storage.parquet, verdicts, judge, estimate, now)
        for repetition in range(repetitions):
            found = panel_candidates(verdicts.connection, judge.policy.policy_id, run_ids, repetition)
            partitions |= {candidate.partition_key for candidate in found}
            known |= {candidate.run_id for candidate in found}
            estimator.add_all(found, None, render=True)
        estimator.compare_with_former()
    estimate.partitions = len(partitions)
    estimate.missing = [run_id for run_id in run_ids if run_id not in known]
    return estimate


@dataclass
class _Estimator:
    parquet: ParquetStore
    verdicts: VerdictStore
    judge: JudgeConfig
    estimate: JudgingEstimate
    now: datetime
    mode: JudgeMode = JudgeMode.ONLINE
    _shared: dict[Scope, SpendTotals] = field(default_factory=lambda: {"materialization": SpendTotals()})
    _by_organization: dict[str | None, SpendTotals] = field(default_factory=dict)

    def add_all(self, candidates: Sequence[JudgingCandidate], oldest: datetime | None, *, render: bool) -> None:
        """Count trajectories; those that ended before ``oldest`` are too old for the sensor."""
        due: list[JudgingCandidate] = []
        for candidate in candidates:
            if candidate.message_count == 0:
                self.estimate.not_eligible += 1
            elif needs_judging(candidate, self.judge.access):
                due.append(candidate)
            elif candidate.due or candidate.error_class == ErrorClass.DENIED:
                self.estimate.denied += 1
            elif candidate.status == VerdictStatus.SUBMITTED:
                self.estimate.submitted += 1
            else:
                self.estimate.reused += 1
        for candidate, calls, prompt_tokens in self.measure(due, render=render):
            is_old = oldest is not None and (candidate.ended_at is None or candidate.ended_at < oldest)
            self.add(candidate, calls, prompt_tokens, is_old=is_old)

    def compare_with_former(self) -> None:
        """Estimate the cost with answers as long as former ones; to be called when all is counted."""
        judge, prices, estimate = self.judge, self._prices(calls=1), self.estimate
        mean_tokens = self.verdicts.mean_response_tokens(judge.policy.policy_id)
        if any(prices.max_cost(one.model, one.base_url, 1, 1) is None for one in judge.asked):
            estimate.max_usd = None
        elif mean_tokens is not None and estimate.max_usd is not None:
            at_most = prices.max_cost(judge.model, judge.base_url, 0, judge.max_response_tokens) or Decimal(0)
            at_mean = prices.max_cost(judge.model, judge.base_url, 0, round(mean_tokens)) or Decimal(0)
            estimate.expected_usd = estimate.max_usd - estimate.calls * (at_most - at_mean)

    def measure(self, due: Sequence[JudgingCandidate], *, render: bool) -> Iterator[tuple[JudgingCandidate, int, int]]:
        """Yield each trajectory with its calls and prompt tokens; some documents are loaded at a time."""
        contexts = AgentContexts(self.parquet, due if render else ())
        for first in range(0, len(due), _DOCUMENTS_AT_ONCE):
            batch = due[first : first + _DOCUMENTS_AT_ONCE]
            run_ids = [run_id for candidate in batch for run_id in candidate.task_run_ids]
            if not render:
                sizes = self.verdicts.document_bytes(run_ids)
                for candidate in batch:
                    size = sum(sizes.get(run_id, 0) for run_id in candidate.task_run_ids)
                    tokens = (
                        self.judge.prompt.overhead_tokens + -(-size // _BYTES_PER_TOKEN) + self._most_context(candidate)
                    )
                    yield candidate, 1, min(tokens, self.judge.max_prompt_tokens)
                continue
            rows = self.verdicts.documents(run_ids)
            spoken = self.verdicts.spoken_documents([name for one in batch for name in one.conversation_run_ids])
            for candidate in batch:
                try:
                    key = candidate.partition_key
                    documents = shown_documents(candidate.task_run_ids, key, rows, self.parquet)
                    earlier = shown_documents(candidate.conversation_run_ids, key, spoken, self.parquet)
                    context = TaskContext(contexts.of(candidate), earlier)
                    request = build_judge_request(documents, self.judge.policy, context=context)
                    calls, prompt_tokens = request.calls, request.prompt_tokens
                except MissingDocumentError:
                    calls, prompt_tokens = 0, 0
                except PipelineError:
                    raise
                except Exception as error:
                    self.estimate.not_rendered[candidate.run_id] = describe_defect(error)
                    continue
                yield candidate, calls, prompt_tokens

    def _most_context(self, candidate: JudgingCandidate) -> int:
        """Return the most tokens that context may take, in estimated tokens."""
        policy = self.judge.policy
        told = policy.instructions_tokens if candidate.context_digest is not None else 0
        return told + (policy.earlier_turns_tokens if candidate.conversation_run_ids else 0)

    def add(self, candidate: JudgingCandidate, calls: int, prompt_tokens: int, *, is_old: bool) -> None:
        """Count a trajectory, and take its maximum cost from what the caps have left."""
        estimate = self.estimate
        if calls == 0:
            estimate.too_long += 1
            return
        estimate.judged[due_reason(candidate)] += 1
        estimate.outside_lookback += is_old
        max_cost = Cost()
        for judge in self.judge.asked:
            answer_tokens = calls * judge.max_response_tokens
            usd = self._prices(calls).max_cost(judge.model, judge.base_url, prompt_tokens, answer_tokens)
            max_cost += Cost(usd or Decimal(0), prompt_tokens + answer_tokens)
            estimate.calls += calls
            estimate.prompt_tokens += prompt_tokens
            estimate.max_response_tokens_total += answer_tokens
        estimate.max_usd = (estimate.max_usd or Decimal(0)) + max_cost.usd
        totals = self._totals(candidate.organization_id)
        shortfall = find_shortfall(self.judge.budget.caps, totals, max_cost)
        if shortfall is not None:
            estimate.not_judged[shortfall.cap.setting] += 1
            return
        self._shared = {scope: replace(spent, reserved=spent.reserved + max_cost) for scope, spent in totals.items()}
        self._by_organization[candidate.organization_id] = self._shared.pop("organization")

    def _prices(self, calls: int) -> Prices:
        """Return the prices of a verdict's calls: what takes several prompts is asked online in any mode."""
        prices = self.judge.budget.prices
        return prices.of_batches if self.mode == JudgeMode.BATCH and calls == 1 else prices

    def _totals(self, organization_id: str | None) -> dict[Scope, SpendTotals]:
        if organization_id not in self._by_organization:
            spent = spend_totals(self.verdicts.connection, day_of(self.now), organization_id, "")
            self._by_organization[organization_id] = spent.get("organization", SpendTotals())
            self._shared.setdefault("day", spent.get("day", SpendTotals()))
        return {**self._shared, "organization": self._by_organization[organization_id]}
