"""The partitions definition that all stages share: hours, UTC. Their arithmetic is in ``partition_keys``."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import dagster as dg

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import (
    KEY_FORMAT,
    LETTA,
    floor_to_hour,
    parse_partition_key,
    partition_key,
    source_suffix,
)

PARTITION_TAG = "dagster/partition"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
"""Dagster's tags of a run over one partition, or over a range."""


def hourly_partitions(start: datetime, source: str = LETTA) -> dg.HourlyPartitionsDefinition:
    """Return the hours of a source from ``start`` on, UTC; the open hour is a partition too (``end_offset=1``)."""
    fmt = f"{KEY_FORMAT}{source_suffix(source)}"
    return dg.HourlyPartitionsDefinition(start_date=start, timezone="UTC", fmt=fmt, end_offset=1)


def existing_hours(hours: Sequence[datetime], start: datetime, now: datetime) -> list[datetime]:
    """Return the hours if all of them are partitions.

    Raises:
        PipelineError: one is before the first partition or in the future, or there is none.
    """
    if not hours:
        raise PipelineError("The range is empty: --to must be after --from.")
    if hours[0] < floor_to_hour(start):
        raise PipelineError(
            f"{partition_key(hours[0])} is before the first partition, {partition_key(start)}: set TRAJECTORY_START"
            " to an earlier time, or ask for a later one."
        )
    if hours[-1] > floor_to_hour(now):
        raise PipelineError(
            f"{partition_key(hours[-1])} is in the future: the last partition is the open hour, {partition_key(now)}."
        )
    return list(hours)


def range_tags(first: datetime, last: datetime) -> dict[str, str]:
    """Return the tags of a run over the hours from ``first`` to ``last``, both included."""
    return {RANGE_START_TAG: partition_key(first), RANGE_END_TAG: partition_key(last)}


def hours_of_tags(tags: Mapping[str, str]) -> tuple[datetime, datetime] | None:
    """Return the first and the last hour in a run's tags; None where there is none."""
    single = tags.get(PARTITION_TAG)
    start, end = (single, single) if single else (tags.get(RANGE_START_TAG), tags.get(RANGE_END_TAG))
    try:
        return (parse_partition_key(start), parse_partition_key(end)) if start and end else None
    except PipelineError:
        return None
