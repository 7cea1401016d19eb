"""Reading the terminal runs of a partition from one snapshot, in batches, as Arrow."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.letta.catalog import Catalog, read_catalog
from trajectory_pipeline.letta.connection import SnapshotConnection, literal, reading
from trajectory_pipeline.letta.context import ContextReader
from trajectory_pipeline.letta.fingerprint import (
    dependency_digests,
    empty_dependency_digest,
    fingerprints,
    run_versions,
)
from trajectory_pipeline.letta.nesting import CALL_COLUMNS, RunTables, nest_run_tables, unnamed_step_ids
from trajectory_pipeline.partition_keys import LETTA
from trajectory_pipeline.runtime.threads import read_ahead
from trajectory_pipeline.schema.raw import (
    AGENTS,
    AGENTS_TAGS,
    MESSAGES,
    RUN_METRICS,
    RUNS,
    STEP_METRICS,
    STEPS,
    TERMINAL_STATUSES,
    SourceTable,
)
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.source_protocol import ENDED, BadRecord, RunLocation, SourceIdentity
from trajectory_pipeline.urls import describe_postgres

if TYPE_CHECKING:
    from trajectory_pipeline.letta.range_snapshot import SharedSnapshots

TERMINAL = f"({', '.join(map(literal, TERMINAL_STATUSES))})"
"""SQL list of the statuses of a terminal run."""
RUN_PARTS = {
    MESSAGES: ("run_id", "id"),
    STEPS: ("run_id", "id"),
    RUN_METRICS: ("id", "id"),
    AGENTS: ("id", "agent_id"),
}
"""Tables with rows of a run, and their column that equals a column of the run."""
_FIRST_HOUR = datetime.min.replace(tzinfo=UTC)
_LAST_HOUR = datetime.max.replace(minute=0, second=0, microsecond=0, tzinfo=UTC)
_LARGE_COLUMNS = ("content", "tool_calls", "tool_returns", "text")

RUNS_PER_BATCH = 500
BYTES_PER_BATCH = 32 * 2**20
"""Of message JSON as the source stores it, mostly compressed: what bounds memory where runs carry images."""


@dataclass
class Snapshot:
    """One consistent view of the source; every query sees the same state.

    Whatever was committed before ``taken_at``, by the source's clock, is in it; ``queries`` counts those sent so far.
    """

    url: str = field(repr=False)
    connection: adbc.Connection
    catalog: Catalog
    taken_at: datetime
    identity: SourceIdentity
    queries: int = field(default=0)

    @property
    def described(self) -> str:
        """The database for a person, without a password."""
        return describe_postgres(self.url)

    @property
    def shown_columns(self) -> Mapping[str, Mapping[str, str]]:
        """The source's columns by table."""
        return self.catalog.columns

    @property
    def unknown_columns(self) -> list[str]:
        """Columns of the source that are not known, ``table.column``."""
        return self.catalog.unknown_columns

    @property
    def absent_columns(self) -> list[str]:
        """Known columns that the source lacks."""
        return self.catalog.absent_columns

    @property
    def proves_deletions(self) -> bool:
        """One transaction of the database shows all that there is."""
        return True

    @property
    def remarks(self) -> Sequence[str]:
        """None: the command ``doctor`` looks at the Letta database more closely."""
        return ()

    @property
    def unreadable(self) -> Sequence[BadRecord]:
        """None: a database that cannot be read fails as a whole."""
        return ()

    def fingerprints(self, start: datetime, end: datetime) -> dict[datetime, str]:
        """Return the fingerprint of each hour in ``[start, end)`` that has terminal runs."""
        return fingerprints(self, start, end)

    def dependency_digest(self, start: datetime, end: datetime) -> str:
        """Return a digest of what the terminal runs of ``[start, end)`` depend on besides their own rows."""
        return dependency_digests(self, start, end)

    def empty_dependency_digest(self) -> str:
        """Return the digest of an hour without runs."""
        return empty_dependency_digest(self)

    def run_versions(self, start: datetime, end: datetime) -> pa.Table:
        """Return ``run_id`` and ``version`` of each terminal run of ``[start, end)``, sorted by id."""
        return run_versions(self, start, end)

    def terminal_runs(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``terminal_runs`` for the runs that ended in ``[start, end)``, ordered by run id."""
        for tables in self.tables_of_runs(start, end):
            yield nest_run_tables(tables, SCHEMA_VERSION)

    @contextmanager
    def prefetch_terminal_runs(
        self, start: datetime, end: datetime, only: "pa.Array[Any] | None" = None
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        """Yield the batches of ``terminal_runs``; the rows of the next one are read while a batch is nested.

        A thread reads them: until the last batch came, or the block is left, nothing else may query the snapshot.
        """
        with read_ahead(self.tables_of_runs(start, end, only)) as portions:
            yield (nest_run_tables(tables, SCHEMA_VERSION) for tables in portions)

    def runs_by_hour(self) -> dict[datetime, int]:
        """Return the number of terminal runs in each hour that has any, over the whole history."""
        from trajectory_pipeline.letta.run_counts import count_runs_by_hour

        return count_runs_by_hour(self)

    def run_ids(self, start: datetime, end: datetime) -> list[str]:
        """Return the ids of the terminal runs that ended in ``[start, end)``, sorted."""
        return _values(self._run_ids(start, end))

    def _run_ids(self, start: datetime, end: datetime) -> "pa.Array[Any]":
        # As Arrow: half a million ids take a third of the memory.
        rows = self.read("Finding terminal runs", f"SELECT r.id::text AS id {self.terminal_runs_between(start, end)}")
        # A view may show a run twice, or without an id; the latter are in no partition, and ``check`` counts them.
        return rows["id"].combine_chunks().unique().drop_null().sort()

    def terminal_runs_between(self, start: datetime, end: datetime) -> str:
        """Return the SQL, from FROM on, of the terminal runs ``r`` that ended in ``[start, end)``."""
        ended = self.ended_at("r")
        return (
            f"FROM {self.catalog.table(RUNS)} r WHERE r.status::text IN {TERMINAL}"
            f" AND {ended} >= {naive_utc(start)} AND {ended} < {naive_utc(end)}"
        )

    def ended_at(self, alias: str) -> str:
        """Return the SQL expression of when a run ended: ``completed_at``, else ``created_at``, as naive UTC."""
        completed, created = (self.catalog.expression(RUNS, name, alias) for name in ("completed_at", "created_at"))
        return f"coalesce({completed}, {created} AT TIME ZONE 'UTC')"

    def hour_ended(self, alias: str) -> str:
        """Return the SQL expression of the hour that a run ended in; one that Python cannot hold as the nearest.

        Postgres knows years before 1 and after 9999.
        """
        ended = self.ended_at(alias)
        hour = f"least(greatest(date_trunc('hour', {ended}), {naive_utc(_FIRST_HOUR)}), {naive_utc(_LAST_HOUR)})"
        # Both ignore nulls.
        return f"CASE WHEN {ended} IS NOT NULL THEN {hour} END"

    def run_locations(self, run_ids: list[str]) -> dict[str, RunLocation]:
        """Return where runs are that a partition once held: gone, moved, or no longer terminal."""
        if not run_ids:
            return {}
        rows = self.read(
            "Looking for runs that left the partition",
            f"SELECT r.id::text AS id, r.status::text IN {TERMINAL} AS terminal,"
            f" {self.hour_ended('r')} AS hour FROM {self.catalog.table(RUNS)} r"
            f" WHERE {self.catalog.any_of(RUNS, 'id', 'r', run_ids)}",
        )
        found = {
            row["id"]: RunLocation(exists=True, terminal=bool(row["terminal"]), hour=row["hour"] and utc(row["hour"]))
            for row in rows.to_pylist()
        }
        gone = RunLocation(exists=False, terminal=False)
        return {run_id: found.get(run_id, gone) for run_id in run_ids}

    def count_rows(self, run_ids: Sequence[str]) -> dict[str, Mapping[str, int]]:
        """Return those of these runs that are there, how many rows each has in ``RUN_PARTS``, and whether it ended."""
        if not run_ids:
            return {}
        numbers = ", ".join(
            f"(SELECT count(*) FROM {self.catalog.table(table)} t WHERE t.{key} = r.{of_run}) AS {table.name}"
            if self.catalog.has(table)
            else f"0::bigint AS {table.name}"
            for table, (key, of_run) in RUN_PARTS.items()
        )
        rows = self.read(
            "Looking for captured runs",
            f"SELECT r.id::text AS id, coalesce(r.status::text IN {TERMINAL}, false)::int AS {ENDED}, {numbers}"
            f" FROM {self.catalog.table(RUNS)} r"
            f" WHERE {self.catalog.any_of(RUNS, 'id', 'r', list(run_ids))}",
        )
        return {row.pop("id"): row for row in rows.to_pylist()}

    def existing_agents(self, agent_ids: list[str]) -> set[str]:
        """Return which of these agents are there."""
        if not agent_ids or not self.catalog.has(AGENTS):
            return set()
        rows = self.read(
            "Looking for agents",
            f"SELECT a.id::text AS id FROM {self.catalog.table(AGENTS)} a"
            f" WHERE {self.catalog.any_of(AGENTS, 'id', 'a', agent_ids)}",
        )
        return set(_values(rows["id"]))

    def _portions(self, ids: list[str]) -> Iterator[list[str]]:
        """Cut runs into portions of at most ``BYTES_PER_BATCH``, in order; a larger run is a portion of its own."""
        columns = [name for name in _LARGE_COLUMNS if name in self.catalog.columns[MESSAGES.name]]
        # The size as stored: it is in the row's header, so that no large value is fetched for it.
        size = " + ".join(f"coalesce(pg_column_size(m.{name}), 0)" for name in columns)
        rows = self.read(
            "Measuring messages",
            f"SELECT m.run_id::text AS id, sum({size})::bigint AS bytes FROM {self.catalog.table(MESSAGES)} m"
            f" WHERE {self.catalog.any_of(MESSAGES, 'run_id', 'm', ids)} GROUP BY m.run_id",
        )
        bytes_of = dict(zip(_values(rows["id"]), _values(rows["bytes"]), strict=True))
        portion: list[str] = []
        filled = 0
        for run_id in ids:
            more = bytes_of.get(run_id, 0)
            if portion and filled + more > BYTES_PER_BATCH:
                yield portion
                portion, filled = [], 0
            portion.append(run_id)
            filled += more
        yield portion

    def tables_of_runs(
        self, start: datetime, end: datetime, only: "pa.Array[Any] | None" = None
    ) -> Iterator[RunTables]:
        """Yield the flat rows of ``terminal_runs``, a batch of runs at a time; ``only`` those of these sorted ids."""
        ids = self._run_ids(start, end) if only is None else only
        contexts = ContextReader(self)
        for first in range(0, len(ids), RUNS_PER_BATCH):
            for portion in self._portions(_values(ids.slice(first, RUNS_PER_BATCH))):
                yield self._tables_of(portion, contexts)

    def _tables_of(self, ids: list[str], contexts: ContextReader) -> RunTables:
        runs = self._rows(RUNS, "id", ids)
        if runs.num_rows > len(ids):
            twice = next(run_id for run_id, number in Counter(_values(runs["id"])).items() if number > 1)
            raise SourceError(
                f"The source {describe_postgres(self.url)} shows the run {twice} more than once, with different values:"
                f" {self.catalog.table(RUNS)} must have one row of each run. Correct what it shows (a view over a table"
                " and its archive?), then materialize the partition again."
            )
        steps = self._rows(STEPS, "run_id", ids)
        messages = self._rows(MESSAGES, "run_id", ids)
        agent_ids = _distinct(runs["agent_id"])
        agents = self._rows(AGENTS, "id", agent_ids)
        other_step_ids = unnamed_step_ids(steps, messages)
        return RunTables(
            runs=runs,
            steps=steps,
            other_steps=self._rows(STEPS, "id", other_step_ids),
            other_calls=self._calls_in(other_step_ids),
            messages=messages,
            run_metrics=self._rows(RUN_METRICS, "id", ids),
            step_metrics=self._rows(STEP_METRICS, "id", _distinct(steps["id"])),
            agents=agents,
            agent_tags=self._rows(AGENTS_TAGS, "agent_id", agent_ids),
            contexts=contexts.of(runs, steps, agents),
        )

    def _calls_in(self, step_ids: list[str]) -> pa.Table:
        """Read the messages in these steps, of any run, as far as ``CALL_COLUMNS`` goes."""
        columns = ", ".join(f"{self.catalog.expression(MESSAGES, name, 'm')} AS {name}" for name in CALL_COLUMNS)
        where = self.catalog.any_of(MESSAGES, "step_id", "m", step_ids) if step_ids else "false"
        query = f"SELECT DISTINCT {columns} FROM {self.catalog.table(MESSAGES)} m WHERE {where}"
        return self.read("Reading the calls that a run answers", query)

    def _rows(self, table: SourceTable, key: str, values: list[str]) -> pa.Table:
        """Read all known columns of the rows whose key is among the values; none where the source lacks the table."""
        source = f"FROM {self.catalog.table(table)} t " if self.catalog.has(table) else ""
        where = self.catalog.any_of(table, key, "t", values) if source and values else "false"
        # A view over a table and its archive may show a row twice.
        distinct = "" if "xmin" in self.catalog.columns.get(table.name, {}) else "DISTINCT "
        query = f"SELECT {distinct}{self.catalog.select_list(table, 't')} {source}WHERE {where}"
        return self.read(f"Reading {table.name}", query)

    def read(self, doing: str, query: str) -> pa.Table:
        """Return the rows of a query in this snapshot.

        Raises:
            SourceError: it cannot be run; the text begins with what was being done.
        """
        self.queries += 1
        with reading(self.url, doing), self.connection.cursor() as cursor:
            cursor.execute(query)
            return cast(pa.Table, cursor.fetch_arrow_table())

    def stream(self, doing: str, query: str) -> Iterator[pa.RecordBatch]:
        """Yield a query's rows as they come; it must be read to its end before the next query."""
        self.queries += 1
        with reading(self.url, doing), self.connection.cursor() as cursor:
            cursor.execute(query)
            yield from cursor.fetch_record_batch()


_Kind = TypeVar("_Kind", bound=Snapshot)


@dataclass(frozen=True)
class LettaSource:
    """A Letta server's Postgres, ``postgresql://user:password@host:port/database``; a user with SELECT is enough.

    Example:
        >>> source = LettaSource("postgresql://letta:letta@localhost:5432/letta")
        >>> with source.snapshot() as snapshot:  # doctest: +SKIP
        ...     for batch in snapshot.terminal_runs(start, end):
        ...         print(batch.num_rows)
    """

    name: ClassVar[str] = LETTA
    kind: ClassVar[str] = "letta"
    cannot_know: ClassVar[tuple[str, ...]] = (
        "What a streamed answer of chat completions lost at its length limit: Letta records the run as ended well.",
        "Tokens and texts of a failed blocking call: Letta rolls them back.",
    )

    url: str = field(repr=False)
    timeout_seconds: int = 600  # of one query
    _shared: SnapshotConnection | None = field(default=None, repr=False, compare=False)
    _range: "SharedSnapshots | None" = field(default=None, repr=False, compare=False)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Open one ``REPEATABLE READ, READ ONLY`` transaction.

        Raises:
            SourceError: the source cannot be reached, or lacks what is required; the text says what and where.
        """
        with self._opened(Snapshot) as snapshot:
            yield snapshot

    def shared_snapshot(self, hour: datetime) -> AbstractContextManager[Snapshot | None]:
        """Give the snapshot that one of ``pooled_for``'s hours shares with its neighbors, if it has few runs.

        Raises:
            SourceError: as ``snapshot`` does; the next partition then gets another one.
        """
        return nullcontext(None) if self._range is None else self._range.snapshot(hour)

    @contextmanager
    def pooled(self) -> Iterator["LettaSource"]:
        """Share one connection between all snapshots that are opened inside, one after the other; reopen a lost one.

        It is opened at the first snapshot; a nested block changes nothing.
        """
        with self._connection() as connection:
            yield replace(self, _shared=connection)

    @contextmanager
    def pooled_for(self, hours: Sequence[datetime]) -> Iterator["LettaSource"]:
        """Do what ``pooled`` does; of these hours, which will be captured in this order, small ones share snapshots."""
        from trajectory_pipeline.letta.range_snapshot import RangeSnapshot, SharedSnapshots

        with self.pooled() as pooled, closing(SharedSnapshots(partial(pooled._opened, RangeSnapshot), hours)) as shared:
            yield replace(pooled, _range=shared)

    @contextmanager
    def _opened(self, kind: type[_Kind]) -> Iterator[_Kind]:
        with self._connection() as shared, shared.transaction(timeout_seconds=self.timeout_seconds) as begun:
            yield kind(self.url, begun.connection, read_catalog(begun, self.url), begun.at, begun.identity)

    def _connection(self) -> AbstractContextManager[SnapshotConnection]:
        return closing(SnapshotConnection(self.url)) if self._shared is None else nullcontext(self._shared)


def naive_utc(moment: datetime) -> str:
    """Return a moment as an SQL literal of ``timestamp``, UTC."""
    return f"TIMESTAMP {literal(moment.astimezone(UTC).replace(tzinfo=None).isoformat(' '))}"


def utc(naive: datetime) -> datetime:
    """Return a time that the source gave without a zone, which is UTC there."""
    return naive.replace(tzinfo=UTC)


def _distinct(column: "pa.ChunkedArray[Any]") -> list[str]:
    return sorted(_values(pc.unique(column).drop_null()))


def _values(column: "pa.ChunkedArray[Any] | pa.Array[Any]") -> list[Any]:
    return column.to_pylist()
