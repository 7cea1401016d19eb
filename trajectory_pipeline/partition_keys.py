"""Partitions as UTC hours of a source: keys, as Dagster writes them, and ranges.

A partition is an hour of one source. An hour of the Letta database is a plain ``datetime``, as its keys always were;
an hour of any other source is a ``SourceHour``, which carries the source's name through arithmetic and into the key.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from trajectory_pipeline.errors import PipelineError

HOUR = timedelta(hours=1)
KEY_FORMAT = "%Y-%m-%d-%H:%M"
"""Dagster's format of hourly partition keys."""
LETTA = "letta"
"""Name of the Letta database as a source; its keys and folders name no source."""
SOURCE_NAME = re.compile("[a-z][a-z0-9_]{0,29}")
"""What a source may be called: its name is in keys, folders, run ids and names of Dagster."""
AT = "~"
"""Between the hour and the source in a key, and in the name of a folder: unreserved in URLs, no sign of a login."""

_LONGEST_ID = 1000
"""Bytes of an id: an index of Postgres holds no row of more than 2,704, and some hold two ids."""
_ID_HEAD, _ID_TAIL = 700, 60
"""Bytes at the start, and characters at the end, that are kept of a longer one: its end may say what it is."""


class SourceHour(datetime):
    """An hour of a source other than the Letta database: a ``datetime`` that carries the source's name.

    It is ordered as other hours are, and equals only the same hour of the same source. Arithmetic keeps the source.
    """

    source: str

    @classmethod
    def of(cls, moment: datetime, source: str) -> "SourceHour":
        """Return a moment as one of a source."""
        utc = moment.astimezone(UTC)
        hour = cls(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, UTC)
        hour.source = source
        return hour

    def __add__(self, other: timedelta) -> "SourceHour":
        return SourceHour.of(_plain(self) + other, self.source)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, timedelta):
            return SourceHour.of(_plain(self) - other, self.source)
        return _plain(self) - _plain(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceHour) and self.source == other.source and _plain(self) == _plain(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.source, _plain(self)))

    def __reduce_ex__(self, _: object) -> tuple[Any, ...]:
        return SourceHour.of, (_plain(self), self.source)

    def __repr__(self) -> str:
        return f"SourceHour({partition_key(self)!r})"


def _plain(moment: datetime) -> datetime:
    return datetime.combine(moment.date(), moment.timetz()) if isinstance(moment, SourceHour) else moment


def source_of(hour: datetime) -> str:
    """Return the name of the source that an hour is of."""
    return hour.source if isinstance(hour, SourceHour) else LETTA


def at_source(hour: datetime, source: str) -> datetime:
    """Return the same hour of another source."""
    return _plain(hour) if source == LETTA else SourceHour.of(hour, source)


def hours_of(source: str, hours: Iterable[datetime]) -> list[datetime]:
    """Return those of these hours that are of a source."""
    return [hour for hour in hours if source_of(hour) == source]


def source_suffix(source: str) -> str:
    """Return the end of a source's keys and folders: nothing for the Letta database."""
    return "" if source == LETTA else f"{AT}{source}"


def source_of_key(key: str) -> str:
    """Return the name of the source that a partition key names."""
    return key.partition(AT)[2] or LETTA


def source_run_id(source: str, native_id: str) -> str:
    """Return the run id of a source's own id: ``letta_code:conv-1:msg-2``. Ids of two sources are never equal."""
    return native_id if source == LETTA else f"{source}:{storable_id(native_id)}"


def storable_id(text: str) -> str:
    """Return an id as every sink can hold it, whatever files and their names say; an id that can be stays as it is.

    What is no text is written as an escape, and the middle of a very long one as a digest.
    """
    written = storable_text(text).replace("\0", "\\u0000")
    content = written.encode()
    if len(content) <= _LONGEST_ID:
        return written
    head = content[:_ID_HEAD].decode(errors="ignore")
    return f"{head}~{hashlib.sha256(content).hexdigest()[:32]}~{written[-_ID_TAIL:]}"


def storable_text(text: str) -> str:
    """Return a text as UTF-8 can hold it: a name of a file, or JSON, may have what is no character."""
    return text.encode("utf-8", "backslashreplace").decode()


def name_at(name: str, source: str) -> str:
    """Return the name of a source's job or sensor: ``capture_sensor``, ``capture_sensor_laptop``."""
    return name if source == LETTA else f"{name}_{source}"


def asset_path(name: str, source: str) -> list[str]:
    """Return the parts of the key of a source's asset: its name, for another source below the source's name."""
    return [name] if source == LETTA else [source, name]


def partition_key(hour: datetime) -> str:
    """Return the partition key of an hour: ``2026-11-21-09:00``, or ``2026-11-21-09:00~letta_code``."""
    return f"{floor_to_hour(hour).strftime(KEY_FORMAT)}{source_suffix(source_of(hour))}"


def parse_partition_key(key: str) -> datetime:
    """Return the hour that a partition key names.

    Raises:
        PipelineError: it is not a key of a UTC hour.
    """
    written, _, source = key.partition(AT)
    try:
        hour = datetime.strptime(written, KEY_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        hour = None
    if hour is not None and SOURCE_NAME.fullmatch(source):
        hour = at_source(hour, source)
    if hour is None or hour != floor_to_hour(hour) or partition_key(hour) != key:
        raise PipelineError(
            f"{key!r} is no partition key: a key is a UTC hour written as YYYY-MM-DD-HH:00 (and ~ with its name, of a"
            " source other than the Letta database), for example 2026-11-21-09:00."
        )
    return hour


def floor_to_hour(moment: datetime) -> datetime:
    """Return the hour, UTC, that a moment lies in; of the same source."""
    hour = _plain(moment).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return at_source(hour, source_of(moment))


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
