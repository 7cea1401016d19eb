"""What judging partitions would ask, take and leave undone: worked out without asking anybody, and without writing.

Belongs here: counting and estimating. Does not belong here: how a plan is shown (``cli``, ``orchestration``).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from trajectory_pipeline.budget.caps import Account, Amount, Budget, Scope, refused_by
from trajectory_pipeline.judge.client.session import Judge
from trajectory_pipeline.judge.judge_trajectory import case_of
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import frame_tokens
from trajectory_pipeline.judge.redaction.egress_policy import EVERYBODY, Consent
from trajectory_pipeline.partition_keys import key_of
from trajectory_pipeline.pipeline.documents import whole_document
from trajectory_pipeline.schema.verdicts import DENIED
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.spend_ledger import accounts, day_of
from trajectory_pipeline.storage.postgres.verdict_status import Order, Standing, standings
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts

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
class Plan:
    """What judging would do.

    Attributes:
        partitions: looked at.
        judged: trajectories that would be asked about, by why.
        reused: verdicts that are there.
        not_eligible: trajectories in which nothing was said.
        denied: trajectories that may not be shown to a judge, by the lists of agents and organisations.
        too_long: trajectories that fit into no prompt, or whose documents are missing.
        outside_horizon: of those that would be asked about, how many the sensor leaves to an explicit materialisation.
        calls: where none has to be repeated.
        prompt_tokens: of these calls, by a conservative estimate.
        answer_tokens_at_most: of these calls.
        usd_at_most: of these calls; None for a model without a known price.
        usd_expected: with answers as long as former ones under this policy; None where there are none.
        left_undone: trajectories that the caps may leave undone, by cap, each call taken at its most.
        sized: whether prompts were measured by the size of documents, and not rendered.
    """

    partitions: int = 0
    judged: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    not_eligible: int = 0
    denied: int = 0
    too_long: int = 0
    outside_horizon: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens_at_most: int = 0
    usd_at_most: Decimal | None = Decimal(0)
    usd_expected: Decimal | None = None
    left_undone: Counter[str] = field(default_factory=Counter)
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
        if self.outside_horizon:
            words.append(
                f"{self.outside_horizon} of them are older than TRAJECTORY_HORIZON_DAYS: only an explicit"
                " materialisation judges them."
            )
        if judged:
            usd = "no price is known" if self.usd_at_most is None else f"at most {self.usd_at_most:.4f} USD"
            expected = "" if self.usd_expected is None else f", about {self.usd_expected:.4f} USD by former answers"
            measured = "measured by the size of documents" if self.sized else "estimated"
            words.append(
                f"{self.calls} calls, {self.prompt_tokens} prompt tokens ({measured}), at most"
                f" {self.answer_tokens_at_most} answer tokens: {usd}{expected}."
            )
            undone = ", ".join(f"{number} by {cap}" for cap, number in self.left_undone.most_common())
            words.append(
                f"The caps may hold back {undone}, if each call costs its most."
                if undone
                else "The caps hold all of it."
            )
        return words


def is_asked_about(task: Standing, consent: Consent) -> bool:
    """Whether a judge is to be asked about a trajectory: it is due, or was denied, and may be shown."""
    return (task.due or task.error_class == DENIED) and consent.refusal(task.agent_id, task.organization_id) is None


def plan_refinement(
    hours: Sequence[datetime],
    store: ParquetStore,
    database: TrajectoryDatabase,
    judge: Judge,
    policy: RefinementPolicy,
    budget: Budget,
    *,
    now: datetime,
    horizon: timedelta,
    order: Order = "newest",
    render: bool = True,
    consent: Consent = EVERYBODY,
) -> Plan:
    """Return what judging these partitions would do, the latest first.

    Args:
        hours: of the partitions.
        store: where documents are that ``jsonb`` cannot hold.
        database: where trajectories and verdicts are; nothing is written.
        judge: who would be asked; nobody is.
        policy: under which.
        budget: within which.
        now: aware.
        horizon: age up to which the sensor has trajectories judged.
        order: which trajectories go first in a partition.
        render: whether prompts are made, to measure them; else documents are, which is quicker, and more than a prompt.
        consent: whose trajectories may be shown.

    Raises:
        SinkError: a sink cannot be read.
    """
    plan = Plan(sized=not render)
    with open_verdicts(database) as verdicts:
        planning = _Planning(store, verdicts, judge, policy, budget, plan, now)
        for hour in sorted(hours, reverse=True):
            plan.partitions += 1
            due: list[Standing] = []
            for task in standings(verdicts.connection, policy.policy_id, [key_of(hour)], order):
                if task.message_count == 0:
                    plan.not_eligible += 1
                elif is_asked_about(task, consent):
                    due.append(task)
                elif task.due or task.error_class == DENIED:
                    plan.denied += 1
                else:
                    plan.reused += 1
            for task, calls, prompt_tokens in planning.measured(due, render=render):
                planning.add(task, calls, prompt_tokens, outside=task.ended_at is None or task.ended_at < now - horizon)
        answer = verdicts.mean_answer_tokens(policy.policy_id)
    price = budget.prices
    if price.at_most(judge.model, judge.base_url, 1, 1) is None:
        plan.usd_at_most = None
    elif answer is not None and plan.usd_at_most is not None:
        longest = price.at_most(judge.model, judge.base_url, 0, judge.max_answer_tokens) or Decimal(0)
        usual = price.at_most(judge.model, judge.base_url, 0, round(answer)) or Decimal(0)
        plan.usd_expected = plan.usd_at_most - plan.calls * (longest - usual)
    return plan


@dataclass
class _Planning:
    parquet: ParquetStore
    verdicts: VerdictStore
    judge: Judge
    policy: RefinementPolicy
    budget: Budget
    plan: Plan
    now: datetime

    def __post_init__(self) -> None:
        self._caps = self.budget.caps
        self._shared: dict[Scope, Account] = {}
        self._organizations: dict[str | None, Account] = {}
        self._shared["day"] = self._account(None).get("day", Account())

    def measured(self, due: Sequence[Standing], *, render: bool) -> Iterator[tuple[Standing, int, int]]:
        """Yield each trajectory with the calls and the prompt tokens that it takes, some documents at a time."""
        for first in range(0, len(due), _DOCUMENTS_AT_ONCE):
            portion = due[first : first + _DOCUMENTS_AT_ONCE]
            run_ids = [run_id for task in portion for run_id in (*task.earlier_run_ids, task.run_id)]
            if not render:
                sizes = self.verdicts.document_bytes(run_ids)
                for task in portion:
                    size = sum(sizes.get(run_id, 0) for run_id in (*task.earlier_run_ids, task.run_id))
                    tokens = frame_tokens() + -(-size // _BYTES_PER_TOKEN)
                    yield task, 1, min(tokens, self.policy.max_prompt_tokens)
                continue
            found = self.verdicts.documents(run_ids)
            for task in portion:
                documents = [self._document(found, run) for run in (*task.earlier_run_ids, task.run_id)]
                there = [document for document in documents if document is not None]
                case = case_of(there, self.policy) if len(there) == len(documents) else None
                yield task, case.calls if case else 0, case.prompt_tokens if case else 0

    def add(self, task: Standing, calls: int, prompt_tokens: int, *, outside: bool) -> None:
        """Take a trajectory into the plan, and what it costs at most out of the caps' room."""
        plan = self.plan
        if calls == 0:
            plan.too_long += 1
            return
        plan.judged[WHY[task.standing]] += 1
        plan.outside_horizon += outside
        answer_tokens = calls * self.judge.max_answer_tokens
        most = self.budget.at_most(self.judge.model, self.judge.base_url, prompt_tokens, answer_tokens)
        plan.calls += calls
        plan.prompt_tokens += prompt_tokens
        plan.answer_tokens_at_most += answer_tokens
        plan.usd_at_most = (plan.usd_at_most or Decimal(0)) + most.usd
        here = {**self._shared, "organization": self._organization(task.organization_id)}
        refusal = refused_by(self._caps, here, most)
        if refusal is not None:
            plan.left_undone[refusal.cap.setting] += 1
            return
        for scope in ("day", "materialization"):
            self._shared[scope] = _more(here.get(scope, Account()), most)
        self._organizations[task.organization_id] = _more(here["organization"], most)

    def _organization(self, organization_id: str | None) -> Account:
        if organization_id not in self._organizations:
            self._organizations[organization_id] = self._account(organization_id).get("organization", Account())
        return self._organizations[organization_id]

    def _account(self, organization_id: str | None) -> dict[Scope, Account]:
        return accounts(self.verdicts.connection, day_of(self.now), organization_id, "")

    def _document(self, found: Mapping[str, tuple[dict[str, Any] | None, str]], run_id: str) -> dict[str, Any] | None:
        document, partition_key = found.get(run_id, (None, None))
        if document is None and partition_key is not None:
            return whole_document(self.parquet, run_id, partition_key)
        return document


def _more(account: Account, amount: Amount) -> Account:
    return Account(account.spent, account.reserved + amount)
