"""Small partitions of a range, read together out of one snapshot; each of them is still captured by itself."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, takewhile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.letta.context import ContextReader
from trajectory_pipeline.letta.nesting import nest_run_tables
from trajectory_pipeline.letta.snapshot import RUNS_PER_BATCH, Snapshot, utc
from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline.schema.raw import RUNS
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.source_protocol import SHARED_SECONDS

_MOST_HOURS = 120


@dataclass
class RangeSnapshot(Snapshot):
    """A snapshot of some hours with few runs, which shares its queries between them.

    What all hours need is asked once: their runs and fingerprints. Rows are read for a few hours, then for ever more,
    as long as all of them are asked for: most hours of a range may be up to date.
    """

    opened: float = field(default_factory=time.monotonic)
    _ids: dict[datetime, list[str]] = field(default_factory=dict, init=False)
    _fingerprints: dict[datetime, str] | None = field(default=None, init=False)
    _ahead: dict[datetime, pa.RecordBatch] = field(default_factory=dict, init=False)
    _together: int = field(default=1, init=False)

    @property
    def hours(self) -> Sequence[datetime]:
        """The hours that share this snapshot, one after the other."""
        return list(self._ids)

    def count_runs(self, start: datetime, end: datetime) -> dict[datetime, int]:
        """Return the number of terminal runs in each hour of ``[start, end)`` that has any."""
        rows = self.read(
            "Counting terminal runs",
            f"SELECT {self.hour_ended('r')} AS hour, count(*) AS runs"
            f" {self.terminal_runs_between(start, end)} GROUP BY 1",
        )
        return {utc(row["hour"]): row["runs"] for row in rows.to_pylist()}

    def share(self, hours: Sequence[datetime]) -> None:
        """Find the runs of these hours, which follow each other; from here on they share their queries."""
        rows = self.read(
            "Finding terminal runs",
            f"SELECT DISTINCT r.id::text AS id, {self.hour_ended('r')} AS hour"
            f" {self.terminal_runs_between(hours[0], hours[-1] + HOUR)} AND r.id IS NOT NULL",
        ).sort_by("id")
        ids: dict[datetime, list[str]] = {hour: [] for hour in hours}
        for row in rows.to_pylist():
            ids[utc(row["hour"])].append(row["id"])
        self._ids = ids

    def terminal_runs_between(self, start: datetime, end: datetime) -> str:
        """Return the SQL, from FROM on, of terminal runs as ``Snapshot`` does; known ones are looked up by key."""
        condition = super().terminal_runs_between(start, end)
        if start not in self._ids or end - HOUR not in self._ids:
            return condition
        known = [run_id for hour, ids in self._ids.items() if start <= hour < end for run_id in ids]
        return f"{condition} AND {self.catalog.any_of(RUNS, 'id', 'r', known)}"

    def fingerprints(self, start: datetime, end: datetime) -> dict[datetime, str]:
        """Return the fingerprint of each hour in ``[start, end)`` that has terminal runs."""
        if not self._is_known(start, end):
            return super().fingerprints(start, end)
        if self._fingerprints is None:
            self._fingerprints = super().fingerprints(self.hours[0], self.hours[-1] + HOUR)
        return {start: self._fingerprints[start]} if start in self._fingerprints else {}

    @contextmanager
    def prefetch_terminal_runs(
        self, start: datetime, end: datetime, only: "pa.Array[Any] | None" = None
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        """Yield the batches of ``terminal_runs``; nothing else may query the snapshot before the last one came."""
        rows = self._rows_of(start) if only is None and self._is_known(start, end) else None
        if rows is not None:
            yield iter((rows,))
            return
        with super().prefetch_terminal_runs(start, end, only) as batches:
            yield batches

    def _is_known(self, start: datetime, end: datetime) -> bool:
        return start in self._ids and end - start == HOUR

    def _rows_of(self, hour: datetime) -> pa.RecordBatch | None:
        """Return the rows of an hour; None if they must be read by themselves."""
        if hour not in self._ahead:
            # Rows that nobody asked for: hours that are up to date.
            self._together = 1 if self._ahead else self._together * 4
            upcoming = [each for each in self.hours if each >= hour and self._ids[each]]
            self._ahead = self._read_together(upcoming[: self._together])
        return self._ahead.pop(hour, None)

    def _read_together(self, hours: Sequence[datetime]) -> dict[datetime, pa.RecordBatch]:
        ids = [run_id for hour in hours for run_id in self._ids[hour]][:RUNS_PER_BATCH]
        portion = set(next(self._portions(ids)))
        whole = list(takewhile(lambda hour: portion.issuperset(self._ids[hour]), hours))
        if not whole:
            return {}
        tables = self._tables_of([run_id for hour in whole for run_id in self._ids[hour]], ContextReader(self))
        rows = nest_run_tables(tables, SCHEMA_VERSION)
        return {hour: self._taken(rows, self._ids[hour]) for hour in whole}

    @staticmethod
    def _taken(rows: pa.RecordBatch, run_ids: list[str]) -> pa.RecordBatch:
        indexes: Any = pc.index_in(pa.array(run_ids, pa.string()), value_set=rows.column("run_id"))
        return rows.take(indexes)


class SharedSnapshots:
    """The snapshots of a range: hours with few runs share one for up to ``SHARED_SECONDS``.

    ``open_snapshot`` opens one; ``hours`` are those that will be asked for, in this order.
    """

    def __init__(
        self, open_snapshot: Callable[[], AbstractContextManager[RangeSnapshot]], hours: Sequence[datetime]
    ) -> None:
        self._open_snapshot = open_snapshot
        self._hours = list(hours)
        self._counts: dict[datetime, int] = {}
        self._stack = ExitStack()
        self._snapshot: RangeSnapshot | None = None

    @contextmanager
    def snapshot(self, hour: datetime) -> Iterator[RangeSnapshot | None]:
        """Give the snapshot that an hour shares with others; None for one that needs its own.

        It is closed where the block fails: the next hour gets another.
        """
        try:
            yield self._of(hour)
        except BaseException:
            self.close()
            raise

    def _of(self, hour: datetime) -> RangeSnapshot | None:
        snapshot = self._snapshot
        if snapshot and hour in snapshot.hours and time.monotonic() - snapshot.opened < SHARED_SECONDS:
            return snapshot
        self.close()
        near = self._near(hour)
        if len(near) < 2 or (hour in self._counts and len(self._small(near)) < 2):
            return None
        snapshot = self._stack.enter_context(self._open_snapshot())
        if hour not in self._counts:
            counts = snapshot.count_runs(hour, near[-1] + HOUR)
            self._counts = {each: counts.get(each, 0) for each in near}
        together = self._small(near)
        if len(together) < 2:
            self.close()
            return None
        snapshot.share(together)
        self._snapshot = snapshot
        return snapshot

    def _near(self, hour: datetime) -> list[datetime]:
        """Return the hours that follow each other from this one on."""
        first = self._hours.index(hour) if hour in self._hours else len(self._hours)
        upcoming = self._hours[first : first + _MOST_HOURS]
        return [each for number, each in enumerate(upcoming) if each == hour + number * HOUR]

    def _small(self, hours: Sequence[datetime]) -> list[datetime]:
        """Return those from the first on that were counted and have few runs in all."""
        runs = list(accumulate(self._counts.get(hour, RUNS_PER_BATCH + 1) for hour in hours))
        return [hour for hour, so_far in zip(hours, runs, strict=True) if so_far <= RUNS_PER_BATCH]

    def close(self) -> None:
        """End the snapshot that is open, if any."""
        self._snapshot = None
        self._stack.close()
