"""The verdict status of each trajectory under a policy: judged, or not, and why not.

SQL computes the verdict key as ``judge.policy.verdict_key`` does (a test compares them), so that a trajectory is due
too where only an earlier run of its chain has changed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from trajectory_pipeline.budget.caps import Cost
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.enums import FINAL_STATUSES, ErrorClass, JudgeOrder, VerdictStatus
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection

LONGEST_CHAIN = 50
"""Earlier runs of one task that are followed; a longer chain is taken for a cycle."""
MOST_EARLIER_RUNS = 8
"""Earlier runs of the conversation, the latest ones, that are offered as context."""
DEFAULT_THREAD_WINDOW = timedelta(hours=24)
"""Age up to which earlier runs are offered where there is no conversation: all such runs of an agent are one thread."""
_LIMITS = {"longest": LONGEST_CHAIN, "most": MOST_EARLIER_RUNS, "window": DEFAULT_THREAD_WINDOW}
EARLIER_RUNS: LiteralString = """
CROSS JOIN LATERAL (
    WITH RECURSIVE chain (run_id, depth, seen) AS (
        SELECT c.continues_run_id, 1, ARRAY[c.run_id]
        WHERE c.continues_run_id IS NOT NULL AND c.continues_run_id <> c.run_id
        UNION ALL
        SELECT t.continues_run_id, n.depth + 1, n.seen || t.run_id
        FROM chain n JOIN trajectory.trajectories t ON t.run_id = n.run_id
        WHERE n.depth < %(longest)s AND NOT (t.continues_run_id = ANY(n.seen || t.run_id))
    )
    SELECT array_agg(t.run_id ORDER BY n.depth DESC) AS run_ids,
        array_agg(t.content_digest ORDER BY n.depth DESC) AS digests
    FROM chain n JOIN trajectory.trajectories t ON t.run_id = n.run_id AND t.deleted_at IS NULL
) e
"""
"""The runs ``e`` that the run ``c`` continues, the earliest first, with their digests; null where there are none.

For each run on its own, as is what follows: where the planner expects one run in a new partition and there are
thousands, joins of all their chains and conversations took minutes.
"""
FIRST_RUN: LiteralString = """LATERAL (
    WITH RECURSIVE chain (run_id, depth) AS (
        SELECT t.run_id, 0
        UNION ALL
        SELECT e.continues_run_id, c.depth + 1 FROM chain c JOIN trajectory.trajectories e USING (run_id)
        WHERE e.continues_run_id IS NOT NULL AND c.depth < 1000
    )
    SELECT run_id AS first_run_id FROM chain ORDER BY depth DESC LIMIT 1
) chain"""
"""The first run of the chain that the run ``t`` is in, also where only its id is left: ``chain.first_run_id``."""
VERDICT_OF_POLICY: LiteralString = """LATERAL (
    SELECT v.* FROM trajectory.verdicts v
    WHERE v.run_id = t.run_id AND v.policy_id = %(policy)s AND v.content_digest = t.content_digest
        AND v.repetition = 0
    ORDER BY v.updated_at DESC, v.verdict_key LIMIT 1
) v"""
"""The verdict ``v`` under a policy on the content of ``t`` as it is now; repetitions are no verdicts of their own."""
_IS_EARLIER: LiteralString = """t.deleted_at IS NULL AND t.message_count > 0
            AND (t.start_time, t.run_id) < (c.start_time, c.run_id)
            AND coalesce(t.end_time, t.start_time) <= c.start_time
            AND t.run_id <> ALL(coalesce(e.run_ids, ARRAY[]::text[])) ORDER BY t.start_time DESC, t.run_id DESC"""
_CANDIDATES: LiteralString = (
    """
