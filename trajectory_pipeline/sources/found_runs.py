"""What every source beside the Letta database has in common: from the runs that it found to a ``SourceSnapshot``.

A source lists its terminal runs, each with its end, a version of its rows and a way to read them. Fingerprints, the
runs of an hour, and where a run is now follow from that list.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from trajectory_pipeline.errors import SourceError, describe_defect
from trajectory_pipeline.partition_keys import at_source, floor_to_hour, source_run_id, storable_id, storable_text
from trajectory_pipeline.schema.raw import AGENTS, MESSAGES, RUN_METRICS, STEPS
from trajectory_pipeline.source_protocol import ENDED, UNCOUNTED, BadRecord, RunLocation, SourceIdentity
from trajectory_pipeline.sources.raw_rows import Row, RunRows, absent_columns, raw_batch, raw_row, unreadable_run

ROWS_PER_BATCH = 200
LISTED = 20
"""Bad records that are named; all are counted."""
UNREADABLE = ":unreadable"
"""Ends the id of what cannot be read now: when it can be, it is no run any more, and leaves the sinks."""
BYTES_PER_BATCH = 32 * 2**20
"""Of text in a batch, as far as the source says how large its runs are."""


@dataclass(frozen=True)
class FoundRun:
    """A terminal run that a source found.

    Attributes:
        native_id: its id in the source, the same at every reading; unique there.
        ended_at: when it ended; where the source does not know, any time by which it can be found again.
        version: equal only as long as the rows are: a digest of what they are made of.
        read: returns its rows. Raises ``SourceError`` if the source cannot be read.
        depends_on: digest of what its rows show besides its own records, such as the agent's name.
        size: about how many bytes of text it has.
        agent_id: its agent.
        problem: why it cannot be read now, and where; see ``unreadable``.
    """

    native_id: str
    ended_at: datetime
    version: str
    read: Callable[[], RunRows]
    depends_on: str = ""
    size: int = 0
    agent_id: str | None = None
    problem: BadRecord | None = None


class RefusedRunError(SourceError):
    """Raised by ``FoundRun.read``: the source answers, and does not show this run; others may be read."""


def unreadable(native_id: str, record: BadRecord, at: datetime) -> FoundRun:
    """Return what stands for a run that cannot be read now: it is quarantined, with the place.

    Its id is not the run's: what was captured of the run stays as it is until the run can be read again.
    """
    run_id = f"{native_id}{UNREADABLE}"
    return FoundRun(
        native_id=run_id,
        ended_at=at,
        version=f"{record.place} {record.problem}",
        read=lambda: unreadable_run(run_id, record.place, record.problem),
        problem=record,
    )


@dataclass
class FoundRuns:
    """A view of a source as the terminal runs that were found in it; see ``SourceSnapshot``.

    Attributes:
        source: name of the source.
        identity: what was read.
        described: the source for a person.
        taken_at: when it was read.
        runs: terminal runs; of two with one id the first counts, and the other is named.
        unfinished: runs that are there and not terminal yet, by native id, with the time of their last record.
        shown_columns: columns that the source fills, by table.
        unknown_columns: fields of the source that are not read.
        bad_records: what makes no run at all.
        notes: what a person should know of the source as it was read.
        proves_deletions: whether a run that is not there is known to be deleted.
    """

    source: str
    identity: SourceIdentity
    described: str
    taken_at: datetime
    runs: Sequence[FoundRun]
    unfinished: Mapping[str, datetime] = field(default_factory=dict)
    shown_columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unknown_columns: list[str] = field(default_factory=list)
    bad_records: Sequence[BadRecord] = ()
    notes: Sequence[str] = ()
    proves_deletions: bool = False

    def __post_init__(self) -> None:
        self.described = storable_text(self.described)
        self.identity = replace(self.identity, text=storable_text(self.identity.text))
        self._by_id: dict[str, FoundRun] = {}
        repeated: list[BadRecord] = []
        for run in self.runs:
            if self._by_id.setdefault(source_run_id(self.source, run.native_id), run) is not run:
                problem = "has the id of another run, which is read in its place: give it another name"
                repeated.append(BadRecord(f"{self.described}: {run.native_id}", problem))
        # Each once: a source names more than stands for runs.
        named = dict.fromkeys(map(_storable, (*self.bad_records, *self.unreadable, *repeated)))
        self.bad_records = list(named)
        self._hours: dict[datetime, list[str]] = {}
        for run_id in sorted(self._by_id):
            self._hours.setdefault(self._hour_of(self._by_id[run_id]), []).append(run_id)
        self._unfinished = {source_run_id(self.source, each) for each in self.unfinished}
        self._refused: set[str] = set()

    def _hour_of(self, run: FoundRun) -> datetime:
        return at_source(floor_to_hour(run.ended_at), self.source)

    @property
    def absent_columns(self) -> list[str]:
        """Known columns that the source lacks."""
        return absent_columns(self.shown_columns)

    @property
    def remarks(self) -> Sequence[str]:
        """What a person should know of the source as it was read."""
        open_runs = f"{len(self.unfinished)} of its runs have not ended yet: they are captured when they do"
        bad = [f"{record.place} {record.problem}" for record in self.bad_records[:LISTED]]
        more = len(self.bad_records) - len(bad)
        rest = [f"and {more} more such places"] if more else []
        return [*self.notes, *([open_runs] if self.unfinished else []), *bad, *rest]

    @property
    def unreadable(self) -> Sequence[BadRecord]:
        """What stands for runs and cannot be read now."""
        return [_storable(run.problem) for run in self.runs if run.problem is not None]

    def runs_by_hour(self) -> dict[datetime, int]:
        """Return the number of terminal runs in each hour that has any."""
        return {hour: len(run_ids) for hour, run_ids in sorted(self._hours.items())}

    def fingerprints(self, start: datetime, end: datetime) -> dict[datetime, str]:
        """Return a summary of each hour in ``[start, end)`` that has terminal runs (32 hex digits)."""
        return {
            hour: _digest(f"{run_id} {self._by_id[run_id].version}" for run_id in run_ids)[:32]
            for hour, run_ids in self._hours.items()
            if start <= hour < end
        }

    def dependency_digest(self, start: datetime, end: datetime) -> str:
        """Return a digest of agents and prompts of the runs of ``[start, end)``, and of the columns that are read."""
        depends_on = sorted({self._by_id[run_id].depends_on for run_id in self.run_ids(start, end)})
        return _digest([self.empty_dependency_digest(), *depends_on])

    def empty_dependency_digest(self) -> str:
        """Return the digest of an hour without runs."""
        return _digest(f"{table} {' '.join(columns)}" for table, columns in self.shown_columns.items())

    def run_ids(self, start: datetime, end: datetime) -> list[str]:
        """Return the ids of the terminal runs that ended in ``[start, end)``, sorted."""
        return sorted(run_id for hour, ids in self._hours.items() if start <= hour < end for run_id in ids)

    def run_versions(self, start: datetime, end: datetime) -> pa.Table:
        """Return ``run_id`` and ``version`` of each terminal run of ``[start, end)``, sorted by run id."""
        run_ids = self.run_ids(start, end)
        return pa.table(
            {
                "run_id": pa.array(run_ids, pa.string()),
                "version": pa.array([_number_of(self._by_id[run_id]) for run_id in run_ids], pa.int64()),
            }
        )

    def terminal_runs(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``terminal_runs`` for these runs, ordered by run id."""
        yield from self._rows_of(self.run_ids(start, end))

    def _rows_of(self, run_ids: Sequence[str]) -> Iterator[pa.RecordBatch]:
        found: list[tuple[FoundRun, Row]] = []
        size = 0
        for run_id in run_ids:
            run = self._by_id[run_id]
            if found and (len(found) >= ROWS_PER_BATCH or size + run.size > BYTES_PER_BATCH):
                yield self._batch(found)
                found, size = [], 0
            found.append((run, self._row(run)))
            size += run.size
        if found:
            yield self._batch(found)

    def _row(self, run: FoundRun) -> Row:
        """Return a run's row; of one whose records are so odd that reading them fails, what quarantines it alone."""
        try:
            return raw_row(self.source, run.read())
        except RefusedRunError as error:
            self._refused.add(source_run_id(self.source, run.native_id))
            place = f"{self.described}: {run.native_id}"
            record = BadRecord(place, f"cannot be read: {error}")
            return raw_row(self.source, unreadable(run.native_id, record, run.ended_at).read())
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(
                f"{run.native_id} cannot be read any more ({error.strerror or type(error).__name__}): is what"
                f" {self.described} names still there? Materialize the partition again."
            ) from None
        except Exception as error:
            return self._odd_row(run, error)

    def _batch(self, found: list[tuple[FoundRun, Row]]) -> pa.RecordBatch:
        try:
            return raw_batch([row for _, row in found])
        except Exception:
            return raw_batch([self._storable_row(run, row) for run, row in found])

    def _storable_row(self, run: FoundRun, row: Row) -> Row:
        try:
            raw_batch([row])
        except Exception as error:
            return self._odd_row(run, error)
        return row

    def _odd_row(self, run: FoundRun, error: Exception) -> Row:
        place = f"{self.described}: {run.native_id}"
        return raw_row(self.source, unreadable_run(run.native_id, place, f"cannot be read: {describe_defect(error)}"))

    @contextmanager
    def prefetch_terminal_runs(
        self, start: datetime, end: datetime, only: "pa.Array[Any] | None" = None
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        """Open ``terminal_runs``; nothing is read ahead."""
        yield self._rows_of(self.run_ids(start, end) if only is None else [str(run_id) for run_id in only.to_pylist()])

    def run_locations(self, run_ids: list[str]) -> dict[str, RunLocation]:
        """Return where these runs are now."""
        return {run_id: self._location(run_id) for run_id in run_ids}

    def _location(self, run_id: str) -> RunLocation:
        # What was captured of it before stays.
        if run_id in self._refused:
            return RunLocation(exists=False, terminal=False, unproven=True)
        if run := self._by_id.get(run_id):
            return RunLocation(exists=True, terminal=True, hour=self._hour_of(run))
        if run_id.endswith(UNREADABLE):
            return RunLocation(exists=True, terminal=False)
        # A run that goes on again is not terminal, and will be: it is not shown, which is no deletion.
        return RunLocation(
            exists=False, terminal=False, unproven=not self.proves_deletions or run_id in self._unfinished
        )

    def count_rows(self, run_ids: Sequence[str]) -> dict[str, Mapping[str, int]]:
        """Return those of these runs that are there. Their tables are not looked at: a run is read whole, or not."""
        tables = (MESSAGES, STEPS, RUN_METRICS, AGENTS)
        rows = {ENDED: 1, **dict.fromkeys((table.name for table in tables), UNCOUNTED)}
        return {run_id: rows for run_id in run_ids if run_id in self._by_id}

    def existing_agents(self, agent_ids: list[str]) -> set[str]:
        """Return which of these agents have a run."""
        return {storable_id(run.agent_id) for run in self.runs if run.agent_id is not None}.intersection(agent_ids)


def _storable(record: BadRecord) -> BadRecord:
    return BadRecord(storable_text(record.place), storable_text(record.problem))


def _number_of(run: FoundRun) -> int:
    """Return the version of a run as a signed 64-bit number."""
    digest = hashlib.sha256(f"{run.version}\n{run.depends_on}".encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _digest(lines: Iterator[str] | Sequence[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def utc_now() -> datetime:
    """Return the system's time: a folder has no clock of its own."""
    return datetime.now(UTC)
