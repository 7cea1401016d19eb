"""Judges a panel: given runs under any policy, as many times as asked for, without changing the current policy."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.pipeline.judge_candidates import judge_candidates
from trajectory_pipeline.pipeline.judging_estimate import needs_judging
from trajectory_pipeline.pipeline.judging_stats import JudgingStats
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.erasure import erase_verdicts_of
from trajectory_pipeline.storage.postgres.redaction_key import redaction_key
from trajectory_pipeline.storage.postgres.spend_ledger import PANEL
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate, panel_candidates
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline.storage.storage import Storage


@dataclass(frozen=True)
class PanelResult:
    """What judging a panel did.

    Attributes:
        policy_id: of the policy that it was judged under.
        stats: calls and cost, of all partitions together.
        statuses: verdicts by status, of all repetitions; ``outcomes`` are those of judged ones.
        reused: verdicts that were there already.
        missing: run ids without a trajectory, or deleted at the source.
    """

    policy_id: str
    stats: JudgingStats
    statuses: Counter[str]
    outcomes: Counter[str]
    reused: int
    missing: list[str]


def judge_panel(
    run_ids: Sequence[str],
    repetitions: int,
    storage: Storage,
    judge: JudgeConfig,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> PanelResult:
    """Judge runs until each has a verdict under the judge's policy in so many repetitions, as far as the budget goes.

    Caps, claims, redaction, access lists and records of calls are those of any judging. Verdicts that exist are not
    reached again. Repetition 0 is the verdict itself: it counts if the policy is, or becomes, the current one.

    Raises:
        SinkError: a sink cannot be read or written; verdicts stored so far stay.
        ProviderDownError: the judge's provider is down; verdicts stored so far stay.
        JudgeError: the model has no known price, and that is not allowed.
    """
    judge.require_price()
    judge = judge.with_redaction_key(redaction_key(storage.postgres, judge.redaction_key))
    policy = judge.policy
    stats: defaultdict[str, JudgingStats] = defaultdict(JudgingStats)
    with open_verdicts(storage.postgres) as verdicts:
        verdicts.record_policy(policy.policy_id, policy.definition, policy.model)
        panel = _panel(verdicts, policy.policy_id, run_ids, repetitions)
        due = [one for one in panel if one.due or needs_judging(one, judge.access)]
        _, error = judge_candidates(
            due,
            storage,
            judge,
            verdicts=verdicts,
            materialization_id=f"{PANEL} {uuid4()}",
            progress=progress,
            stats=stats,
        )
        # A run may have been erased while it was judged.
        for key in sorted({one.partition_key for one in due}):
            with (
                storage.postgres.partition(REFINED_OUTCOMES.name, key) as partition,
                translating_database_errors(partition.url, f"Erasing verdicts of {key}"),
            ):
                erase_verdicts_of(partition.connection, key)
        if error is not None:
            raise error
        stored = verdicts.verdicts([one.key for one in panel]).values()
    found = {one.run_id for one in panel}
    total = JudgingStats()
    for done in stats.values():
        total.add(done)
    return PanelResult(
        policy.policy_id,
        total,
        Counter(row["verdict_status"] for row in stored),
        Counter(row["outcome"] for row in stored if row["outcome"] is not None),
        len(panel) - len(due),
        [run_id for run_id in run_ids if run_id not in found],
    )


def _panel(verdicts: VerdictStore, policy_id: str, run_ids: Sequence[str], repetitions: int) -> list[JudgingCandidate]:
    return [
        candidate
        for repetition in range(repetitions)
        for candidate in panel_candidates(verdicts.connection, policy_id, run_ids, repetition)
    ]
