"""The contract of where trajectories stand: what is due is found by comparing, and in the order that is asked for."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from trajectory_pipeline.budget.caps import Cost
from trajectory_pipeline.judge.access_lists import UNRESTRICTED
from trajectory_pipeline.judge.policy import RefinementPolicy, verdict_key
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry
from trajectory_pipeline.storage.postgres.spend_ledger import ReservationResult
from trajectory_pipeline.storage.postgres.verdict_locks import AlreadyClaimed
from trajectory_pipeline.storage.postgres.verdict_status import (
    DEFAULT_THREAD_WINDOW,
    MOST_EARLIER_RUNS,
    AbandonedVerdict,
    JudgingCandidate,
    PendingQuery,
    abandoned_verdicts,
    judging_candidates,
    partitions_with_pending_verdicts,
    stored_verdicts,
)
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline_tests.storage.calls import begin_calls, reservation
from trajectory_pipeline_tests.storage.postgres.test_verdicts import capture, save, verdict
from trajectory_pipeline_tests.storage.rows import HOUR, KEY, NEXT_KEY, Row, trajectory

POLICY = RefinementPolicy("simulated-judge")
NOW = HOUR + timedelta(hours=3)
NO_LIMIT = Decimal("Infinity")
WANTED = PendingQuery(
    access=UNRESTRICTED.parameters(),
    policy_id=POLICY.policy_id,
    day="2026-11-20",
    settled_before=datetime.now(UTC) + timedelta(hours=1),
    ended_since=HOUR - timedelta(days=7),
    now=datetime.now(UTC) + timedelta(minutes=1),
    give_up_after=3,
    least=Cost(Decimal("0.01"), 100),
    usd=NO_LIMIT,
    tokens=NO_LIMIT,
    organization_usd=NO_LIMIT,
)


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    return TrajectoryDatabase(trajectory_database)


@pytest.fixture
def verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    with open_verdicts(database) as store:
        yield store


def run(run_id: str, key: str = KEY, **values: object) -> Row:
    return trajectory(run_id, key, **{"end_time": HOUR, "content_digest": f"digest of {run_id}", **values})


def key_of_run(*run_ids: str) -> str:
    return verdict_key([f"digest of {run_id}" for run_id in run_ids], POLICY)


def of_policy(run_id: str, key: str | None = None, **values: object) -> Row:
    return verdict(run_id, key or key_of_run(run_id), policy_id=POLICY.policy_id, **values)


def statuses(verdicts: VerdictStore, *keys: str) -> dict[str, str]:
    found = judging_candidates(verdicts.connection, POLICY.policy_id, keys or [KEY], "newest")
    return {one.run_id: one.status for one in found}


# ---- keys and chains ------------------------------------------------------------------------------------------------


def test_verdict_key_in_sql_equals_the_policy_along_chains(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    capture(
        database,
        run("1"),
        run("2", continues_run_id="1"),
        run("3", continues_run_id="2"),
        run("3b", continues_run_id="2"),
        run("orphan", continues_run_id="nowhere"),
        run("self", continues_run_id="self"),
        run("a", continues_run_id="b"),
        run("b", continues_run_id="a"),
    )
    found = {one.run_id: one for one in judging_candidates(verdicts.connection, POLICY.policy_id, [KEY], "newest")}
    chains = {
        "1": ["1"],
        "2": ["1", "2"],
        "3": ["1", "2", "3"],
        "3b": ["1", "2", "3b"],
        "orphan": ["orphan"],
        "self": ["self"],
        "a": ["b", "a"],
        "b": ["a", "b"],
    }
    assert {run_id: [*one.earlier_run_ids, run_id] for run_id, one in found.items()} == chains
    assert {run_id: one.verdict_key for run_id, one in found.items()} == {
        run_id: key_of_run(*chain) for run_id, chain in chains.items()
    }


def test_deleted_run_of_a_chain_is_not_shown(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    """Its text may still be kept, as that of a deleted message is."""
    capture(
        database,
        run("1"),
        run("2", continues_run_id="1", deleted_at=NOW),
        run("3", continues_run_id="2"),
        run("first", deleted_at=NOW),
        run("second", continues_run_id="first"),
    )
    found = {one.run_id: one for one in judging_candidates(verdicts.connection, POLICY.policy_id, [KEY], "newest")}
    assert {run_id: one.shown_run_ids for run_id, one in found.items()} == {
        "1": ("1",),
        "3": ("1", "3"),
        "second": ("second",),
    }
    assert found["3"].verdict_key == key_of_run("1", "3")


def of_conversation(run_id: str, minute: int, **values: object) -> Row:
    """A run of a minute's length, of one conversation."""
    start = HOUR + timedelta(minutes=minute)
    return run(
        run_id,
        **{"conversation_id": "conv-1", "start_time": start, "end_time": start + timedelta(minutes=1), **values},
    )


