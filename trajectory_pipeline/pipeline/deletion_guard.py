"""Whether rows that a capture misses may count as deleted: only where the known source shows everything else.

Marking and erasing what was deleted cannot be undone. So a source that shows implausibly less than was captured stops
the partition, until a person confirms it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.erase import has_deleted_content
from trajectory_pipeline.errors import WithheldDeletionsError
from trajectory_pipeline.partition_keys import LETTA, source_of_key
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.raw import (
    AGENTS,
    MESSAGES,
    RUN_METRICS,
    RUNS,
    STEP_METRICS,
    STEPS,
    TERMINAL_RUNS,
    SourceTable,
)
from trajectory_pipeline.source_protocol import ENDED, SourceSnapshot
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline.storage.postgres.sources import (
    AcceptedSource,
    accepted_source,
    runs_held,
    sample_captured_runs,
)
from trajectory_pipeline.text import pluralize

ACCEPT_DELETIONS_TAG = "trajectory/accept_deletions"
"""Tag of a Dagster run, with the value ``true``, by which a person accepts what is missing."""

FEW_RUNS = 5
"""So many runs of several agents may go within a day without a question."""
LARGEST_SHARE = 0.1
"""Of the captured runs that are looked at; a larger share is implausible."""

_TABLES: dict[str, SourceTable] = {
    "run": RUNS,
    "run_metrics": RUN_METRICS,
    "steps": STEPS,
    "step_metrics": STEP_METRICS,
    "messages": MESSAGES,
    "agent": AGENTS,
}
"""Columns of raw rows, and the source tables that they come from."""
FORMER_FIELDS = (
    "run_id",
    "deleted_at",
    "run.agent_id",
    "run.is_deleted",
    "run_metrics.id",
    "steps.id",
    "step_metrics.id",
    "messages.id",
    "messages.is_deleted",
    "agent.id",
)
"""What ``summarize_rows`` needs of a former file."""
_COUNTED = ("runs", "run_metrics", "steps", "step_metrics", "messages", "agents")


def summarize_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return for each raw row its agent, whether content of it is marked deleted, and how many rows it has by table."""
    run: Any = batch.column("run")
    columns: dict[str, Any] = {
        "run_id": batch.column("run_id"),
        "agent_id": run.field("agent_id").dictionary_encode(),
        "marked": has_deleted_content(batch),
        "runs": pa.repeat(pa.scalar(1, pa.int32()), batch.num_rows),
    }
    for name in ("steps", "step_metrics", "messages"):
        columns[name] = pc.fill_null(pc.list_value_length(batch.column(name)), 0)
    for name, column in (("run_metrics", "run_metrics"), ("agents", "agent")):
        columns[name] = pc.is_valid(batch.column(column)).cast(pa.int32())
    return pa.RecordBatch.from_pydict(columns)


@dataclass
class ObservedRows:
    """What the source shows of a partition, and what its former file held of it.

    Attributes:
        rows: summaries of the snapshot's rows.
        empty_columns: fields of raw rows that no row of the snapshot has a value in.
        former: summaries of the former file's rows, without those that were deleted before.
        lost_columns: of the empty ones, in how many former rows that are still there each had a value.
    """

    rows: list[pa.RecordBatch] = field(default_factory=list)
    empty_columns: list[str] = field(default_factory=lambda: list(_fields()))
    former: list[pa.RecordBatch] = field(default_factory=list)
    lost_columns: Counter[str] = field(default_factory=Counter)

    def add(self, batch: pa.RecordBatch) -> None:
        """Note a batch of the snapshot, as the source gave it."""
        self.rows.append(summarize_rows(batch))
        self.empty_columns = [name for name in self.empty_columns if not _has_value(batch, name).true_count]

    def add_former(self, batch: pa.RecordBatch) -> None:
        """Note a batch of the former file with ``FORMER_FIELDS``."""
        there: Any = pc.is_null(batch.column("deleted_at"))
        self.former.append(summarize_rows(batch).filter(there))

    def add_former_columns(self, batch: pa.RecordBatch, present: "pa.Array[Any]") -> None:
        """Note a batch of the former file with the empty columns; ``present`` are the snapshot's runs."""
        there: Any = pc.is_in(batch.column("run_id"), value_set=present)
        for name in self.empty_columns:
            if name.partition(".")[0] in batch.schema.names:
                self.lost_columns[name] += pc.and_(_has_value(batch, name), there).true_count


