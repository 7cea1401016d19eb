"""What judging partitions would ask, take and leave undone: worked out without asking anybody, and without writing.

Belongs here: counting and estimating. Does not belong here: how a plan is shown (``cli``, ``orchestration``).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from trajectory_pipeline.budget.caps import Cost, Scope, SpendTotals, find_shortfall
from trajectory_pipeline.judge.access_lists import JudgeAccessList
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.judge_trajectory import build_judge_request
from trajectory_pipeline.judge.prompt import overhead_tokens
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.documents import MissingDocumentError, shown_documents
from trajectory_pipeline.schema.enums import ErrorClass
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.spend_ledger import day_of, spend_totals
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate, Order, judging_candidates
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline.storage.storage import Storage

_DOCUMENTS_AT_ONCE = 50
_BYTES_PER_TOKEN = 3

WHY: Mapping[str, str] = {
    "new": "new",
    "content changed": "content changed",
    "policy changed": "policy changed",
    "failed": "failed before",
    "quarantined": "unusable before",
    "not_eligible": "denied before",
    "deferred_budget": "held back before",
}
"""Why a trajectory is asked about, by where it stands."""


@dataclass
class JudgingEstimate:
    """What judging would do.

    Attributes:
        partitions: looked at.
        judged: trajectories that would be asked about, by why.
        reused: verdicts that are there.
        not_eligible: trajectories in which nothing was said.
        denied: trajectories that may not be shown to a judge, by the lists of agents and organisations.
        too_long: trajectories that fit into no prompt, or whose documents are missing.
        outside_lookback: of those that would be asked about, how many the sensor leaves to an explicit materialisation.
        calls: where none has to be repeated.
        prompt_tokens: of these calls, by a conservative estimate.
        max_response_tokens_total: of these calls.
        max_usd: of these calls; None for a model without a known price.
        expected_usd: with answers as long as former ones under this policy; None where there are none.
        not_judged: trajectories that the caps may leave undone, by cap, each call taken at its most.
        sized: whether prompts were measured by the size of documents, and not rendered.
    """

    partitions: int = 0
    judged: Counter[str] = field(default_factory=Counter)
    reused: int = 0
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
    sized: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON can hold it; money as text, which keeps every digit."""
        return {name: str(value) if isinstance(value, Decimal) else value for name, value in asdict(self).items()}

    def sentences(self) -> list[str]:
        """Return the plan as a person reads it."""
        judged = self.judged.total()
        why = ", ".join(f"{number} {reason}" for reason, number in self.judged.most_common())
        words = [
            f"{judged} of {judged + self.reused + self.not_eligible + self.denied + self.too_long} trajectories in"
            f" {self.partitions} partitions would be judged" + (f": {why}." if why else "."),
            f"{self.reused} verdicts are there, {self.not_eligible} trajectories have nothing to judge,"
            f" {self.too_long} cannot be asked about.",
        ]
        if self.denied:
            words.append(
                f"{self.denied} may not be shown to a judge (TRAJECTORY_JUDGE_ALLOW_…, TRAJECTORY_JUDGE_DENY_…)."
            )
        if self.outside_lookback:
            words.append(
                f"{self.outside_lookback} of them are older than TRAJECTORY_JUDGE_LOOKBACK_DAYS: only an explicit"
                " materialisation judges them."
            )
        if judged:
            usd = "no price is known" if self.max_usd is None else f"at most {self.max_usd:.4f} USD"
            expected = "" if self.expected_usd is None else f", about {self.expected_usd:.4f} USD by former answers"
            measured = "measured by the size of documents" if self.sized else "estimated"
            words.append(
                f"{self.calls} calls, {self.prompt_tokens} prompt tokens ({measured}), at most"
                f" {self.max_response_tokens_total} answer tokens: {usd}{expected}."
            )
            undone = ", ".join(f"{number} by {cap}" for cap, number in self.not_judged.most_common())
            words.append(
                f"The caps may hold back {undone}, if each call costs its most."
                if undone
                else "The caps hold all of it."
            )
        return words


def needs_judging(task: JudgingCandidate, access: JudgeAccessList) -> bool:
    """Whether a judge is to be asked about a trajectory: it is due, or was denied, and may be shown."""
    return (task.due or task.error_class == ErrorClass.DENIED) and access.refusal(
        task.agent_id, task.organization_id
    ) is None


