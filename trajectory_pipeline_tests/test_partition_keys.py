"""Partition keys are UTC hours, and a range of times gives every hour that it touches."""

import pickle
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import (
    HOUR,
    LETTA,
    at_source,
    contiguous,
    floor_to_hour,
    hours_between,
    hours_of,
    parse_partition_key,
    parse_timestamp,
    partition_key,
    source_run_id,
)

OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(2000, 1, 2), datetime(2100, 1, 1), timezones=OFFSETS)


@given(MOMENTS)
def test_partition_key_names_the_utc_hour_of_a_time(moment: datetime) -> None:
    hour = parse_partition_key(partition_key(moment))
    assert hour <= moment < hour + HOUR
    assert (hour.tzinfo, hour.minute, hour.second, hour.microsecond) == (UTC, 0, 0, 0)
    assert hour == floor_to_hour(moment) == floor_to_hour(hour)
    assert partition_key(hour) == partition_key(moment)


def test_partition_key_has_the_format_of_dagster() -> None:
    assert partition_key(datetime(2026, 11, 21, 9, 59, tzinfo=UTC)) == "2026-11-21-09:00"
    assert partition_key(datetime(2026, 11, 21, 0, 30, tzinfo=timezone(timedelta(hours=1)))) == "2026-11-20-23:00"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "yesterday",
        "2026-11-21",
        "2026-11-21-09:30",
        "2026-11-21-9:00",
        "2026-13-01-00:00",
        "2026-11-21T09:00",
        "\n",
    ],
)
def test_parse_partition_key_of_invalid_text_shows_an_example(key: str) -> None:
    with pytest.raises(PipelineError, match=r"is no partition key: .* for example 2026-11-21-09:00\.$"):
        parse_partition_key(key)


@given(MOMENTS, st.timedeltas(timedelta(), timedelta(days=3)))
def test_hours_between_gives_every_hour_that_a_range_touches(start: datetime, length: timedelta) -> None:
    end = start + length
    hours = list(hours_between(start, end))
    assert hours == sorted(set(hours))
    assert all(hour < end and hour + HOUR > start for hour in hours)
    if length:
        assert hours[0] == floor_to_hour(start)
        assert hours[-1] == floor_to_hour(end - timedelta(microseconds=1))
        assert len(hours) == (hours[-1] - hours[0]) // HOUR + 1


def test_hours_between_excludes_the_end() -> None:
    nine = datetime(2026, 11, 21, 9, tzinfo=UTC)
    assert list(hours_between(nine, nine)) == []
    assert list(hours_between(nine, nine + HOUR)) == [nine]
    assert list(hours_between(nine, nine + HOUR + timedelta(seconds=1))) == [nine, nine + HOUR]
    assert list(hours_between(nine, nine - HOUR)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21", datetime(2026, 11, 21, tzinfo=UTC)),
        ("2026-11-21T09:30", datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ("2026-11-21 09:30", datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ("2026-11-21T10:00+01:00", datetime(2026, 11, 21, 9, tzinfo=UTC)),
        ("2026-11-21T09:00Z", datetime(2026, 11, 21, 9, tzinfo=UTC)),
    ],
)
def test_parse_timestamp_without_an_offset_is_utc(text: str, expected: datetime) -> None:
    assert parse_timestamp(text) == expected
    assert parse_timestamp(text).tzinfo is UTC


@pytest.mark.parametrize("text", ["", "soon", "2026-11-31", "21.11.2026", "0001-01-01T00:00+14:00", "25:00"])
def test_parse_timestamp_of_invalid_text_shows_an_example(text: str) -> None:
    with pytest.raises(PipelineError, match=r"is no time: write it as 2026-11-21, .*\.$"):
        parse_timestamp(text)


def test_hour_of_another_source_keeps_its_source_and_never_equals_that_of_the_letta_database() -> None:
    plain = datetime(2026, 11, 21, 9, tzinfo=UTC)
    hour = parse_partition_key("2026-11-21-09:00~laptop")
    assert partition_key(hour) == "2026-11-21-09:00~laptop"
    assert [partition_key(each) for each in hours_between(hour, hour + 2 * HOUR)] == [
        "2026-11-21-09:00~laptop",
        "2026-11-21-10:00~laptop",
    ]
    assert partition_key(hour - HOUR) == "2026-11-21-08:00~laptop"
    assert partition_key(pickle.loads(pickle.dumps(hour))) == partition_key(hour)
    assert partition_key(floor_to_hour(hour + timedelta(minutes=59))) == partition_key(hour)
    assert hour == at_source(plain, "laptop") != plain != hour
    assert hour != at_source(plain, "other")
    assert len({hour, plain, at_source(plain, "laptop"), at_source(plain, "other")}) == 3
    assert plain <= hour <= plain
    assert hour - plain == timedelta(0)
    assert at_source(hour, LETTA) == plain
    assert hours_of("laptop", [plain, hour]) == [hour]
    assert contiguous([hour, hour + HOUR], 9) == [(hour, hour + HOUR)]


def test_ids_of_two_sources_are_never_equal() -> None:
    assert len({source_run_id(name, "1") for name in (LETTA, "laptop", "other")}) == 3