def found_in(verdicts: VerdictStore) -> dict[str, JudgingCandidate]:
    return {one.run_id: one for one in judging_candidates(verdicts.connection, POLICY.policy_id, [KEY], "newest")}


def test_earlier_runs_of_a_conversation_are_context(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(
        database,
        of_conversation("1", 0, context_digest="told"),
        of_conversation("2", 5),
        of_conversation("2b", 5, continues_run_id="1"),
        of_conversation("running", 9, end_time=HOUR + timedelta(minutes=30)),
        of_conversation("empty", 6, message_count=0),
        of_conversation("gone", 7, deleted_at=NOW),
        of_conversation("other", 7, conversation_id="conv-2"),
        of_conversation("of another agent", 7, agent_id="agent-2"),
        of_conversation("none", 7, conversation_id=None),
        of_conversation("3", 10, continues_run_id="2b"),
    )
    found = found_in(verdicts)
    context = {run_id: one.conversation_run_ids for run_id, one in found.items() if one.conversation_run_ids}
    assert context == {"2": ("1",), "running": ("1", "2", "2b"), "empty": ("1", "2", "2b"), "3": ("2",)}
    assert found["3"].shown_run_ids == ("2", "1", "2b", "3")
    assert found["3"].shown_digests == tuple(f"digest of {name}" for name in ("2", "1", "2b", "3"))
    assert found["1"].verdict_key == verdict_key(["digest of 1"], POLICY, context_digest="told")
    assert found["2"].verdict_key == verdict_key(["digest of 2"], POLICY, conversation_digests=["digest of 1"])
    chain = [f"digest of {name}" for name in ("1", "2b", "3")]
    assert found["3"].verdict_key == verdict_key(chain, POLICY, conversation_digests=["digest of 2"])


def test_latest_earlier_runs_of_a_conversation_are_offered(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    count = MOST_EARLIER_RUNS + 2
    capture(database, *(of_conversation(f"{n:02}", 2 * n) for n in range(count + 1)))
    wanted = tuple(f"{n:02}" for n in range(count - MOST_EARLIER_RUNS, count))
    assert found_in(verdicts)[f"{count:02}"].conversation_run_ids == wanted


def test_conversations_of_a_new_partition_are_looked_up_once_for_each_run(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    """Postgres has no statistics of it yet, and expects a single run."""
    runs = [of_conversation(f"{n:03}", n, conversation_id=f"conversation {n // 2}") for n in range(200)]
    capture(database, *runs)
    found = found_in(verdicts)
    save(
        verdicts, *(of_policy(one.run_id, one.verdict_key, content_digest=one.content_digest) for one in found.values())
    )
    with psycopg.connect(database.url) as connection:
        assert len(list(stored_verdicts(connection, POLICY.policy_id, KEY))) == len(runs)
        row = connection.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'trajectories'"
        ).fetchone()
    assert row is not None
    assert len(runs) < row[0] < 10 * len(runs)


def test_default_thread_is_followed_for_a_day(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    day = int(DEFAULT_THREAD_WINDOW / timedelta(minutes=1))
    capture(
        database,
        *(of_conversation(name, at, conversation_id=None) for name, at in (("old", -2 * day), ("1", -day), ("2", 0))),
        of_conversation("3", -5),
    )
    found = found_in(verdicts)
    assert {name: found[name].conversation_run_ids for name in ("1", "2", "3")} == {"1": ("old",), "2": ("1",), "3": ()}


def test_changed_run_of_the_conversation_makes_later_ones_due(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    capture(database, of_conversation("1", 0), of_conversation("2", 5))
    found = found_in(verdicts)
    save(verdicts, *(of_policy(name, found[name].verdict_key) for name in ("1", "2")))
    assert statuses(verdicts) == {"1": "judged", "2": "judged"}
    capture(database, of_conversation("1", 0, content_digest="changed"), of_conversation("2", 5))
    assert statuses(verdicts) == {"1": "content changed", "2": "content changed"}


def test_run_waits_until_its_conversation_is_at_rest(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, of_conversation("1", 0, partition_key=NEXT_KEY), key=NEXT_KEY)
    capture(database, of_conversation("2", 5))
    with psycopg.connect(database.url) as connection:
        connection.execute(
            "UPDATE trajectory.trajectories SET updated_at = now() - interval '1 day' WHERE run_id = '2'"
        )
    an_hour_ago = replace(WANTED, settled_before=datetime.now(UTC) - timedelta(hours=1))
    assert partitions_with_pending_verdicts(verdicts.connection, an_hour_ago) == []
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.trajectories SET updated_at = now() - interval '1 day'")
    assert KEY in partitions_with_pending_verdicts(verdicts.connection, an_hour_ago)


def test_changed_earlier_run_makes_later_ones_due(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    """A later run of a chain is judged again when an earlier one changed."""
    capture(database, run("1", NEXT_KEY), key=NEXT_KEY)
    capture(database, run("2", continues_run_id="1"))
    save(verdicts, of_policy("2", key_of_run("1", "2")), of_policy("1"))
    assert statuses(verdicts) == {"2": "judged"}
    assert partitions_with_pending_verdicts(verdicts.connection, WANTED) == []
    capture(database, run("1", NEXT_KEY, content_digest="new"), key=NEXT_KEY)
    assert statuses(verdicts) == {"2": "content changed"}
    assert partitions_with_pending_verdicts(verdicts.connection, WANTED) == [KEY, NEXT_KEY]


# ---- status and order -----------------------------------------------------------------------------------------------


def test_candidate_status_follows_its_verdicts(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    names = ("new", "judged", "failed", "deferred", "changed", "of another policy", "gone")
    gone = {"gone": {"deleted_at": HOUR}}
    capture(database, *(run(name, **gone.get(name, {})) for name in names))
    save(
        verdicts,
        of_policy("judged"),
        of_policy("failed", verdict_status="failed", error_class="timeout"),
        of_policy("deferred", verdict_status="deferred_budget"),
        of_policy("changed", "former key"),
        verdict("of another policy", "key", policy_id="other"),
    )
    assert statuses(verdicts) == {
        "new": "new",
        "judged": "judged",
        "failed": "failed",
        "deferred": "deferred_budget",
        "changed": "content changed",
        "of another policy": "policy changed",
    }


def test_candidates_are_ordered_by_age_or_signals(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    def signals(run_id: str, errors: int) -> Row:
        row = run(run_id)
        return {**row, "signals": {**row["signals"], "tool_errors": errors, "repeated_calls": 0,
                                   "negative_feedback": 0, "denied_approvals": 0}}  # fmt: skip

    capture(
        database,
        {**signals("newest", 0), "end_time": HOUR + timedelta(minutes=5)},
        {**signals("newer", 0), "end_time": HOUR + timedelta(minutes=4)},
        {**signals("trouble", 2), "end_time": HOUR + timedelta(minutes=3)},
        {**signals("retried", 0), "end_time": HOUR + timedelta(minutes=2)},
        {**signals("disagreed", 0), "end_time": HOUR + timedelta(minutes=1)},
        {**signals("failure", 0), "heuristic_outcome": "failure"},
    )
    save(
        verdicts,
        of_policy("retried", verdict_status="failed", error_class="timeout"),
        verdict("disagreed", "key", policy_id="other", disagrees=True),
    )
    newest = ["newest", "newer", "trouble", "retried", "disagreed", "failure"]
    assert list(statuses(verdicts)) == newest
    found = judging_candidates(verdicts.connection, POLICY.policy_id, [KEY], "signals")
    assert [one.run_id for one in found] == ["failure", "disagreed", "retried", "trouble", "newest", "newer"]


# ---- what the sensor finds ------------------------------------------------------------------------------------------


def test_partition_with_a_missing_verdict_is_pending(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, run("a"))
    capture(database, run("b", NEXT_KEY), key=NEXT_KEY)
    assert partitions_with_pending_verdicts(verdicts.connection, WANTED) == [KEY, NEXT_KEY]
    assert partitions_with_pending_verdicts(verdicts.connection, replace(WANTED, settled_before=HOUR)) == []
    assert (
        partitions_with_pending_verdicts(verdicts.connection, replace(WANTED, ended_since=HOUR + timedelta(seconds=1)))
        == []
    )
    save(verdicts, of_policy("a"))
    assert partitions_with_pending_verdicts(verdicts.connection, WANTED) == [NEXT_KEY]
    save(verdicts, verdict("b", key_of_run("b"), policy_id="other", verdict_status="not_eligible"))
    assert partitions_with_pending_verdicts(verdicts.connection, WANTED) == []


def test_failed_verdict_is_due_after_its_pause_until_abandoned(
    database: TrajectoryDatabase, verdicts: VerdictStore
) -> None:
    capture(database, run("a"))
    for failures in (1, 2):
        save(verdicts, of_policy("a", verdict_status="failed", error_class="timeout"))
        (row,) = database.rows("SELECT * FROM trajectory.verdicts")
        assert (
            partitions_with_pending_verdicts(
                verdicts.connection, replace(WANTED, now=row["next_attempt_at"] - timedelta(seconds=1))
            )
            == []
        )
        assert partitions_with_pending_verdicts(verdicts.connection, replace(WANTED, now=row["next_attempt_at"])) == [
            KEY
        ]
        assert abandoned(verdicts) == [], failures
    save(verdicts, of_policy("a", verdict_status="failed", error_class="timeout"))
    assert partitions_with_pending_verdicts(verdicts.connection, replace(WANTED, now=NOW + timedelta(days=400))) == []
    assert abandoned(verdicts) == [AbandonedVerdict("a", "timeout", 3)]
    assert partitions_with_pending_verdicts(
        verdicts.connection, replace(WANTED, give_up_after=4, now=NOW + timedelta(days=400))
    ) == [KEY]


def test_quarantined_verdict_is_due_again_after_a_day(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    """Until then no worker can claim it."""
    capture(database, run("a"))
    save(verdicts, of_policy("a", verdict_status="quarantined", error_class="invalid_json"))
    (row,) = database.rows("SELECT * FROM trajectory.verdicts")
    assert row["next_attempt_at"] - row["updated_at"] == pytest.approx(timedelta(days=1), abs=timedelta(minutes=1))
    (resting,) = judging_candidates(verdicts.connection, POLICY.policy_id, [KEY], "newest")
    assert (resting.status, resting.due) == ("quarantined", False)
    assert begun(verdicts, "a") == AlreadyClaimed(key_of_run("a"))
    assert (
        partitions_with_pending_verdicts(
            verdicts.connection, replace(WANTED, now=row["next_attempt_at"] - timedelta(seconds=1))
        )
        == []
    )
    assert partitions_with_pending_verdicts(verdicts.connection, replace(WANTED, now=row["next_attempt_at"])) == [KEY]

    save(verdicts, of_policy("a", verdict_status="failed", error_class="timeout"))
    assert statuses(verdicts) == {"a": "quarantined"}
    let_two_days_pass(verdicts)
    (due,) = judging_candidates(verdicts.connection, POLICY.policy_id, [KEY], "newest")
    assert due.due
    assert begun(verdicts, "a") is None
    save(verdicts, of_policy("a", verdict_status="quarantined", error_class="invalid_json"))
    (again,) = database.rows("SELECT * FROM trajectory.verdicts")
    assert again["next_attempt_at"] - again["updated_at"] == pytest.approx(timedelta(days=2), abs=timedelta(minutes=1))
    let_two_days_pass(verdicts)
    save(verdicts, of_policy("a", verdict_status="quarantined", error_class="invalid_json"))
    assert partitions_with_pending_verdicts(verdicts.connection, replace(WANTED, now=NOW + timedelta(days=400))) == []
    assert abandoned(verdicts) == [AbandonedVerdict("a", "invalid_json", 3)]


def let_two_days_pass(verdicts: VerdictStore) -> None:
    verdicts.connection.rows(
        "Waiting", "UPDATE trajectory.verdicts SET next_attempt_at = next_attempt_at - interval '2 days'"
    )


def begun(verdicts: VerdictStore, run_id: str) -> ReservationResult:
    call = reservation(run_id=run_id, verdict_key=key_of_run(run_id))
    return begin_calls(verdicts.connection, (), [call])[0]


def test_failure_without_retry_is_abandoned_at_once(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, run("a"))
    save(verdicts, of_policy("a", verdict_status="failed", error_class="too_long"))
    assert partitions_with_pending_verdicts(verdicts.connection, replace(WANTED, now=NOW + timedelta(days=400))) == []
    assert abandoned(verdicts) == [AbandonedVerdict("a", "too_long", 1)]


def abandoned(verdicts: VerdictStore) -> list[AbandonedVerdict]:
    return abandoned_verdicts(verdicts.connection, POLICY.policy_id, ended_since=HOUR, give_up_after=3)


def test_deferred_verdict_is_due_when_it_fits_the_budget(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, run("a"))
    save(
        verdicts,
        of_policy("a", verdict_status="deferred_budget", deferred_usd=Decimal("0.5"), deferred_tokens=1000),
    )
    assert partitions_with_pending_verdicts(verdicts.connection, WANTED) == [KEY]
    for less in ({"usd": Decimal("0.49")}, {"tokens": Decimal(999)}, {"organization_usd": Decimal("0.49")}):
        assert partitions_with_pending_verdicts(verdicts.connection, replace(WANTED, **less)) == []


def test_organization_without_budget_delays_no_other(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, run("a", organization_id="org"))
    capture(database, run("b", NEXT_KEY, organization_id="another"), key=NEXT_KEY)
    begin_calls(verdicts.connection, [], [reservation("0.5", organization_id="org")])
    today = replace(WANTED, day=f"{verdicts.now():%Y-%m-%d}", organization_usd=Decimal("0.505"))
    assert partitions_with_pending_verdicts(verdicts.connection, today) == [NEXT_KEY]
    assert partitions_with_pending_verdicts(verdicts.connection, replace(today, organization_usd=Decimal("0.51"))) == [
        KEY,
        NEXT_KEY,
    ]
    assert partitions_with_pending_verdicts(verdicts.connection, replace(today, day="2020-01-01")) == [KEY, NEXT_KEY]


def test_partition_with_failed_counts_is_not_pending(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, run("a"))
    for result, due in (("complete", [KEY]), ("quarantined", [KEY]), ("inconsistent", [])):
        with database.partition("trajectories", KEY) as partition:
            partition.record(LedgerEntry("trajectories", KEY, result, {}, "digest", "1"))
        assert partitions_with_pending_verdicts(verdicts.connection, WANTED) == due


def test_run_before_the_lookback_is_not_pending(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    capture(database, run("a"))
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.trajectories SET end_time = end_time - interval '8 days'")
    assert partitions_with_pending_verdicts(verdicts.connection, WANTED) == []