def estimate_judging(
    hours: Sequence[datetime],
    storage: Storage,
    judge: JudgeConfig,
    *,
    now: datetime,
    horizon: timedelta,
    order: Order = "newest",
    render: bool = True,
) -> JudgingEstimate:
    """Return what judging these partitions would do, the latest first.

    Args:
        hours: of the partitions.
        storage: both sinks.
        judge: who would be asked, and within which budget; no call is made.
        now: aware.
        horizon: age up to which the sensor has trajectories judged.
        order: which trajectories go first in a partition.
        render: whether prompts are made, to measure them; else documents are, which is quicker, and more than a prompt.

    Raises:
        SinkError: a sink cannot be read.
    """
    plan = JudgingEstimate(sized=not render)
    policy_id = judge.policy.policy_id
    with open_verdicts(storage.postgres) as verdicts:
        planning = _Planning(storage.parquet, verdicts, judge, plan, now)
        for hour in sorted(hours, reverse=True):
            plan.partitions += 1
            due: list[JudgingCandidate] = []
            for task in judging_candidates(verdicts.connection, policy_id, [partition_key(hour)], order):
                if task.message_count == 0:
                    plan.not_eligible += 1
                elif needs_judging(task, judge.access):
                    due.append(task)
                elif task.due or task.error_class == ErrorClass.DENIED:
                    plan.denied += 1
                else:
                    plan.reused += 1
            for task, calls, prompt_tokens in planning.measured(due, render=render):
                planning.add(task, calls, prompt_tokens, outside=task.ended_at is None or task.ended_at < now - horizon)
        answer = verdicts.mean_response_tokens(policy_id)
    price = judge.budget.prices
    if price.max_cost(judge.model, judge.base_url, 1, 1) is None:
        plan.max_usd = None
    elif answer is not None and plan.max_usd is not None:
        longest = price.max_cost(judge.model, judge.base_url, 0, judge.max_response_tokens) or Decimal(0)
        usual = price.max_cost(judge.model, judge.base_url, 0, round(answer)) or Decimal(0)
        plan.expected_usd = plan.max_usd - plan.calls * (longest - usual)
    return plan


@dataclass
class _Planning:
    parquet: ParquetStore
    verdicts: VerdictStore
    judge: JudgeConfig
    plan: JudgingEstimate
    now: datetime

    def __post_init__(self) -> None:
        self._policy = self.judge.policy
        self._caps = self.judge.budget.caps
        self._shared: dict[Scope, SpendTotals] = {}
        self._organizations: dict[str | None, SpendTotals] = {}
        self._shared["day"] = self._account(None).get("day", SpendTotals())

    def measured(self, due: Sequence[JudgingCandidate], *, render: bool) -> Iterator[tuple[JudgingCandidate, int, int]]:
        """Yield each trajectory with the calls and the prompt tokens that it takes, some documents at a time."""
        for first in range(0, len(due), _DOCUMENTS_AT_ONCE):
            portion = due[first : first + _DOCUMENTS_AT_ONCE]
            run_ids = [run_id for task in portion for run_id in task.shown_run_ids]
            if not render:
                sizes = self.verdicts.document_bytes(run_ids)
                for task in portion:
                    size = sum(sizes.get(run_id, 0) for run_id in task.shown_run_ids)
                    tokens = overhead_tokens() + -(-size // _BYTES_PER_TOKEN)
                    yield task, 1, min(tokens, self.judge.max_prompt_tokens)
                continue
            rows = self.verdicts.documents(run_ids)
            for task in portion:
                try:
                    documents = shown_documents(task.shown_run_ids, task.partition_key, rows, self.parquet)
                except MissingDocumentError:
                    yield task, 0, 0
                else:
                    request = build_judge_request(documents, self._policy)
                    yield task, request.calls, request.prompt_tokens

    def add(self, task: JudgingCandidate, calls: int, prompt_tokens: int, *, outside: bool) -> None:
        """Take a trajectory into the plan, and what it costs at most out of the caps' room."""
        plan = self.plan
        if calls == 0:
            plan.too_long += 1
            return
        plan.judged[WHY[task.status]] += 1
        plan.outside_lookback += outside
        answer_tokens = calls * self.judge.max_response_tokens
        most = self.judge.budget.max_call_cost(self.judge.model, self.judge.base_url, prompt_tokens, answer_tokens)
        plan.calls += calls
        plan.prompt_tokens += prompt_tokens
        plan.max_response_tokens_total += answer_tokens
        plan.max_usd = (plan.max_usd or Decimal(0)) + most.usd
        here = {**self._shared, "organization": self._organization(task.organization_id)}
        refusal = find_shortfall(self._caps, here, most)
        if refusal is not None:
            plan.not_judged[refusal.cap.setting] += 1
            return
        for scope in ("day", "materialization"):
            self._shared[scope] = _more(here.get(scope, SpendTotals()), most)
        self._organizations[task.organization_id] = _more(here["organization"], most)

    def _organization(self, organization_id: str | None) -> SpendTotals:
        if organization_id not in self._organizations:
            self._organizations[organization_id] = self._account(organization_id).get("organization", SpendTotals())
        return self._organizations[organization_id]

    def _account(self, organization_id: str | None) -> dict[Scope, SpendTotals]:
        return spend_totals(self.verdicts.connection, day_of(self.now), organization_id, "")


def _more(account: SpendTotals, amount: Cost) -> SpendTotals:
    return SpendTotals(account.spent, account.reserved + amount)