WITH chosen AS (
    SELECT t.run_id, t.continues_run_id, t.content_digest, t.partition_key, t.organization_id, t.agent_id,
        t.heuristic_outcome, t.message_count, t.signals, t.updated_at, coalesce(t.end_time, t.start_time) AS ended_at,
        t.conversation_id, t.start_time, t.context_digest
    FROM trajectory.trajectories t WHERE t.deleted_at IS NULL AND {condition}
), keyed AS (
    SELECT c.*, coalesce(e.run_ids, ARRAY[]::text[]) AS earlier_run_ids,
        coalesce(e.digests, ARRAY[]::text[]) AS earlier_digests, %(repetition)s::bigint AS repetition,
        coalesce(v.run_ids, ARRAY[]::text[]) AS conversation_run_ids,
        coalesce(v.digests, ARRAY[]::text[]) AS conversation_digests,
        greatest(c.updated_at, v.updated_at) AS changed_at,
        encode(sha256(convert_to(array_to_string(
            e.digests || c.content_digest || ARRAY(SELECT 'earlier ' || d FROM unnest(v.digests) d)
                || ('told ' || c.context_digest) || %(policy)s::text || nullif(%(repetition)s::bigint, 0)::text, E'\\n'
        ), 'UTF8')), 'hex') AS verdict_key
    FROM chosen c """
    + EARLIER_RUNS
    + """ CROSS JOIN LATERAL (
        SELECT array_agg(x.run_id ORDER BY x.start_time, x.run_id) AS run_ids,
            array_agg(x.content_digest ORDER BY x.start_time, x.run_id) AS digests, max(x.updated_at) AS updated_at
        FROM (
            (SELECT t.run_id, t.content_digest, t.start_time, t.updated_at FROM trajectory.trajectories t
                WHERE c.conversation_id IS NOT NULL AND t.agent_id = c.agent_id
                AND t.conversation_id = c.conversation_id AND {is_earlier} LIMIT %(most)s)
            UNION ALL
            (SELECT t.run_id, t.content_digest, t.start_time, t.updated_at FROM trajectory.trajectories t
                WHERE c.conversation_id IS NULL AND t.agent_id = c.agent_id
                AND t.conversation_id IS NULL AND t.start_time >= c.start_time - %(window)s::interval
                AND {is_earlier} LIMIT %(most)s)
        ) x
    ) v
), candidate AS (
    SELECT k.*, v.verdict_status, v.error_class, v.failures,
        v.next_attempt_at, v.deferred_usd, v.deferred_tokens,
        coalesce(v.verdict_status = 'quarantined' AND v.next_attempt_at > now(), false) AS backing_off
    FROM keyed k LEFT JOIN trajectory.verdicts v ON v.run_id = k.run_id AND v.verdict_key = k.verdict_key
        AND NOT v.erased
)
"""
)

_STATUSES: LiteralString = """
SELECT s.run_id, s.verdict_key, s.content_digest, s.partition_key, s.organization_id, s.agent_id, s.heuristic_outcome,
    s.message_count, s.earlier_run_ids, s.earlier_digests, s.conversation_run_ids, s.conversation_digests,
    s.context_digest, s.repetition, s.ended_at, s.verdict_status,
    s.error_class, s.backing_off,
    CASE WHEN s.verdict_status IS NOT NULL THEN s.verdict_status
        WHEN EXISTS (SELECT FROM trajectory.verdicts w WHERE w.run_id = s.run_id AND w.policy_id = %(policy)s
            AND w.repetition = s.repetition) THEN 'content changed'
        WHEN EXISTS (SELECT FROM trajectory.verdicts w WHERE w.run_id = s.run_id AND w.policy_id <> %(policy)s)
            THEN 'policy changed'
        ELSE 'new' END AS status
FROM candidate s ORDER BY
"""

_NEWEST: LiteralString = "s.ended_at DESC NULLS LAST, s.run_id"
_SIGNALS: LiteralString = (
    """
CASE WHEN s.heuristic_outcome = 'failure' THEN 0
    WHEN EXISTS (SELECT FROM trajectory.verdicts w WHERE w.run_id = s.run_id AND w.disagrees) THEN 1
    WHEN s.verdict_status = 'failed' THEN 2
    WHEN (s.signals ->> 'tool_errors')::bigint > 0 OR (s.signals ->> 'negative_feedback')::bigint > 0
        OR (s.signals ->> 'repeated_calls')::bigint > 0 OR (s.signals ->> 'denied_approvals')::bigint > 0 THEN 3
    ELSE 4 END,
"""
    + _NEWEST
)

_PENDING: LiteralString = """
SELECT s.partition_key FROM candidate s
LEFT JOIN trajectory.spend_totals o ON o.scope = 'organization'
    AND o.scope_key = %(day)s || ' ' || coalesce(s.organization_id, '(none)')
