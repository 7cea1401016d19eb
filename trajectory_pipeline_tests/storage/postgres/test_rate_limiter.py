"""The contract of a shared limit: whoever takes turns, and from how many processes, no minute holds more than allowed.

What is looked at are the times that turns were given, by the database's clock: nothing waits for them here.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.rate_limiter import RateLimit, open_rate_limiter
from trajectory_pipeline_tests.start_together import told_by

MINUTE = timedelta(minutes=1)
TURNS = 60


def take_slots_in_processes(
    url: str, limit: dict[str, Any], tokens: Sequence[int], processes: int
) -> list[tuple[str, int]]:
    """Turns that several processes took at once, each of them ``TURNS``: when, and for how many tokens."""
    program = f"""
        import json
        from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
        from trajectory_pipeline.storage.postgres.rate_limiter import RateLimit, open_rate_limiter

        tokens = {list(tokens)!r}
        with open_rate_limiter(TrajectoryDatabase({url!r}), RateLimit("http://host/v1", "m", **{limit!r})) as limiter:
            print("ready", flush=True)
            input()
            taken = [(limiter.take(wanted), wanted) for wanted in (tokens[n % len(tokens)] for n in range({TURNS}))]
        print(json.dumps([(turn.at.isoformat(), wanted) for turn, wanted in taken]))
    """
    found: list[tuple[str, int]] = []
    for told in told_by([program] * processes):
        found.extend((at, wanted) for at, wanted in json.loads(told))
    return sorted(found)


@pytest.mark.parametrize(
    ("limit", "tokens"),
    [
        ({"requests_per_minute": 30}, [100]),
        ({"tokens_per_minute": 90_000}, [1_000, 9_000, 200]),
        ({"requests_per_minute": 40, "tokens_per_minute": 90_000}, [10, 30_000, 10, 10]),
    ],
    ids=["requests", "tokens", "both"],
)
def test_rate_limit_holds_each_minute_across_processes(
    trajectory_database: str, limit: dict[str, Any], tokens: list[int]
) -> None:
    taken = [
        (datetime.fromisoformat(at), wanted)
        for at, wanted in take_slots_in_processes(trajectory_database, limit, tokens, 2)
    ]
    assert len(taken) == 2 * TURNS
    for begin, _ in taken:
        within = [wanted for at, wanted in taken if begin <= at < begin + MINUTE]
        assert len(within) <= limit.get("requests_per_minute", len(taken))
        # A call's tokens are used when it is sent: the last one of a minute may reach over its end.
        assert sum(within[:-1]) <= limit.get("tokens_per_minute", sum(within))
    # And nothing is given away: the turns follow one another without a gap.
    allowed = RateLimit("", "", **limit)
    for (at, wanted), (following, _) in pairwise(taken):
        assert following - at == pytest.approx(
            timedelta(seconds=allowed.seconds(wanted)), abs=timedelta(milliseconds=1)
        )


def test_slot_says_how_long_to_wait_and_a_free_one_is_now(trajectory_database: str) -> None:
    limit = RateLimit("http://host/v1", "m", requests_per_minute=1)
    with open_rate_limiter(TrajectoryDatabase(trajectory_database), limit) as limiter:
        assert limiter is not None
        first, second, third = (limiter.take(1) for _ in range(3))
    assert first.wait_seconds == 0
    assert second.at - first.at == third.at - second.at == MINUTE
    assert second.wait_seconds <= 60 < third.wait_seconds <= 120


def test_each_model_and_endpoint_has_its_own_limit(trajectory_database: str) -> None:
    database = TrajectoryDatabase(trajectory_database)
    for base_url, model in (("http://a/v1", "m"), ("http://a/v1", "n"), ("http://b/v1", "m")):
        with open_rate_limiter(database, RateLimit(base_url, model, requests_per_minute=1)) as limiter:
            assert limiter is not None
            assert limiter.take(1).wait_seconds == 0


def test_unused_past_slots_are_lost(trajectory_database: str) -> None:
    with psycopg.connect(trajectory_database) as connection:
        connection.execute("INSERT INTO trajectory.rate_limits VALUES ('http://a/v1', 'm', now() - interval '1 hour')")
    with open_rate_limiter(
        TrajectoryDatabase(trajectory_database), RateLimit("http://a/v1", "m", requests_per_minute=1)
    ) as limiter:
        assert limiter is not None
        assert [limiter.take(1).wait_seconds > 0 for _ in range(3)] == [False, True, True]


def test_rate_limiter_reconnects_after_a_lost_connection(trajectory_database: str) -> None:
    limit = RateLimit("http://a/v1", "m", requests_per_minute=600)
    with open_rate_limiter(TrajectoryDatabase(trajectory_database), limit) as limiter:
        assert limiter is not None
        limiter.take(1)
        with psycopg.connect(trajectory_database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert limiter.take(1).wait_seconds >= 0


def test_rate_limiter_without_a_limit_opens_no_connection() -> None:
    unreachable = TrajectoryDatabase("postgresql://nobody@127.0.0.1:1/nothing")
    with open_rate_limiter(unreachable, RateLimit("http://a/v1", "m")) as limiter:
        assert limiter is None
