"""The contract of what both sensors share: pure functions that say what to compare, and what to request.

The cursor is a hint: whatever it holds, the recent hours are compared at every tick and the whole history in turn.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajectory_pipeline.defs.asset_keys import CAPTURE, REFINEMENT
from trajectory_pipeline.defs.partitions import range_tags
from trajectory_pipeline.defs.sensors.capture import (
    MAX_DIVISOR,
    OLDER_PER_TICK,
    RECENT,
    Cursor,
    hours_to_compare,
)
from trajectory_pipeline.defs.sensors.run_requests import (
    MAX_RUNS_PER_TICK,
    SECONDS_BETWEEN_TICKS,
    exclude_hours,
    hours_failed_since,
    hours_in_progress,
    run_requests,
)
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, hours_between, partition_key
from trajectory_pipeline_tests.defs.dagster_runs import add_run

START = datetime(2025, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 1, 12, 34, 56, tzinfo=UTC)
OPEN = datetime(2026, 1, 1, 12, tzinfo=UTC)
RECENT_HOURS = 49

# ---- which hours a tick compares ------------------------------------------------------------------------------------


def test_hours_to_compare_are_two_recent_days_and_ten_older() -> None:
    hours, cursor = hours_to_compare(NOW, START, Cursor())
    assert hours[-1] == OPEN
    assert hours == [OPEN - number * HOUR for number in reversed(range(RECENT_HOURS + OLDER_PER_TICK))]
    assert cursor.text() == partition_key(hours[0])


def test_hours_to_compare_cover_the_history_in_rounds() -> None:
    seen: set[datetime] = set()
    cursor = Cursor()
    ticks = 0
    history = {START + number * HOUR for number in range(int((OPEN - START) / HOUR) + 1)}
    while seen != history:
        hours, cursor = hours_to_compare(NOW, START, cursor)
        assert len(hours) <= RECENT_HOURS + OLDER_PER_TICK
        assert set(hours[-RECENT_HOURS:]) == {OPEN - number * HOUR for number in range(RECENT_HOURS)}
        seen |= set(hours)
        ticks += 1
    assert ticks == 37  # a year, half a minute each
    assert hours_to_compare(NOW, START, cursor) == hours_to_compare(NOW, START, Cursor())


def test_hours_to_compare_miss_no_hour_as_time_passes() -> None:
    """A round takes ticks, and hours grow old in the meantime: each must be compared once a round at the latest."""
    last_seen: dict[datetime, int] = {}
    cursor = Cursor()
    start = NOW - timedelta(days=60)
    round_length = 60 * 24 // OLDER_PER_TICK + 2
    for tick in range(200):
        now = NOW + tick * timedelta(minutes=20)
        hours, cursor = hours_to_compare(now, start, cursor)
        last_seen.update(dict.fromkeys(hours, tick))
        if tick > round_length:
            overdue = [hour for hour, seen in last_seen.items() if tick - seen > round_length]
            assert overdue == []


@pytest.mark.parametrize("cursor", ["", "rubbish", "2026-01-01", "2025-06-01-10:30", "9999-12-31-23:00", "{}"])
def test_invalid_cursor_starts_a_round(cursor: str) -> None:
    assert hours_to_compare(NOW, START, Cursor.read(cursor)) == hours_to_compare(NOW, START, Cursor())


def test_cursor_before_the_first_partition_starts_a_round() -> None:
    assert hours_to_compare(NOW, START, Cursor.read("2019-01-01-00:00")) == hours_to_compare(NOW, START, Cursor())


def test_hours_to_compare_after_recent_start_are_its_own() -> None:
    start = OPEN - 3 * HOUR
    assert hours_to_compare(NOW, start, Cursor())[0] == [start + number * HOUR for number in range(4)]


def test_hours_to_compare_before_the_start_are_none() -> None:
    assert hours_to_compare(NOW, NOW + timedelta(days=1), Cursor())[0] == []


@given(
    age=st.timedeltas(timedelta(0), timedelta(days=900)),
    cursor=st.one_of(
        st.none(), st.text(max_size=20), st.integers(0, 30_000).map(lambda n: partition_key(START + n * HOUR))
    ),
)
def test_hours_to_compare_are_ordered_and_include_the_recent(age: timedelta, cursor: str | None) -> None:
    now = START + age
    hours, following = hours_to_compare(now, START, Cursor.read(cursor))
    assert hours == sorted(set(hours))
    assert START <= hours[0] <= hours[-1] == floor_to_hour(now)
    assert {hour for hour in hours if hour > now - RECENT} == {
        hour
        for hour in (floor_to_hour(now) - number * HOUR for number in range(RECENT_HOURS))
        if hour > now - RECENT and hour >= START
    }
    assert hours_to_compare(now, START, following)[0]


def test_ten_years_are_compared_within_a_day_by_slow_ticks() -> None:
    hours = 10 * 365 * 24
    for divisor in (1, 2, 4):
        ticks = hours / (OLDER_PER_TICK // divisor)
        assert ticks * SECONDS_BETWEEN_TICKS <= 24 * 3600


@settings(deadline=None)
@given(divisor=st.sampled_from([2**number for number in range(9)]), age=st.integers(0, 5000))
def test_hours_to_compare_with_divisor_cover_the_history(divisor: int, age: int) -> None:
    now, start = NOW, NOW - timedelta(hours=min(age, 300 // divisor))
    cursor = Cursor(divisor=divisor)
    seen: set[datetime] = set()
    for _ in range(min(age, 300) + 3):
        hours, cursor = hours_to_compare(now, start, cursor)
        assert len(hours) <= (RECENT // HOUR + OLDER_PER_TICK) // divisor + 3
        assert hours[-1] == floor_to_hour(now)
        seen |= set(hours)
        cursor = Cursor.read(cursor.text())
    assert seen == set(hours_between(floor_to_hour(start), floor_to_hour(now) + HOUR))
    assert cursor.divisor == divisor


def test_cursor_halves_after_timeout_and_doubles_when_quick() -> None:
    cursor = Cursor(START)
    assert Cursor.read(cursor.slower().text()) == Cursor(START, 2)
    assert cursor.slower().slower().faster() == Cursor(START, 2)
    assert Cursor(None, MAX_DIVISOR).slower() == Cursor(None, MAX_DIVISOR) == Cursor.read(f" / {MAX_DIVISOR}")
    assert cursor.faster() == cursor


# ---- what a tick requests -------------------------------------------------------------------------------------------


def asked(hours: list[datetime], longest: int = 24) -> list[tuple[str, ...]]:
    return [
        (request.partition_key,)
        if request.partition_key
        else (
            request.tags["dagster/asset_partition_range_start"],
            request.tags["dagster/asset_partition_range_end"],
        )
        for request in run_requests(hours, CAPTURE, longest, "why")
    ]


def test_run_requests_join_neighbors_newest_first() -> None:
    hours = [OPEN - number * HOUR for number in (0, 1, 2, 9, 20, 21)]
    assert asked(hours) == [
        (partition_key(OPEN - 2 * HOUR), partition_key(OPEN)),
        (partition_key(OPEN - 9 * HOUR),),
        (partition_key(OPEN - 21 * HOUR), partition_key(OPEN - 20 * HOUR)),
    ]


def test_run_requests_are_no_longer_than_a_batch() -> None:
    hours = [OPEN - number * HOUR for number in range(50)]
    assert [len(pair) for pair in asked(hours, longest=24)] == [2, 2, 2]
    assert asked(hours[:3], longest=1) == [(partition_key(hour),) for hour in hours[:3]]


def test_run_requests_are_limited_to_the_newest() -> None:
    hours = [OPEN - 2 * number * HOUR for number in range(3 * MAX_RUNS_PER_TICK)]
    assert asked(hours) == [(partition_key(hour),) for hour in hours[:MAX_RUNS_PER_TICK]]


def test_run_request_has_reason_and_assets_and_no_run_key() -> None:
    """A run key dedupes for ever: a partition that has to be read again would be dropped in silence."""
    [request] = run_requests([OPEN], REFINEMENT, 24, "verdicts are missing")
    assert request.tags == {"trajectory/reason": "verdicts are missing"}
    assert request.asset_selection == REFINEMENT
    assert request.run_key is None


def test_run_requests_of_no_hours_are_none() -> None:
    assert run_requests([], CAPTURE, 24, "why") == []


# ---- in progress, or failed -----------------------------------------------------------------------------------------


def test_exclude_hours_includes_both_ends_of_a_range() -> None:
    hours = [OPEN + number * HOUR for number in range(6)]
    assert exclude_hours(hours, [(hours[1], hours[3]), (hours[5], hours[5])]) == [hours[0], hours[4]]
    assert exclude_hours(hours, []) == hours


@pytest.mark.parametrize("status", ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
def test_hours_in_progress_are_of_queued_and_running_runs(instance: dg.DagsterInstance, status: str) -> None:
    add_run(instance, dg.DagsterRunStatus(status), {"dagster/partition": partition_key(OPEN)})
    add_run(instance, dg.DagsterRunStatus(status), range_tags(OPEN - 5 * HOUR, OPEN - 2 * HOUR))
    assert set(hours_in_progress(instance, CAPTURE)) == {(OPEN, OPEN), (OPEN - 5 * HOUR, OPEN - 2 * HOUR)}


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "CANCELED"])
def test_hours_in_progress_exclude_ended_runs(instance: dg.DagsterInstance, status: str) -> None:
    add_run(instance, dg.DagsterRunStatus(status), {"dagster/partition": partition_key(OPEN)})
    assert hours_in_progress(instance, CAPTURE) == []


def test_hours_in_progress_exclude_runs_without_hours(instance: dg.DagsterInstance) -> None:
    add_run(instance, dg.DagsterRunStatus.STARTED, {})
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": "europe"})
    assert hours_in_progress(instance, CAPTURE) == []


def test_hours_in_progress_of_capture_exclude_judging_runs(instance: dg.DagsterInstance) -> None:
    """A judge may take an hour for a day's verdicts: the open hour's new runs are not to wait for it."""
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": partition_key(OPEN)}, REFINEMENT)
    assert hours_in_progress(instance, CAPTURE) == []
    assert hours_in_progress(instance, REFINEMENT) == [(OPEN, OPEN)]


def test_hours_in_progress_include_runs_without_selection(instance: dg.DagsterInstance) -> None:
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": partition_key(OPEN)})
    assert hours_in_progress(instance, CAPTURE) == hours_in_progress(instance, REFINEMENT) == [(OPEN, OPEN)]


def test_hours_failed_since_end_with_the_pause(instance: dg.DagsterInstance) -> None:
    now = datetime.now(UTC)
    add_run(instance, dg.DagsterRunStatus.FAILURE, {"dagster/partition": partition_key(OPEN)}, CAPTURE)
    add_run(instance, dg.DagsterRunStatus.CANCELED, {"dagster/partition": partition_key(OPEN - HOUR)}, CAPTURE)
    assert hours_failed_since(instance, CAPTURE, now - timedelta(minutes=10)) == [(OPEN, OPEN)]
    assert hours_failed_since(instance, REFINEMENT, now - timedelta(minutes=10)) == []
    assert hours_failed_since(instance, CAPTURE, now + timedelta(minutes=10)) == []