def _fields() -> Iterator[str]:
    for column, table in _TABLES.items():
        yield from (f"{column}.{each.name}" for each in table.columns)


def _has_value(batch: pa.RecordBatch, name: str) -> Any:
    """Return for each row whether it has a value in a field, or one of its nested rows has."""
    column, _, field_name = name.partition(".")
    values: Any = batch.column(column)
    if not pa.types.is_list(values.type):
        return pc.is_valid(pc.struct_field(values, field_name))
    valid: Any = pc.is_valid(values.flatten().field(field_name))
    owners: Any = pc.list_parent_indices(values).filter(valid)
    has = np.zeros(batch.num_rows, dtype=bool)
    has[owners.to_numpy()] = True
    return pa.array(has)


@dataclass
class _Tally:
    """How many captured runs are still whole, by partition, part and agent."""

    known: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    had: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    agents_of_lost: set[str] = field(default_factory=set)
    agents_of_whole: set[str] = field(default_factory=set)

    def implausible(self, parts: Iterable[str], snapshot: SourceSnapshot) -> str | None:
        """Return in words why the source cannot be whole, as far as these parts are concerned; None if it can."""
        parts = set(parts)
        for part in sorted(parts - {ENDED}):
            if self.had[part] and not self.kept[part]:
                rows = "is there any more" if part == "runs" else f"has rows in {part} any more"
                return f"none of {pluralize(self.had[part], 'captured run')} that were looked at {rows}"
        lost, known = self.lost.total(), self.known.total()
        emptied = {key: number for key, number in self.lost.items() if 2 * number >= self.known[key]}
        if sum(emptied.values()) > FEW_RUNS or lost > max(FEW_RUNS, LARGEST_SHARE * known):
            if self._is_of_one_agent(parts, snapshot):
                return None
            return (
                f"{lost} of {pluralize(known, 'captured run')} that were looked at are gone, or lack what they had,"
                f" in {pluralize(len(self.lost), 'partition')}"
            )
        return None

    def _is_of_one_agent(self, parts: set[str], snapshot: SourceSnapshot) -> bool:
        """Whether a person may have deleted one agent with its runs, or its messages, whatever its share is.

        Runs of others show that they can be seen. Where only the runs are gone, and their agent is not, they may be
        hidden.
        """
        if len(self.agents_of_lost) != 1 or not self.agents_of_whole - self.agents_of_lost:
            return False
        return "runs" not in parts or not snapshot.existing_agents(sorted(self.agents_of_lost))


