"""The contract of the accounts: room is reserved before a call and settled after it, and no cap is ever passed.

Many workers share them, some die amid a call: what was reserved for that call stays reserved, and counts.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest

from trajectory_pipeline.budget.caps import Budget, BudgetShortfall, Cost
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.spend_ledger import day_of, spend_totals
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline_tests.storage.calls import (
    begin_calls,
    end_calls,
    ended_attempt,
    reservation,
    totals_by_scope,
    totals_from_attempts,
)

CAP = Budget(daily_usd=Decimal("0.03")).caps


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    return TrajectoryDatabase(trajectory_database)


@pytest.fixture
def verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    with open_verdicts(database) as store:
        yield store


def test_call_is_reserved_at_begin_and_settled_at_end(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    call = reservation("0.01", 100)
    assert begin_calls(verdicts.connection, CAP, [call]) == [None]
    (row,) = database.rows("SELECT * FROM trajectory.verdict_attempts")
    assert (row["result"], row["cost_usd"], row["duration_ns"]) == ("lost", Decimal("0.01"), None)
    zero = Decimal(0)
    assert set(totals_by_scope(database).values()) == {(1, Decimal("0.01"), zero, 100, 0)}
    end_calls(verdicts.connection, [ended_attempt(call, "0.004")])
    (row,) = database.rows("SELECT * FROM trajectory.verdict_attempts")
    assert (row["result"], row["cost_usd"], row["reserved_usd"]) == ("answered", Decimal("0.004"), Decimal("0.01"))
    assert totals_by_scope(database) == dict.fromkeys(
        ("day", "organization", "materialization"), (1, zero, Decimal("0.004"), 0, 9)
    )


def test_reserve_and_settle_are_idempotent(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    """Where a connection is lost while a transaction commits, it is done again."""
    call = reservation()
    for _ in range(2):
        begin_calls(verdicts.connection, CAP, [call])
    assert totals_by_scope(database)["day"][0] == 1
    for _ in range(2):
        end_calls(verdicts.connection, [ended_attempt(call, "0.004")])
    assert totals_by_scope(database)["day"] == totals_from_attempts(database)


@pytest.mark.parametrize(
    ("told", "usd", "tokens"),
    [
        ({"result": "answered"}, "0.004", 9),
        ({"result": "error", "cost_usd": None, "input_tokens": None}, "0", 0),
        ({"result": "lost", "cost_usd": Decimal("0.01"), "input_tokens": None}, "0.01", 100),
        ({"result": "unusable", "cost_usd": None, "input_tokens": None}, "0.01", 100),
        ({"result": "answered", "cost_usd": None}, "0.01", 9),
    ],
    ids=["answered", "refused by the provider", "lost", "without usage", "by a model without a price"],
)
def test_unreported_cost_counts_as_reserved(
    database: TrajectoryDatabase, verdicts: VerdictStore, told: dict[str, object], usd: str, tokens: int
) -> None:
    call = reservation("0.01", 100)
    begin_calls(verdicts.connection, CAP, [call])
    end_calls(verdicts.connection, [ended_attempt(call, "0.004", **told)])
    assert totals_by_scope(database)["day"] == (1, 0, Decimal(usd), 0, tokens)


def test_call_beyond_a_cap_is_refused_and_others_begin(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    calls = [reservation("0.02"), reservation("0.02"), reservation("0.01"), reservation("0.04")]
    first, second, third, fourth = begin_calls(verdicts.connection, CAP, calls)
    assert (first, third) == (None, None)
    assert isinstance(second, BudgetShortfall)
    assert (second.cap.name, second.remaining, second.could_free_up) == ("daily_budget", Decimal("0.01"), True)
    assert isinstance(fourth, BudgetShortfall)
    assert not fourth.could_free_up
    assert str(fourth) == (
        "one call may cost 0.04 USD, more than the whole of the budget of a day (UTC) of 0.03 USD"
        " (TRAJECTORY_DAILY_BUDGET_USD)"
    )
    assert len(database.rows("SELECT 1 FROM trajectory.verdict_attempts")) == 2
    end_calls(verdicts.connection, [ended_attempt(calls[0], "0.01")])
    assert begin_calls(verdicts.connection, CAP, [calls[1]]) == [
        BudgetShortfall(CAP[0], Cost(Decimal("0.02"), 100), Decimal("0.01"), True)
    ]


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (Budget(daily_usd=Decimal("0.01")), "daily_budget"),
        (Budget(organization_usd=Decimal("0.01")), "organization_budget"),
        (Budget(materialization_usd=Decimal("0.01")), "materialization_budget"),
        (Budget(daily_tokens=100), "daily_tokens"),
        (Budget(materialization_tokens=100), "materialization_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_cap_limits_its_scope(verdicts: VerdictStore, budget: Budget, name: str) -> None:
    def refusal(**values: str) -> str | None:
        (told,) = begin_calls(verdicts.connection, budget.caps, [reservation("0.01", 100, **values)])
        return told.cap.name if isinstance(told, BudgetShortfall) else None

    assert refusal() is None
    assert refusal() == name
    elsewhere = {"organization_id": "another"} if name.startswith("organization") else {"materialization_id": "another"}
    assert refusal(**elsewhere) == (name if name.startswith("daily") else None)


def test_spend_totals_are_by_utc_day(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    begin_calls(verdicts.connection, CAP, [reservation("0.03")])
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.spend_totals SET scope_key = '2026-01-01' WHERE scope = 'day'")
    today = day_of(verdicts.now())
    assert spend_totals(verdicts.connection, today, "org", "run").keys() == {"organization", "materialization"}
    assert begin_calls(verdicts.connection, CAP, [reservation("0.03")]) == [None]
    assert spend_totals(verdicts.connection, today, "org", "run")["day"].reserved.usd == Decimal("0.03")


def test_call_without_a_price_counts_tokens_only(database: TrajectoryDatabase, verdicts: VerdictStore) -> None:
    call = reservation(None, 100)
    caps = Budget(daily_usd=Decimal(0), daily_tokens=150).caps
    assert begin_calls(verdicts.connection, caps, [call]) == [None]
    (refused,) = begin_calls(verdicts.connection, caps, [reservation(None, 51)])
    assert isinstance(refused, BudgetShortfall)
    assert refused.cap.name == "daily_tokens"
    end_calls(verdicts.connection, [ended_attempt(call, None)])
    assert database.rows("SELECT cost_usd, reserved_usd FROM trajectory.verdict_attempts") == [
        {"cost_usd": None, "reserved_usd": None}
    ]
    assert totals_by_scope(database)["day"] == (1, 0, 0, 0, 9)


@pytest.mark.heavy
def test_worker_processes_never_exceed_a_cap_even_if_killed(
    database: TrajectoryDatabase,
) -> None:
    """Workers in processes of their own share each cap, also where one of them is killed."""
    cap = Decimal(2)
    with psycopg.connect(database.url) as connection:
        # Postgres itself watches, at every change that anybody makes: a worker that passed the cap would fail.
        connection.execute(
            f"ALTER TABLE trajectory.spend_totals ADD CHECK (reserved_usd + spent_usd <= {cap})".encode()
        )

    def start(seed: int, batches: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "trajectory_pipeline_tests.storage.spend_worker", database.url, str(seed)]
        return subprocess.Popen([*command, str(batches), str(cap)], stderr=subprocess.PIPE, text=True)

    killed = start(0, 0)
    workers = [start(seed, 60) for seed in (1, 2, 3)]
    for worker in (killed, *workers):
        _, told = worker.communicate(timeout=120)
        assert worker.returncode == (-signal.SIGKILL if worker is killed else 0), told
    booked_by_scope = totals_by_scope(database)
    # It was the cap that ended it, and every account holds what the attempts add up to.
    assert cap - sum(booked_by_scope["day"][1:3]) < Decimal("0.1")
    assert set(booked_by_scope.values()) == {totals_from_attempts(database)}
