"""Partitions as UTC hours: keys, as Dagster writes them, and ranges."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from trajectory_pipeline.errors import PipelineError

HOUR = timedelta(hours=1)
KEY_FORMAT = "%Y-%m-%d-%H:%M"
"""Dagster's format of hourly partition keys."""


def partition_key(hour: datetime) -> str:
    """Return the partition key of an hour: ``2026-11-21-09:00``."""
    return floor_to_hour(hour).strftime(KEY_FORMAT)


def parse_partition_key(key: str) -> datetime:
    """Return the hour that a partition key names.

    Raises:
        PipelineError: it is not a key of a UTC hour.
    """
    try:
        hour = datetime.strptime(key, KEY_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        hour = None
    if hour is None or hour != floor_to_hour(hour) or partition_key(hour) != key:
        raise PipelineError(
            f"{key!r} is no partition key: a key is a UTC hour written as YYYY-MM-DD-HH:00, for example"
            " 2026-11-21-09:00."
        )
    return hour


def floor_to_hour(moment: datetime) -> datetime:
    """Return the hour, UTC, that a moment lies in."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def hours_between(start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield every hour that the half-open range ``[start, end)`` touches."""
    hour = floor_to_hour(start)
    while hour < end:
        yield hour
        hour += HOUR


def contiguous(hours: Sequence[datetime], longest: int) -> list[tuple[datetime, datetime]]:
    """Group sorted hours into ranges without gaps, ``(first, last)``, of at most ``longest`` hours."""
    ranges: list[tuple[datetime, datetime]] = []
    for hour in hours:
        if ranges and hour == ranges[-1][1] + HOUR and hour - ranges[-1][0] < longest * HOUR:
            ranges[-1] = (ranges[-1][0], hour)
        else:
            ranges.append((hour, hour))
    return ranges


def parse_timestamp(text: str) -> datetime:
    """Return the time that a person wrote; without an offset it is UTC.

    Raises:
        PipelineError: it is not an ISO-8601 time.
    """
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise PipelineError(
            f"{text!r} is no time: write it as 2026-11-21, 2026-11-21T09:00 or 2026-11-21T10:00+01:00."
        ) from None