LEFT JOIN trajectory.partitions p ON p.asset = 'trajectories' AND p.partition_key = s.partition_key
WHERE s.changed_at <= %(quiet)s AND s.ended_at >= %(ended)s
    AND coalesce(p.result, 'complete') IN ('complete', 'quarantined')
    AND (s.verdict_status IS NULL OR s.verdict_status = 'deferred_budget'
        OR (s.verdict_status IN ('failed', 'quarantined') AND s.failures < %(give_up)s AND s.next_attempt_at <= %(now)s)
        OR (s.verdict_status = 'not_eligible' AND s.error_class = %(denied)s
            AND NOT coalesce(s.agent_id = ANY(%(deny_agents)s), false)
            AND NOT coalesce(s.organization_id = ANY(%(deny_organizations)s), false)
            AND (cardinality(%(allow_agents)s::text[]) = 0 OR coalesce(s.agent_id = ANY(%(allow_agents)s), false))
            AND (cardinality(%(allow_organizations)s::text[]) = 0
                OR coalesce(s.organization_id = ANY(%(allow_organizations)s), false))))
    AND coalesce(s.deferred_usd, %(least_usd)s) <= %(usd)s
    AND coalesce(s.deferred_tokens, %(least_tokens)s) <= %(tokens)s
    AND coalesce(s.deferred_usd, %(least_usd)s) <= %(organization_usd)s
        - coalesce(o.spent_usd + o.reserved_usd, 0)
GROUP BY 1 ORDER BY 1
"""

# Survives a dump and a restore, as ``xmin`` would not.
_VERDICT_STATE: LiteralString = (
    "jsonb_build_array(v.run_id, v.verdict_key, v.verdict_status, v.outcome, v.error_class, v.erased,"
    " extract(epoch FROM v.updated_at))::text"
)
# As the view ``outcomes`` shows it: until a trajectory is judged with what now comes before it, its last verdict stays.
_SHOWN: LiteralString = """keyed k CROSS JOIN LATERAL (
    SELECT v.* FROM trajectory.verdicts v WHERE v.run_id = k.run_id AND v.policy_id = %(policy)s
        AND v.content_digest = k.content_digest AND v.repetition = k.repetition
    ORDER BY v.updated_at DESC, v.verdict_key LIMIT 1
) v"""
_STORED: LiteralString = f"""
SELECT v.*, {_VERDICT_STATE} AS state FROM {_SHOWN} ORDER BY v.run_id COLLATE "C"
"""
_UNPUBLISHED: LiteralString = f"""
, stored AS (
    SELECT k.partition_key, encode(sha256(convert_to(
        string_agg({_VERDICT_STATE}, E'\\n' ORDER BY v.run_id COLLATE "C"), 'UTF8')), 'hex') AS digest
    FROM {_SHOWN} GROUP BY 1
)
SELECT partition_key FROM stored s FULL JOIN (
    SELECT * FROM trajectory.partitions WHERE asset = 'refined_outcomes' AND partition_key = ANY(%(keys)s)
) p USING (partition_key) FULL JOIN (
    SELECT partition_key FROM trajectory.invalidations
    WHERE asset = 'refined_outcomes' AND partition_key = ANY(%(keys)s)
    UNION SELECT k FROM unnest(%(keys)s::text[]) k
    WHERE EXISTS (SELECT FROM trajectory.verdicts v WHERE v.partition_key = k) AND NOT EXISTS
        (SELECT FROM trajectory.partitions p WHERE p.asset = 'refined_outcomes' AND p.partition_key = k)
) i USING (partition_key)
WHERE (i.partition_key IS NOT NULL
        OR (s.digest IS NOT NULL OR p.inputs_digest = %(policy)s AND p.result <> 'pruned')
            AND (p.result = 'pruned' OR p.rows_checksum IS DISTINCT FROM coalesce(s.digest, %(empty)s))
        -- Materialized again, while a prune that was killed left its file.
        OR p.result = 'pruned' AND p.rows_checksum IS NOT NULL AND EXISTS (SELECT FROM trajectory.partitions t
            WHERE t.asset = 'trajectories' AND t.partition_key = p.partition_key
            AND t.result IN ('complete', 'quarantined')))
    AND NOT EXISTS (SELECT FROM trajectory.partitions t WHERE t.asset = 'trajectories'
        AND t.partition_key = coalesce(s.partition_key, p.partition_key, i.partition_key)
        AND t.result NOT IN ('complete', 'quarantined'))
ORDER BY 1
"""

_ABANDONED: LiteralString = """
SELECT s.run_id, s.error_class, s.failures FROM candidate s WHERE s.ended_at >= %(ended)s
    AND s.verdict_status IN ('failed', 'quarantined') AND (s.failures >= %(give_up)s OR s.next_attempt_at IS NULL)
