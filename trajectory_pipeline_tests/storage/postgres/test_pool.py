"""A pool of connections of two kinds has no more of them than threads borrow."""

import time
from contextlib import ExitStack

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

KEPT = 3


def open_connections(database: TrajectoryDatabase) -> int:
    (row,) = database.rows(
        "SELECT count(*) AS number FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return int(row["number"])


def assert_open(database: TrajectoryDatabase, number: int) -> None:
    """Postgres shows a connection for a moment after it was closed."""
    until = time.monotonic() + 10
    while open_connections(database) != number and time.monotonic() < until:
        time.sleep(0.02)
    assert open_connections(database) == number


def borrow(pooled: TrajectoryDatabase, *, autocommit: bool) -> None:
    with ExitStack() as loans:
        for _ in range(KEPT):
            loans.enter_context(pooled.connect(autocommit=autocommit))


def test_connections_of_both_kinds_together_are_as_many_as_asked_for(trajectory_database: str) -> None:
    database = TrajectoryDatabase(trajectory_database)
    before = open_connections(database)
    with database.pooled(KEPT) as pooled:
        for autocommit in (True, False, True):
            borrow(pooled, autocommit=autocommit)
            assert_open(database, before + KEPT)


def test_one_of_each_kind_is_kept_where_one_is_asked_for(trajectory_database: str) -> None:
    database = TrajectoryDatabase(trajectory_database)
    before = open_connections(database)
    with database.pooled() as pooled:
        for autocommit in (True, False, True):
            borrow(pooled, autocommit=autocommit)
        assert_open(database, before + 2)