@dataclass(frozen=True)
class DeletionGuard:
    """The decision for one partition, in its transaction and its snapshot."""

    partition: PartitionTransaction
    snapshot: SourceSnapshot

    def require_plausible(
        self, observed: ObservedRows, gone: list[str], lost_with_file: list[str], departing: list[str]
    ) -> None:
        """Refuse to go on where what is missing may be no deletion.

        Args:
            observed: what was read and what was there before.
            gone: runs of the former file that the source does not have.
            lost_with_file: runs of the partition that neither the source nor the former file has.
            departing: runs of the former file that the source has, but in no partition: they leave the sinks.

        Raises:
            WithheldDeletionsError: a person must look; the text says at what.
        """
        missing = _Missing.of(observed, gone, departing)
        held = runs_held(self.partition, lost_with_file)
        less = len(missing.less) + len(held)
        doing = f"{pluralize(less + missing.newly_marked, 'run')} would be marked as deleted, leave, or lose rows"
        if columns := _lost_columns(observed, self.snapshot.shown_columns):
            raise self._refusal(f"it shows no value of {', '.join(columns)} any more")
        if not less and not missing.newly_marked:
            return
        accepted = accepted_source(
            self.partition.url, self.partition.connection, source_of_key(self.partition.partition_key)
        )
        identity = self.snapshot.identity
        if accepted and accepted.identity != identity.text:
            raise self._refusal(f"{doing}, and it is another source: {identity.text}, not {accepted.identity}")
        entry = self.partition.entry(TERMINAL_RUNS.name)
        captured_at = entry.source_position if entry and entry.source_identity == identity.text else None
        if less and identity.position is not None and identity.position < (captured_at or 0):
            raise self._refusal(
                f"{doing}, and the source is behind the state that was captured (a replica that lags, or a server that"
                " lost commits)"
            )
        parts = missing.parts | {"runs"} if held else missing.parts
        if parts and (reason := self._tally(missing, held, accepted).implausible(parts, self.snapshot)):
            raise self._refusal(f"{doing}, and {reason}")

    def _tally(self, missing: "_Missing", held: list[str], accepted: AcceptedSource | None) -> _Tally:
        key, tally = self.partition.partition_key, missing.tally(self.partition.partition_key)
        sample = sample_captured_runs(
            self.partition, held, self.snapshot.taken_at, accepted.accepted_at if accepted else None
        )
        there = self.snapshot.whole_runs([run.run_id for run in sample if not run.deleted_recently])
        for run in sample:
            if run.partition_key == key and run.run_id not in held and not run.deleted_recently:
                continue
            had = {"runs", ENDED, *run.parts}
            has = {"runs", *there[run.run_id]} if run.run_id in there else set()
            tally.known[run.partition_key] += 1
            if not run.deleted_recently:
                tally.had.update(had)
                tally.kept.update(had & has)
            # Only what this partition lost counts: a part that the source never had says nothing.
            if "runs" not in has or (had & missing.parts) - has:
                tally.lost[run.partition_key] += 1
                tally.agents_of_lost.add(run.agent_id)
            else:
                tally.agents_of_whole.add(run.agent_id)
        return tally

    def _refusal(self, reason: str) -> WithheldDeletionsError:
        key = self.partition.partition_key
        setting = "LETTA_PG_URI" if source_of_key(key) == LETTA else "TRAJECTORY_SOURCES"
        return WithheldDeletionsError(
            f"{key} was not captured from {self.snapshot.described}: {reason}. Nothing was marked as"
            f" deleted, and nothing was erased. If the source is wrong or incomplete, correct it (or {setting}); if"
            f" it is right, run `trajectory-pipeline materialize --partition {key} --accept-deletions`, or materialize"
            f" it in the UI with the tag {ACCEPT_DELETIONS_TAG}=true."
        )


