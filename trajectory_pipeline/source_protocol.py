"""The seam between the pipeline and whatever runs come from: what a source gives, and what it promises.

Letta's Postgres (``letta``) and the sources in ``sources`` are its implementations; ``docs/sources.md`` tells how to
add another. All of them pass one conformance suite.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

SHARED_SECONDS = 30.0
"""How long partitions of a range may share one view of their source: it must not hold back the source's vacuum."""

EMPTY = "e3b0c44298fc1c149afbf4c8996fb924"
"""Fingerprint of a partition without terminal runs (32 hex digits of the SHA-256 of nothing)."""
ENDED = "ended"
"""Stands beside the names of tables for what a run has while it is terminal."""
UNCOUNTED = sys.maxsize
"""Stands for the number of rows where a run is read whole, or not at all."""


@dataclass(frozen=True)
class SourceIdentity:
    """What was read.

    Attributes:
        text: the source as it is recorded: equal for the same one, whoever reads it. What is missing counts as deleted
            only in the one that is known.
        cluster: of Postgres, cluster and timeline; None where they are unknown.
        position: of Postgres, position in its WAL, in bytes; None where there is none.
    """

    text: str
    cluster: str | None = None
    position: int | None = None


@dataclass(frozen=True)
class RunLocation:
    """Where a run of a partition is now; ``hour`` (that it ended in, UTC) is None where it is gone, or has no time.

    ``unproven`` is for a run that the source does not show, where that is no proof of its deletion.
    """

    exists: bool
    terminal: bool
    hour: datetime | None = None
    unproven: bool = False


@dataclass(frozen=True)
class BadRecord:
    """Something in the source that cannot be read and makes no run: where it is, and what is wrong with it."""

    place: str
    problem: str


class SourceSnapshot(Protocol):
    """One view of a source, in which every method sees the same state.

    Methods raise ``SourceError`` if the source cannot be read.
    """

    @property
    def taken_at(self) -> datetime:
        """When it was taken, by the source's clock where it has one."""
        ...

    @property
    def identity(self) -> SourceIdentity:
        """What was read."""
        ...

    @property
    def described(self) -> str:
        """The source for a person, without a password."""
        ...

    @property
    def shown_columns(self) -> Mapping[str, Mapping[str, str]]:
        """Columns that the source can fill, by table of ``schema.raw``; a table that it lacks has none."""
        ...

    @property
    def unknown_columns(self) -> list[str]:
        """Columns or fields of the source that are not read, ``table.column``."""
        ...

    @property
    def absent_columns(self) -> list[str]:
        """Known columns that the source lacks, ``table.column``: they are null in every row."""
        ...

    @property
    def proves_deletions(self) -> bool:
        """Whether what is not there is known to be deleted."""
        ...

    @property
    def remarks(self) -> Sequence[str]:
        """What a person should know of the source as it was read: what makes no run, what is odd."""
        ...

    @property
    def unreadable(self) -> Sequence[BadRecord]:
        """What stands for runs and cannot be read now: what was captured of it stays as it was."""
        ...

    def fingerprints(self, start: datetime, end: datetime) -> dict[datetime, str]:
        """Return a summary of each hour in ``[start, end)`` that has terminal runs; equal ones mean nothing changed."""
        ...

    def dependency_digest(self, start: datetime, end: datetime) -> str:
        """Return a digest of what the runs of ``[start, end)`` depend on besides their own rows."""
        ...

    def empty_dependency_digest(self) -> str:
        """Return the digest of an hour without runs."""
        ...

    def run_versions(self, start: datetime, end: datetime) -> pa.Table:
        """Return ``run_id`` and ``version`` (int64) of each terminal run of ``[start, end)``, sorted by run id.

        As long as a run's version is the same in one source, with the same ``empty_dependency_digest``, so are its rows
        of ``terminal_runs``, but for what an agent did since.
        """
        ...

    def runs_by_hour(self) -> dict[datetime, int]:
        """Return the number of terminal runs in each hour that has any, over the whole history."""
        ...

    def run_ids(self, start: datetime, end: datetime) -> list[str]:
        """Return the ids of the terminal runs that ended in ``[start, end)``, sorted."""
        ...

    def terminal_runs(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``terminal_runs`` (``schema.raw``) for these runs, ordered by run id."""
        ...

    def prefetch_terminal_runs(
        self, start: datetime, end: datetime, only: "pa.Array[Any] | None" = None
    ) -> AbstractContextManager[Iterator[pa.RecordBatch]]:
        """Open ``terminal_runs``; the source may read ahead until the block is left.

        ``only``: of these of its runs, by sorted ids; None: of all.
        """
        ...

    def run_locations(self, run_ids: list[str]) -> dict[str, RunLocation]:
        """Return where runs are that a partition once held: gone, moved, no longer terminal, or not shown."""
        ...

    def count_rows(self, run_ids: Sequence[str]) -> dict[str, Mapping[str, int]]:
        """Return those of these runs that are there: how many rows each has by table, and 1 for ``ENDED`` if it is.

        A table whose rows are not counted has ``UNCOUNTED``.
        """
        ...

    def existing_agents(self, agent_ids: list[str]) -> set[str]:
        """Return which of these agents are there."""
        ...


class Source(Protocol):
    """Where runs come from.

    Attributes:
        name: by which its partitions, files, assets and run ids are told from those of other sources.
        kind: a word for what it is: ``letta``, ``letta_code``, ``atif``, ``letta_api``, or one of your own.
        cannot_know: what its trajectories lack, in sentences for a person.
    """

    @property
    def name(self) -> str:  # noqa: D102 - see the class
        ...

    @property
    def kind(self) -> str:  # noqa: D102 - see the class
        ...

    @property
    def cannot_know(self) -> tuple[str, ...]:  # noqa: D102 - see the class
        ...

    def snapshot(self) -> AbstractContextManager[SourceSnapshot]:
        """Open one view of the source. Raises ``SourceError`` if it cannot be reached or is not what it should be."""
        ...

    def pooled(self) -> AbstractContextManager["Source"]:
        """Share what is costly to open between all snapshots inside the block."""
        ...


@runtime_checkable
class RangeSource(Source, Protocol):
    """A source that can read several partitions in one view."""

    def pooled_for(self, hours: Sequence[datetime]) -> AbstractContextManager["RangeSource"]:
        """Do what ``pooled`` does; these hours will be captured inside the block, in this order."""
        ...

    def shared_snapshot(self, hour: datetime) -> AbstractContextManager[SourceSnapshot | None]:
        """Give the view that one of ``pooled_for``'s hours shares with its neighbors; None if it has none.

        It was opened at most ``SHARED_SECONDS`` ago. Raises what ``snapshot`` raises.
        """
        ...
