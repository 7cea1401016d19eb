"""The contract of partitions: hours, UTC, keyed alike by Dagster and by us; ranges and tags there and back."""

from datetime import UTC, datetime, timedelta

import pytest
from dagster import PartitionKeyRange

from trajectory_pipeline.defs.partitions import (
    existing_hours,
    hourly_partitions,
    hours_of_tags,
    range_tags,
)
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import HOUR, contiguous, parse_partition_key, partition_key

START = datetime(2025, 1, 1, tzinfo=UTC)
NOON = datetime(2025, 3, 30, 12, tzinfo=UTC)


def test_partition_keys_of_dagster_equal_ours() -> None:
    now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    keys = hourly_partitions(START).get_partition_keys(current_time=now)
    assert keys == [partition_key(START + number * HOUR) for number in range(28)]
    assert [partition_key(parse_partition_key(key)) for key in keys] == keys


def test_partitions_end_with_the_open_hour() -> None:
    partitions = hourly_partitions(START)
    for now in (NOON, NOON + timedelta(minutes=59, seconds=59, microseconds=999_999)):
        assert partitions.get_partition_keys(current_time=now)[-1] == "2025-03-30-12:00"


def test_partitions_across_clock_changes_have_every_hour_once() -> None:
    now = datetime(2025, 11, 3, tzinfo=UTC)
    keys = hourly_partitions(datetime(2025, 3, 29, tzinfo=UTC)).get_partition_keys(current_time=now)
    assert len(keys) == len(set(keys)) == (now - datetime(2025, 3, 29, tzinfo=UTC)) / HOUR + 1


def test_partition_window_is_half_open() -> None:
    window = hourly_partitions(START).time_window_for_partition_key("2025-03-30-12:00")
    assert (window.start, window.end) == (NOON, NOON + HOUR)


def test_contiguous_splits_at_gaps_and_at_the_longest() -> None:
    hours = [NOON + number * HOUR for number in (0, 1, 2, 4, 5, 6, 7, 8, 11)]
    assert [(first.hour, last.hour) for first, last in contiguous(hours, 3)] == [(12, 14), (16, 18), (19, 20), (23, 23)]
    assert contiguous([], 3) == []
    assert contiguous(hours[:3], 1) == [(hour, hour) for hour in hours[:3]]


def test_hours_of_tags_reads_single_and_range_tags() -> None:
    assert hours_of_tags(range_tags(NOON, NOON + 3 * HOUR)) == (NOON, NOON + 3 * HOUR)
    assert hours_of_tags({"dagster/partition": "2025-03-30-12:00"}) == (NOON, NOON)
    assert hours_of_tags({}) is None
    assert hours_of_tags({"dagster/partition": "europe"}) is None
    assert hours_of_tags({"dagster/asset_partition_range_start": "2025-03-30-12:00"}) is None


def test_range_tags_select_the_range_in_dagster() -> None:
    tags = range_tags(NOON, NOON + HOUR)
    keys = hourly_partitions(START).get_partition_keys_in_range(
        PartitionKeyRange(tags["dagster/asset_partition_range_start"], tags["dagster/asset_partition_range_end"])
    )
    assert keys == ["2025-03-30-12:00", "2025-03-30-13:00"]


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        ([], "The range is empty: --to must be after --from."),
        ([START - HOUR, START], "2024-12-31-23:00 is before the first partition, 2025-01-01-00:00: set"),
        (
            [NOON, NOON + HOUR],
            "2025-03-30-13:00 is in the future: the last partition is the open hour, 2025-03-30-12:00.",
        ),
    ],
)
def test_existing_hours_outside_the_partitions_are_refused(hours: list[datetime], words: str) -> None:
    with pytest.raises(PipelineError) as caught:
        existing_hours(hours, START, NOON + timedelta(minutes=30))
    assert str(caught.value).startswith(words)


def test_existing_hours_include_the_first_and_the_open_hour() -> None:
    hours = [START, NOON]
    assert existing_hours(hours, START, NOON + timedelta(minutes=30)) == hours