ORDER BY 1
"""


@dataclass(frozen=True)
class JudgingCandidate:
    """A trajectory and the status of its verdict under a policy.

    Attributes:
        verdict_key: of its verdict under the policy, whether it exists or not.
        repetition: which judging of this content under the policy it is; 0 for the verdict itself.
        earlier_run_ids: the runs that it continues, the earliest first; ``earlier_digests`` are their content digests.
        conversation_run_ids: earlier runs of its conversation, offered as context, likewise.
        context_digest: of what its agent was told; None where that is not known.
        status: of its verdict; where it has none: new, content changed or policy changed.
        backing_off: whether its verdict is quarantined and not yet due again.
    """

    run_id: str
    verdict_key: str
    content_digest: str
    partition_key: str
    organization_id: str | None
    agent_id: str
    heuristic_outcome: str
    message_count: int
    earlier_run_ids: tuple[str, ...]
    earlier_digests: tuple[str, ...]
    conversation_run_ids: tuple[str, ...]
    conversation_digests: tuple[str, ...]
    context_digest: str | None
    repetition: int
    ended_at: datetime | None
    status: str
    error_class: str | None
    backing_off: bool

    @property
    def due(self) -> bool:
        """Whether a materialization judges it."""
        return self.status not in (*FINAL_STATUSES, VerdictStatus.SUBMITTED) and not self.backing_off

    @property
    def task_run_ids(self) -> tuple[str, ...]:
        """The runs of its task: the earlier runs of its chain, then its own."""
        return (*self.earlier_run_ids, self.run_id)

    @property
    def shown_run_ids(self) -> tuple[str, ...]:
        """The runs that a judge is shown for it: those of its conversation as context, then those of its task."""
        return (*self.conversation_run_ids, *self.task_run_ids)

    @property
    def shown_digests(self) -> tuple[str, ...]:
        """The content digests of ``shown_run_ids``."""
        return (*self.conversation_digests, *self.earlier_digests, self.content_digest)

    @property
    def key(self) -> tuple[str, str]:
        """The primary key of its verdict."""
        return self.run_id, self.verdict_key


@dataclass(frozen=True, slots=True)
class AbandonedVerdict:
    """A verdict that failed too often to be tried again."""

    run_id: str
    error_class: str
    failures: int


@dataclass(frozen=True)
class PendingQuery:
    """What the refinement sensor looks for.

    Attributes:
        day: of the spend totals, UTC: ``2026-11-23``.
        settled_before: trajectories that changed later are left for the moment.
        ended_since: trajectories of runs that ended earlier are left to an explicit materialization.
        now: failed and quarantined verdicts whose next try is later are left for the moment.
        give_up_after: failures after which a verdict is not tried again.
        least: the maximum cost of the smallest call.
        usd: dollars that are left for one materialization today, infinite without a cap; ``tokens`` likewise.
        organization_usd: dollars that an organization has a day; infinite without such a cap.
        access: ids under ``allow_agents``, ``deny_agents``, ``allow_organizations``, ``deny_organizations``.
    """

    policy_id: str
    day: str
    settled_before: datetime
    ended_since: datetime
    now: datetime
    give_up_after: int
    least: Cost
    usd: Decimal
    tokens: Decimal
    organization_usd: Decimal
    access: Mapping[str, Sequence[str]]


def judging_candidates(
    connection: RetryingConnection, policy_id: str, partition_keys: Sequence[str], order: JudgeOrder
) -> list[JudgingCandidate]:
    """Return the trajectories of partitions that are not deleted at the source, in the order of judging."""
    statement = _OF_PARTITIONS + sql.SQL(_STATUSES + (_SIGNALS if order == JudgeOrder.SIGNALS else _NEWEST))
    parameters = _of_partitions(policy_id, partition_keys)
    return [_candidate(row) for row in connection.rows("Looking for missing verdicts", statement, parameters)]


def panel_candidates(
    connection: RetryingConnection, policy_id: str, run_ids: Sequence[str], repetition: int
) -> list[JudgingCandidate]:
    """Return these runs' trajectories under a policy, of one repetition, the newest first.

    Runs without a trajectory, and those deleted at the source, are left out.
    """
    parameters = {"policy": policy_id, **_LIMITS, "run_ids": list(run_ids), "repetition": repetition}
    rows = connection.rows("Looking for missing verdicts", _OF_RUNS + sql.SQL(_STATUSES + _NEWEST), parameters)
    return [_candidate(row) for row in rows]


def partitions_with_pending_verdicts(connection: RetryingConnection, wanted: PendingQuery) -> list[str]:
    """Return the keys of partitions with trajectories that should be judged now, within the budget, sorted.

    Partitions whose trajectories do not match their raw rows are left out: a verdict on them would be useless.
    """
    rows = connection.rows(
        "Looking for missing verdicts",
        _RECENT + sql.SQL(_PENDING),
        {
            **_recent(wanted.policy_id, wanted.ended_since),
            "quiet": wanted.settled_before,
            "now": wanted.now,
            "give_up": wanted.give_up_after,
            "least_usd": wanted.least.usd,
            "least_tokens": wanted.least.tokens,
            "day": wanted.day,
            "usd": wanted.usd,
            "tokens": wanted.tokens,
            "organization_usd": wanted.organization_usd,
            "denied": ErrorClass.DENIED,
            **wanted.access,
        },
    )
    return [row["partition_key"] for row in rows]


def abandoned_verdicts(
    connection: RetryingConnection, policy_id: str, *, ended_since: datetime, give_up_after: int
) -> list[AbandonedVerdict]:
    """Return the verdicts that the sensor no longer retries, sorted by run."""
    parameters = {**_recent(policy_id, ended_since), "give_up": give_up_after}
    rows = connection.rows("Looking for abandoned verdicts", _RECENT + sql.SQL(_ABANDONED), parameters)
    return [AbandonedVerdict(**row) for row in rows]


def stored_verdicts(
    connection: psycopg.Connection, policy_id: str, partition_key: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """Stream the verdicts of a partition's trajectories under a policy, each with its state; of one moment.

    The connection cannot be used for anything else before the last is read.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        statement = _OF_PARTITIONS + sql.SQL(_STORED)
        for row in cursor.stream(statement, _of_partitions(policy_id, [partition_key])):
            yield row, row.pop("state")