@dataclass(frozen=True)
class _Missing:
    """What former rows lost, by run.

    Attributes:
        former: summaries of the former rows.
        less: indexes of those that are gone, depart, or have fewer rows in some table.
        lost: indexes of those that are gone or depart, or have less than half of their rows in some table; all that
            have fewer rows, where these are most of the partition.
        kept: for each table, how many rows of each are there now.
        parts: tables in which a run lost half of its rows or more, or most runs lost some; ``runs`` where one is gone,
            ``ended`` where one departs.
        newly_marked: runs with content that is marked deleted now, and was not before.
    """

    former: pa.Table
    less: "np.ndarray[Any, Any]"
    lost: "np.ndarray[Any, Any]"
    kept: dict[str, "np.ndarray[Any, Any]"]
    parts: frozenset[str]
    newly_marked: int

    @classmethod
    def of(cls, observed: ObservedRows, gone: list[str], departing: list[str]) -> "_Missing":
        """Compare the former rows with those of the snapshot, which has none of the runs that are gone or depart."""
        former = _table(observed.former)
        now = _table(observed.rows)
        index: Any = pc.index_in(former["run_id"], value_set=_combined(now["run_id"]))
        is_there = _numbers(pc.is_valid(index)).astype(bool)
        is_gone = _numbers(pc.is_in(former["run_id"], value_set=pa.array(gone, pa.string()))).astype(bool)
        departs = _numbers(pc.is_in(former["run_id"], value_set=pa.array(departing, pa.string()))).astype(bool)
        # The others moved: they are there.
        compared = is_there | is_gone | departs
        former = former.filter(pa.array(compared))
        index, is_gone, departs = _combined(index).filter(pa.array(compared)), is_gone[compared], departs[compared]
        less, lost, kept = np.zeros(len(is_gone), bool), np.zeros(len(is_gone), bool), {}
        parts: set[str] = set()
        fewer: set[str] = set()
        for name in _COUNTED:
            had = _numbers(former[name])
            has = _numbers(_filled(now[name].take(index), 0))
            less |= has < had
            if ((has < had) & ~is_gone & ~departs).any():
                fewer.add(name)
            halved = 2 * has < had
            lost |= halved
            kept[name] = has
            # What a run had goes with it.
            if (halved & ~is_gone & ~departs).any() or (name == "runs" and (halved & is_gone).any()):
                parts.add(name)
        if departs.any():
            parts.add(ENDED)
        partly = less & ~is_gone & ~departs
        if partly.sum() > FEW_RUNS and 2 * partly.sum() >= len(partly):
            # Most runs lost something at once, however little each: a policy, a view or a dump hides it.
            lost |= partly
            parts |= fewer
        marked = _numbers(_filled(now["marked"].take(index), False)).astype(bool)
        newly = int((marked & ~_numbers(former["marked"]).astype(bool)).sum())
        return cls(former, np.flatnonzero(less), np.flatnonzero(lost), kept, frozenset(parts), newly)

    def tally(self, key: str) -> _Tally:
        """Return the tally of this partition alone."""
        tally = _Tally()
        tally.known[key], tally.lost[key] = self.former.num_rows, len(self.lost)
        for name in _COUNTED:
            had = _numbers(self.former[name]) > 0
            tally.had[name] += int(had.sum())
            tally.kept[name] += int((had & (self.kept[name] > 0)).sum())
        agents = self.former["agent_id"]
        whole = np.setdiff1d(np.arange(self.former.num_rows), self.lost)
        tally.agents_of_lost.update(map(str, pc.unique(agents.take(pa.array(self.lost))).to_pylist()))
        tally.agents_of_whole.update(map(str, pc.unique(agents.take(pa.array(whole))).to_pylist()))
        return tally


def _table(batches: list[pa.RecordBatch]) -> pa.Table:
    empty = summarize_rows(pa.RecordBatch.from_pylist([], schema=arrow_schema(TERMINAL_RUNS)))
    return pa.Table.from_batches([empty, *batches]).unify_dictionaries()


def _combined(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _filled(column: Any, value: object) -> Any:
    return column.fill_null(value)


def _numbers(column: Any) -> "np.ndarray[Any, Any]":
    combined = _combined(column)
    return np.asarray(combined.cast(pa.int32()).to_numpy(zero_copy_only=False))


def _lost_columns(observed: ObservedRows, shown: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the columns of the source, or its tables, that hid what they showed before."""
    lost: set[str] = set()
    for name, rows in observed.lost_columns.items():
        column, _, field_name = name.partition(".")
        table = _TABLES[column].name
        there = shown.get(table, {})
        if rows and not there:
            lost.add(table)
        # Where a table is empty, its rows are counted. An agent's columns change for all of its runs at once.
        elif (rows and field_name not in there) or (
            rows > FEW_RUNS and not observed.lost_columns[f"{column}.id"] and column != "agent"
        ):
            lost.add(f"{table}.{field_name}")
    return sorted(lost)
