"""Which partitions lack verdicts that could be reached now: the refinement sensor's question.

Belongs here: what state and budget say. Does not belong here: the statement (``storage.postgres.verdict_status``), and what is requested
(``defs.sensors.refinement``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from trajectory_pipeline.budget.caps import Account, Budget, NoRoom, Scope, refused_by
from trajectory_pipeline.judge.client.session import Judge
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import frame_tokens
from trajectory_pipeline.judge.redaction.egress_policy import EVERYBODY, Consent
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.spend_ledger import accounts, day_of
from trajectory_pipeline.storage.postgres.verdict_status import Wanted, given_up, lacking
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts

_NO_LIMIT = Decimal("Infinity")


@dataclass(frozen=True)
class MissingVerdicts:
    """What lacks verdicts.

    Attributes:
        partition_keys: of the partitions in which something could be judged now, sorted.
        given_up: trajectories whose verdicts failed too often, each with ``run_id``, ``error_class``, ``failures``.
        no_room: the cap that leaves no room for any call; then no partition is named.
        spent: today's account.
    """

    partition_keys: list[str]
    given_up: list[dict[str, Any]]
    no_room: NoRoom | None
    spent: Account


def missing_verdicts(
    database: TrajectoryDatabase,
    judge: Judge,
    policy: RefinementPolicy,
    budget: Budget,
    *,
    now: datetime,
    quiet: timedelta,
    horizon: timedelta,
    give_up_after: int,
    consent: Consent = EVERYBODY,
) -> MissingVerdicts:
    """Return what lacks a verdict under the policy, is quiet and within the horizon, and can be paid today.

    Args:
        database: where trajectories and verdicts are.
        judge: who would be asked.
        policy: under which.
        budget: within which.
        now: aware.
        quiet: that a trajectory must have been unchanged.
        horizon: age up to which trajectories are looked at.
        give_up_after: failures after which a verdict is not tried again.
        consent: whose trajectories may be shown.

    Raises:
        JudgeError: the model has no known price, and that is not allowed.
        SinkError: the database cannot be read.
    """
    budget.require_price(judge.model, judge.base_url)
    least = budget.at_most(judge.model, judge.base_url, frame_tokens(), judge.max_answer_tokens)
    shared = [cap for cap in budget.caps if cap.scope != "organization"]
    with open_verdicts(database) as verdicts:
        today: Mapping[Scope, Account] = accounts(verdicts.connection, day_of(now), None, "")
        no_room = refused_by(shared, today, least)
        left = {
            unit: min(
                (cap.left(today.get(cap.scope, Account())) for cap in shared if cap.unit == unit), default=_NO_LIMIT
            )
            for unit in ("usd", "tokens")
        }
        keys = (
            []
            if no_room
            else lacking(
                verdicts.connection,
                Wanted(
                    policy_id=policy.policy_id,
                    day=day_of(now),
                    quiet_since=now - quiet,
                    ended_since=now - horizon,
                    now=now,
                    give_up_after=give_up_after,
                    least=least,
                    usd=left["usd"],
                    tokens=left["tokens"],
                    organization_usd=_NO_LIMIT if budget.organization_usd is None else budget.organization_usd,
                    consent=consent.parameters(),
                ),
            )
        )
        hopeless = given_up(
            verdicts.connection, policy.policy_id, ended_since=now - horizon, give_up_after=give_up_after
        )
    return MissingVerdicts(keys, hopeless, no_room, today.get("day", Account()))


def given_up_verdicts(
    database: TrajectoryDatabase, policy: RefinementPolicy, *, ended_since: datetime, give_up_after: int
) -> list[dict[str, Any]]:
    """Return the trajectories whose verdicts failed too often, each with ``run_id``, ``error_class``, ``failures``.

    Raises:
        SinkError: the database cannot be read.
    """
    with open_verdicts(database) as verdicts:
        return given_up(verdicts.connection, policy.policy_id, ended_since=ended_since, give_up_after=give_up_after)
