"""Which partitions have trajectories that could be judged now, by state and budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from trajectory_pipeline.budget.caps import BudgetShortfall, Scope, SpendTotals, find_shortfall
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.judge_batches import BatchStore
from trajectory_pipeline.storage.postgres.spend_ledger import day_of, spend_totals
from trajectory_pipeline.storage.postgres.verdict_status import (
    AbandonedVerdict,
    PendingQuery,
    abandoned_verdicts,
    partitions_with_pending_verdicts,
    partitions_with_unpublished_verdicts,
)
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts

_NO_LIMIT = Decimal("Infinity")


@dataclass(frozen=True)
class PendingVerdicts:
    """What has no verdict yet, and today's totals.

    Attributes:
        partition_keys: of the partitions in which something could be judged now, sorted.
        abandoned: verdicts that failed too often.
        unpublished: keys of the compared partitions whose file was not made of the verdicts that are stored.
        next_batch_at: before then no batch is submitted; None where one may be now.
        shortfall: the cap without headroom for any call; then there are no partition keys.
    """

    partition_keys: list[str]
    abandoned: list[AbandonedVerdict]
    unpublished: list[str]
    shortfall: BudgetShortfall | None
    spent: SpendTotals
    next_batch_at: datetime | None = None


def find_pending_verdicts(
    database: TrajectoryDatabase,
    judge: JudgeConfig,
    *,
    now: datetime,
    settle_for: timedelta,
    lookback: timedelta,
    give_up_after: int,
    compared: Sequence[str] = (),
    between_batches: timedelta | None = None,
) -> PendingVerdicts:
    """Return what has no verdict under the policy, is settled, within the lookback, and can be paid today.

    A trajectory is settled when it has been unchanged for ``settle_for``. A verdict is not tried again after
    ``give_up_after`` failures. ``between_batches`` is the least time between two batches. The
    files of the partitions ``compared`` are compared with their verdicts.

    Raises:
        JudgeError: the model has no known price, and that is not allowed.
        SinkError: the database cannot be read.
    """
    judge.require_price()
    budget, policy = judge.budget, judge.policy
    least = judge.least_call_cost
    shared = [cap for cap in budget.caps if cap.scope != "organization"]
    with open_verdicts(database) as verdicts:
        today: Mapping[Scope, SpendTotals] = spend_totals(verdicts.connection, day_of(now), None, "")
        shortfall = find_shortfall(shared, today, least)
        remaining = {
            unit: min(
                (cap.remaining(today.get(cap.scope, SpendTotals())) for cap in shared if cap.unit == unit),
                default=_NO_LIMIT,
            )
            for unit in ("usd", "tokens")
        }
        query = PendingQuery(
            policy_id=policy.policy_id,
            day=day_of(now),
            settled_before=now - settle_for,
            ended_since=now - lookback,
            now=now,
            give_up_after=give_up_after,
            least=least,
            usd=remaining["usd"],
            tokens=remaining["tokens"],
            organization_usd=_NO_LIMIT if budget.organization_usd is None else budget.organization_usd,
            access=judge.access.parameters(),
        )
        keys = [] if shortfall else partitions_with_pending_verdicts(verdicts.connection, query)
        abandoned = abandoned_verdicts(
            verdicts.connection, policy.policy_id, ended_since=now - lookback, give_up_after=give_up_after
        )
        unpublished = partitions_with_unpublished_verdicts(verdicts.connection, policy.policy_id, compared)
        newest = BatchStore(verdicts.connection).newest_created_at(policy.policy_id) if between_batches else None
    next_batch_at = newest + between_batches if newest and between_batches else None
    if next_batch_at is not None and next_batch_at <= now:
        next_batch_at = None
    return PendingVerdicts(keys, abandoned, unpublished, shortfall, today.get("day", SpendTotals()), next_batch_at)


def find_abandoned_verdicts(
    database: TrajectoryDatabase, policy: RefinementPolicy, *, ended_since: datetime, give_up_after: int
) -> list[AbandonedVerdict]:
    """Return the verdicts that failed too often.

    Raises:
        SinkError: the database cannot be read.
    """
    with open_verdicts(database) as verdicts:
        return abandoned_verdicts(
            verdicts.connection, policy.policy_id, ended_since=ended_since, give_up_after=give_up_after
        )
