"""The contract of where runs are noted: in portions of any size, what one look says holds for all of its runs."""

from datetime import UTC, datetime, timedelta

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trajectory_pipeline.storage.postgres import run_locations
from trajectory_pipeline.storage.postgres.run_locations import SnapshotObservation, record_locations, unaccounted_runs

HERE, THERE = "2026-05-01-10:00", "2026-05-01-11:00"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
IDS = [f"run-{number}" for number in range(10, 17)]


@pytest.fixture(params=[1, 2, 3, 10_000])
def in_small_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_locations, "_IDS_AT_ONCE", request.param)


def observe(
    connection: psycopg.Connection, key: str, present: list[str], *, left: tuple[str, ...] = (), minutes: int = 0
) -> None:
    ids = pa.array(sorted(present), pa.string())
    record_locations(
        connection, key, SnapshotObservation(NOON + timedelta(minutes=minutes), ids, pending_move=(), departed=left)
    )


def locations(connection: psycopg.Connection) -> dict[str, str | None]:
    return dict(connection.execute("SELECT run_id, partition_key FROM trajectory.run_locations").fetchall())


@pytest.mark.usefixtures("in_small_batches")
def test_observation_records_its_runs_and_clears_departed(trajectory_database: str) -> None:
    with psycopg.connect(trajectory_database) as connection:
        observe(connection, HERE, IDS)
        observe(connection, THERE, IDS[2:5], minutes=1)
        assert locations(connection) == {run_id: THERE if run_id in IDS[2:5] else HERE for run_id in IDS}
        observe(connection, HERE, [IDS[0]], left=(IDS[1], IDS[6]), minutes=2)
        found = locations(connection)
        assert (found[IDS[0]], found[IDS[1]], found[IDS[6]], found[IDS[5]]) == (HERE, None, None, HERE)


@pytest.mark.usefixtures("in_small_batches")
def test_unaccounted_runs_are_found_in_order(trajectory_database: str) -> None:
    with psycopg.connect(trajectory_database) as connection:
        observe(connection, HERE, IDS)
        observe(connection, THERE, ["run-2"])
        among = pa.array(["run-00", IDS[1], IDS[4], "run-99"], pa.string())
        assert list(unaccounted_runs(connection, HERE, among)) == [IDS[0], *IDS[2:4], *IDS[5:]]
        assert list(unaccounted_runs(connection, HERE, pa.array([], pa.string()))) == IDS


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.sets(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=3)), data=st.data()
)
def test_unaccounted_runs_follow_the_order_of_the_database(
    trajectory_database: str, ids: set[str], data: st.DataObject
) -> None:
    among = {run_id for run_id in sorted(ids) if data.draw(st.booleans())}
    with psycopg.connect(trajectory_database) as connection:
        observe(connection, HERE, list(ids))
        rest = list(unaccounted_runs(connection, HERE, pa.array(sorted(among), pa.string())))
        connection.rollback()
    assert rest == sorted(ids - among)
