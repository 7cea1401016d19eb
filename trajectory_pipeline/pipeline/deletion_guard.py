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
from trajectory_pipeline.pipeline.masked_texts import ObservedTexts
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
    "run.conversation_id",
    "run.is_deleted",
    "run_metrics.id",
    "steps.id",
    "step_metrics.id",
    "messages.id",
    "messages.is_deleted",
    "agent.id",
)
"""What ``summarize_rows`` needs of a former file."""
Owner = tuple[str, str | None]
"""An agent and a conversation of it."""
_COUNTED = ("runs", "run_metrics", "steps", "step_metrics", "messages", "agents")


def summarize_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return for each raw row its agent, whether content of it is marked deleted, and how many rows it has by table."""
    run: Any = batch.column("run")
    columns: dict[str, Any] = {
        "run_id": batch.column("run_id"),
        "agent_id": run.field("agent_id").dictionary_encode(),
        "conversation_id": run.field("conversation_id").dictionary_encode(),
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
        texts: what messages say now, and what they said.
        control: ids of runs that were read though by their versions they are as before; None: all runs were read.
        control_texts: of these, like ``texts``.
    """

    rows: list[pa.RecordBatch] = field(default_factory=list)
    empty_columns: list[str] = field(default_factory=lambda: list(_fields()))
    former: list[pa.RecordBatch] = field(default_factory=list)
    lost_columns: Counter[str] = field(default_factory=Counter)
    texts: ObservedTexts = field(default_factory=ObservedTexts)
    control: "pa.Array[Any] | None" = None
    control_texts: ObservedTexts = field(default_factory=ObservedTexts)

    def add(self, batch: pa.RecordBatch) -> None:
        """Note a batch of the snapshot, as the source gave it."""
        self.rows.append(summarize_rows(batch))
        self.texts.add(batch)
        shown = batch
        if self.control is not None:
            # Runs that were carried forward have what was captured, whatever the source shows now.
            shown = batch.filter(pc.is_in(batch.column("run_id"), value_set=self.control))
            self.control_texts.add(shown)
        self.empty_columns = [name for name in self.empty_columns if not _has_value(shown, name).true_count]

    def add_former_texts(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Note texts of the former file, with ``FORMER_TEXTS``, before anything of the snapshot is added."""
        self.texts.add_former(batches)
        if self.control is not None:
            self.control_texts = self.texts.only(self.control)

    def add_former(self, batch: pa.RecordBatch) -> None:
        """Note a batch of the former file with ``FORMER_FIELDS``."""
        there: Any = pc.is_null(batch.column("deleted_at"))
        self.former.append(summarize_rows(batch).filter(there))

    def add_former_columns(self, batch: pa.RecordBatch, present: "pa.Array[Any]") -> None:
        """Note a batch of the former file with the empty columns; ``present`` are the snapshot's runs."""
        there: Any = pc.is_in(batch.column("run_id"), value_set=present if self.control is None else self.control)
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
    """How many captured runs are still whole, by partition, part and owner."""

    known: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    had: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    owners_of_lost: set[Owner] = field(default_factory=set)
    owners_of_whole: set[Owner] = field(default_factory=set)

    def implausible(self, missing: "_Missing", parts: Iterable[str], snapshot: SourceSnapshot) -> str | None:
        """Return in words why the source cannot be whole, as far as these parts are concerned; None if it can."""
        parts = set(parts)
        for part in sorted(parts - {ENDED}):
            if self.had[part] and not self.kept[part]:
                rows = "is there any more" if part == "runs" else f"has rows in {part} any more"
                return f"none of {pluralize(self.had[part], 'captured run')} that were looked at {rows}"
        lost, known = self.lost.total(), self.known.total()
        emptied = {key: number for key, number in self.lost.items() if 2 * number >= self.known[key]}
        is_much = sum(emptied.values()) > FEW_RUNS or lost > max(FEW_RUNS, LARGEST_SHARE * known)
        if is_much and not self._is_of_one_agent(parts, snapshot):
            return (
                f"{lost} of {pluralize(known, 'captured run')} that were looked at are gone, or lack what they had,"
                f" in {pluralize(len(self.lost), 'partition')}"
            )
        there = len(missing.there)
        if 2 * len(missing.thinned) >= there and not self._explains(missing, snapshot):
            return f"{len(missing.thinned)} of {pluralize(there, 'run')} of this partition lack what they had"
        return None

    def _is_of_one_agent(self, parts: set[str], snapshot: SourceSnapshot) -> bool:
        """Whether a person may have deleted one agent with its runs, or its messages, whatever its share is.

        Runs of others show that they can be seen. Where only the runs are gone, and their agent is not, they may be
        hidden.
        """
        lost = {agent_id for agent_id, _ in self.owners_of_lost}
        if len(lost) != 1 or not {agent_id for agent_id, _ in self.owners_of_whole} - lost:
            return False
        return "runs" not in parts or not snapshot.existing_agents(sorted(lost))

    def _explains(self, missing: "_Missing", snapshot: SourceSnapshot) -> bool:
        """Whether a person may have deleted the rows that most runs of the partition lack, however few runs it has.

        One run may lose some rows while another is whole. Several lose them at once where their agents are gone, or
        where one agent or one conversation was emptied while others were not: then nothing is left of these rows.
        """
        if len(missing.thinned) < 2:
            return not missing.thinned or bool(self.owners_of_whole)
        owners = {missing.owner(at) for at in missing.thinned}
        agents = {agent_id for agent_id, _ in owners}
        if not snapshot.existing_agents(sorted(agents)):
            return bool({agent_id for agent_id, _ in self.owners_of_whole} - agents)
        if not missing.all_or_nothing:
            return False
        if len(agents) == 1 and {agent_id for agent_id, _ in self.owners_of_whole} - agents:
            return True
        return (
            len(owners) == 1
            and None not in {conversation for _, conversation in owners}
            and bool(self.owners_of_whole - owners)
        )


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
        if not observed.former and not lost_with_file:
            return
        missing = _Missing.of(observed, gone, departing)
        held = runs_held(self.partition, lost_with_file)
        less = len(missing.less) + len(held)
        doing = f"{pluralize(less + missing.newly_marked, 'run')} would be marked as deleted, leave, or lose rows"
        if columns := _lost_columns(observed, self.snapshot.shown_columns):
            raise self._refusal(f"it shows no value of {', '.join(columns)} any more")
        if masked := observed.texts.describe_masked() or observed.control_texts.describe_masked():
            raise self._refusal(masked)
        if not less and not missing.newly_marked:
            return
        if missing.emptied and not self.snapshot.proves_deletions:
            raise self._refusal(
                f"{pluralize(missing.emptied, 'run')} would have no messages or steps any more, and this source cannot"
                " prove that they were deleted"
            )
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
        if parts and (reason := self._tally(missing, held, accepted).implausible(missing, parts, self.snapshot)):
            raise self._refusal(f"{doing}, and {reason}")

    def _tally(self, missing: "_Missing", held: list[str], accepted: AcceptedSource | None) -> _Tally:
        key, tally = self.partition.partition_key, missing.tally(self.partition.partition_key)
        sample = sample_captured_runs(
            self.partition, held, self.snapshot.taken_at, accepted.accepted_at if accepted else None
        )
        there = self.snapshot.count_rows([run.run_id for run in sample if not run.deleted_recently])
        for run in sample:
            if run.partition_key == key and run.run_id not in held and not run.deleted_recently:
                continue
            had = {"runs": 1, ENDED: 1, **run.rows}
            has = {"runs": 1, **there[run.run_id]} if run.run_id in there else {}
            tally.known[run.partition_key] += 1
            if not run.deleted_recently:
                tally.had.update(part for part, number in had.items() if number)
                tally.kept.update(part for part, number in had.items() if number and has.get(part))
            # Only what this partition lost counts: a part that the source never had says nothing.
            if not has or any(has.get(part, 0) < number for part, number in had.items() if part in missing.parts):
                tally.lost[run.partition_key] += 1
                tally.owners_of_lost.add(run.owner)
            else:
                tally.owners_of_whole.add(run.owner)
        return tally

    def _refusal(self, reason: str) -> WithheldDeletionsError:
        key = self.partition.partition_key
        setting = "LETTA_PG_URI" if source_of_key(key) == LETTA else "TRAJECTORY_SOURCES"
        return WithheldDeletionsError(
            f"{key} was not captured from {self.snapshot.described}: {reason}. Nothing was marked as"
            f" deleted, erased or overwritten. If the source is wrong or incomplete, correct it (or {setting}); if"
            f" it is right, run `trajectory-pipeline materialize --partition {key} --accept-deletions`, or materialize"
            f" it in the UI with the tag {ACCEPT_DELETIONS_TAG}=true."
        )


@dataclass(frozen=True)
class _Missing:
    """What former rows lost, by run.

    Attributes:
        former: summaries of the former rows.
        there: indexes of those that are neither gone nor depart.
        less: indexes of those that are gone, depart, or have fewer rows in some table.
        thinned: indexes of those that are there and have fewer rows in some table besides that of agents.
        all_or_nothing: whether the thinned ones have no row left in each such table.
        kept: for each table, how many rows of each are there now.
        parts: tables in which a run has fewer rows; ``runs`` where one is gone, ``ended`` where one departs.
        newly_marked: runs with content that is marked deleted now, and was not before.
        emptied: runs that are there, had steps or messages, and have none of them now.
    """

    former: pa.Table
    there: list[int]
    less: list[int]
    thinned: list[int]
    all_or_nothing: bool
    kept: dict[str, "np.ndarray[Any, Any]"]
    parts: frozenset[str]
    newly_marked: int
    emptied: int

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
        former, index = former.filter(pa.array(compared)), _combined(index).filter(pa.array(compared))
        is_there, is_gone, departs = is_there[compared], is_gone[compared], departs[compared]
        less, thinned, kept = np.zeros(len(is_gone), bool), np.zeros(len(is_gone), bool), {}
        emptied = np.zeros(len(is_gone), bool)
        parts, all_or_nothing = set(), True
        for name in _COUNTED:
            had = _numbers(former[name])
            has = kept[name] = _numbers(_filled(now[name].take(index), 0))
            less |= has < had
            # What a run had goes with it.
            fewer = (has < had) & is_there
            if fewer.any() or (name == "runs" and is_gone.any()):
                parts.add(name)
            if name in ("steps", "messages"):
                emptied |= fewer & (has == 0)
            if name != "agents":
                thinned |= fewer
                all_or_nothing &= not has[fewer].any()
        if departs.any():
            parts.add(ENDED)
        marked = _numbers(_filled(now["marked"].take(index), False)).astype(bool)
        newly = int((marked & ~_numbers(former["marked"]).astype(bool)).sum())
        there, lesser, fewer_rows = (np.flatnonzero(each).tolist() for each in (is_there, less, thinned))
        return cls(former, there, lesser, fewer_rows, all_or_nothing, kept, frozenset(parts), newly, int(emptied.sum()))

    def owner(self, at: int) -> Owner:
        """Return whose a former row is."""
        return self.former["agent_id"][at].as_py(), self.former["conversation_id"][at].as_py()

    def tally(self, key: str) -> _Tally:
        """Return the tally of this partition alone."""
        tally = _Tally()
        tally.known[key], tally.lost[key] = self.former.num_rows, len(self.less)
        for name in _COUNTED:
            had = _numbers(self.former[name]) > 0
            tally.had[name] += int(had.sum())
            tally.kept[name] += int((had & (self.kept[name] > 0)).sum())
        columns = (self.former[name].to_pylist() for name in ("agent_id", "conversation_id"))
        lost = set(self.less)
        for at, owner in enumerate(zip(*columns, strict=True)):
            (tally.owners_of_lost if at in lost else tally.owners_of_whole).add(owner)
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