def verdicts_digest(states: Iterable[str]) -> str:
    """Return the digest of a partition's verdicts, from their states in order."""
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


def partitions_with_unpublished_verdicts(
    connection: RetryingConnection, policy_id: str, partition_keys: Sequence[str]
) -> list[str]:
    """Return which of these partitions have a file that was not made of the verdicts under a policy, sorted.

    A partition whose publication did not end, or whose ledger entry is lost, is one of them. One without such
    verdicts, whose file was made under another policy, is none.
    """
    parameters = {**_of_partitions(policy_id, partition_keys), "empty": verdicts_digest(())}
    rows = connection.rows("Comparing verdicts with their files", _OF_PARTITIONS + sql.SQL(_UNPUBLISHED), parameters)
    return [row["partition_key"] for row in rows]


def unpublished_partitions(database: TrajectoryDatabase, partition_keys: Sequence[str]) -> frozenset[str]:
    """Return which of these partitions have a file that was not made of the verdicts under the current policy."""
    policies = database.rows("SELECT policy_id FROM trajectory.policies WHERE is_current")
    with database.retrying() as connection:
        found = [partitions_with_unpublished_verdicts(connection, row["policy_id"], partition_keys) for row in policies]
    return frozenset(key for keys in found for key in keys)


_OF_PARTITIONS = sql.SQL(_CANDIDATES).format(
    is_earlier=sql.SQL(_IS_EARLIER), condition=sql.SQL("t.partition_key = ANY(%(keys)s)")
)


_OF_RUNS = sql.SQL(_CANDIDATES).format(
    is_earlier=sql.SQL(_IS_EARLIER), condition=sql.SQL("t.run_id = ANY(%(run_ids)s)")
)


def _of_partitions(policy_id: str, partition_keys: Sequence[str]) -> dict[str, Any]:
    return {"policy": policy_id, **_LIMITS, "keys": list(partition_keys), "repetition": 0}


# A partition's key is the hour in which its runs ended, and keys sort as hours do.
_RECENT = sql.SQL(_CANDIDATES).format(
    is_earlier=sql.SQL(_IS_EARLIER), condition=sql.SQL("t.partition_key >= %(since_key)s")
)


def _recent(policy_id: str, ended_since: datetime) -> dict[str, Any]:
    since_key = partition_key(ended_since)
    return {
        "policy": policy_id,
        **_LIMITS,
        "ended": ended_since,
        "since_key": since_key,
        "repetition": 0,
    }


_ARRAYS = ("earlier_run_ids", "earlier_digests", "conversation_run_ids", "conversation_digests")


def _candidate(row: Mapping[str, Any]) -> JudgingCandidate:
    values = {name: row[name] for name in JudgingCandidate.__dataclass_fields__}
    earlier = {name: tuple(row[name]) for name in _ARRAYS}
    return JudgingCandidate(**{**values, **earlier})
