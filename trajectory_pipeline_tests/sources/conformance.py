"""What every source must do, whatever it reads: a suite that each of them passes, with the same faults put into each.

A source's test module makes a ``World``, which writes what the source reads, and inherits ``SourceConformance``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from trajectory_pipeline.errors import PipelineError, SourceError
from trajectory_pipeline.partition_keys import HOUR, at_source, parse_partition_key, partition_key, source_of_key
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.source_protocol import Source
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.storage import Storage

Row = dict[str, Any]
FIRST = datetime(2026, 11, 20, 10, tzinfo=UTC)
HOURS = 4
"""The runs of the suite end in the hours from ``FIRST`` on; a file's own time may be later."""
TEXTS = ("List the folder", "Mail Ada \u00e9\U0001f600", "Count to \u0000 three")


class World(ABC):
    """What a source reads, as a test changes it. Keys are the test's own names of runs.

    Attributes:
        source: the source over it.
        proves_deletions: whether a run that is gone is known to be deleted.
    """

    source: Source
    proves_deletions = False

    @abstractmethod
    def write_run(self, key: str, asked: str, answered: str, at: datetime) -> None:
        """Write a finished run with a question, a tool call with its return, and an answer; or write it anew.

        ``at`` is when it ended. What stands beside it stays.
        """

    @abstractmethod
    def run_id(self, key: str) -> str:
        """Return the id of a run that was written."""

    @abstractmethod
    def remove_run(self, key: str) -> None:
        """Take a run away, as its owner would."""

    @abstractmethod
    def begin_run(self, key: str, asked: str, at: datetime) -> None:
        """Write a run that goes on: it is not terminal."""

    @abstractmethod
    def break_run(self, key: str) -> str:
        """Damage a run so that it cannot be converted; returns a text that names the place."""

    @abstractmethod
    def vanish(self) -> None:
        """Make the source unreachable, as a disk that is unplugged or a server that is down."""

    @abstractmethod
    def return_(self) -> None:
        """Undo ``vanish``."""


@dataclass
class Sinks:
    """Both sinks of a test, and what the capture sensor and its runs do with them."""

    database_url: str
    folder: Path
    seen: set[datetime] = field(default_factory=set)

    @property
    def storage(self) -> Storage:
        return Storage(ParquetStore(str(self.folder)), TrajectoryDatabase(self.database_url))

    def hours(self, source: Source) -> list[datetime]:
        """The hours that are compared: those of the suite, and those of the source's own runs."""
        with source.snapshot() as snapshot:
            found = set(snapshot.runs_by_hour())
        planned = {at_source(FIRST + number * HOUR, source.name) for number in range(HOURS)}
        self.seen |= found | planned
        return sorted(self.seen)

    def sync(self, source: Source) -> list[datetime]:
        """Capture and convert what is stale until nothing is; returns what was stale first."""
        first = stale = find_stale_partitions(source, self.storage.postgres, self.hours(source))
        for _ in range(4):
            for hour in stale:
                materialize_terminal_runs(hour, source, self.storage)
            for hour in stale:
                materialize_trajectories(hour, self.storage)
            stale = find_stale_partitions(source, self.storage.postgres, self.hours(source))
            if not stale:
                return first
        raise AssertionError(f"still stale after four rounds: {[partition_key(hour) for hour in stale]}")

    def rows(self, name: str = "") -> dict[str, Row]:
        """The trajectories in Postgres by run id, of one source or of all."""
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            rows = connection.execute("SELECT * FROM trajectory.trajectories").fetchall()
        return {row["run_id"]: row for row in rows if name in ("", row["source"])}

    def quarantine(self) -> dict[str, Row]:
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            rows = connection.execute("SELECT * FROM trajectory.quarantine").fetchall()
        return {row["run_id"]: row for row in rows}

    def files(self) -> dict[str, bytes]:
        """What the Parquet files hold, by their path."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() for path in sorted(self.folder.rglob("*.parquet"))
        }

    def in_parquet(self, hours: Sequence[datetime]) -> list[str]:
        """The ids of all trajectories in Parquet, sorted."""
        return sorted(
            run_id
            for hour in hours
            for batch in self.storage.parquet.read(TRAJECTORIES, hour, ["run_id"])
            for run_id in batch.column(0).to_pylist()
        )


def texts_of(row: Row) -> list[str]:
    """Return the texts of a trajectory's messages in order: of users, agents and tools."""
    return [
        part["text"]
        for turn in row["data"]["turns"]
        for message in turn["messages"]
        for part in message["content"]
        if part.get("type") == "text" and message["role"] in ("user", "assistant", "tool")
    ]


class SourceConformance:
    """The suite: a subclass gives the fixture ``world``.

    Attributes:
        uses_tools: whether the format has tool calls.
    """

    uses_tools = True

    @pytest.fixture
    def sinks(self, trajectory_database: str, tmp_path: Path) -> Sinks:
        return Sinks(trajectory_database, tmp_path / "sinks")

    def test_each_run_is_there_once_and_whole_and_again_the_same(
        self, world: World, sinks: Sinks, make_database: Callable[[str | None], str], tmp_path: Path
    ) -> None:
        for number, text in enumerate(TEXTS):
            world.write_run(f"run-{number}", text, f"answer {number}", FIRST + number * timedelta(minutes=40))
        sinks.sync(world.source)
        rows = sinks.rows()
        assert set(rows) == {world.run_id(f"run-{number}") for number in range(len(TEXTS))}
        assert sinks.in_parquet(sinks.hours(world.source)) == sorted(rows)
        assert not sinks.quarantine()
        for number, text in enumerate(TEXTS):
            row = rows[world.run_id(f"run-{number}")]
            found = "".join(texts_of(row))
            assert text.replace("\0", "\\u0000") in found or text.replace("\0", "") in found
            assert f"answer {number}" in found
            assert row["source"] == world.source.name == source_of_key(row["partition_key"])
            assert row["tools_requested"] == (["look"] if self.uses_tools else [])
            assert row["end_time"] == FIRST + number * timedelta(minutes=40)
        # Nothing is stale any more, and reading again, or elsewhere, gives the same bytes.
        before = sinks.files()
        assert sinks.sync(world.source) == []
        for key in {row["partition_key"] for row in rows.values()}:
            materialize_terminal_runs(parse_partition_key(key), world.source, sinks.storage, force=True)
            materialize_trajectories(parse_partition_key(key), sinks.storage, force=True)
        assert sinks.files() == before
        other = Sinks(make_database("template_trajectory"), tmp_path / "other")
        other.sync(world.source)
        assert other.files() == before

    def test_columns_that_the_source_cannot_know_are_null(self, world: World) -> None:
        world.write_run("run", "Count", "done", FIRST)
        world.write_run("other", "Look", "seen", FIRST)
        tables = {"run": "runs", "steps": "steps", "messages": "messages", "agent": "agents"}
        assert world.source.kind
        assert world.source.cannot_know
        with world.source.snapshot() as snapshot:
            start = at_source(FIRST, world.source.name)
            rows = [row for batch in snapshot.terminal_runs(start, start + HOUR) for row in batch.to_pylist()]
            shown = {
                f"{tables[column]}.{name}"
                for row in rows
                for column in tables
                for nested in (row[column] if isinstance(row[column], list) else [row[column]])
                for name, value in (nested or {}).items()
                if value is not None
            }
            assert len(rows) == 2
            assert not shown.intersection(snapshot.absent_columns)
            assert {row["run_id"] for row in rows} == set(snapshot.run_ids(start, start + HOUR))

    def test_late_and_edited_runs_are_followed(self, world: World, sinks: Sinks) -> None:
        world.write_run("first", "Count", "one", FIRST)
        sinks.sync(world.source)
        world.write_run("late", "Look", "two", FIRST + timedelta(minutes=1))
        assert sinks.sync(world.source) == [at_source(FIRST, world.source.name)]
        assert set(sinks.rows()) == {world.run_id("first"), world.run_id("late")}
        # A clock that goes back: it ends before it ended.
        world.write_run("late", "Look", "three", FIRST - timedelta(seconds=1) + HOUR * 2)
        sinks.sync(world.source)
        rows = sinks.rows()
        assert set(rows) == {world.run_id("first"), world.run_id("late")}
        found = texts_of(rows[world.run_id("late")])
        assert "three" in found
        assert "two" not in found
        assert sinks.in_parquet(sinks.hours(world.source)) == sorted(rows)

    def test_run_that_goes_on_is_withheld_until_it_ends(self, world: World, sinks: Sinks) -> None:
        world.write_run("first", "Count", "one", FIRST)
        world.begin_run("open", "Look", FIRST + timedelta(minutes=2))
        sinks.sync(world.source)
        assert set(sinks.rows()) == {world.run_id("first")}
        world.write_run("open", "Look", "ended", FIRST + timedelta(minutes=3))
        sinks.sync(world.source)
        assert "ended" in texts_of(sinks.rows()[world.run_id("open")])

    def test_run_that_is_gone_stays_marked_only_where_that_is_proof(self, world: World, sinks: Sinks) -> None:
        for number in range(4):
            world.write_run(f"run-{number}", "Count", f"answer {number}", FIRST + timedelta(minutes=number))
        sinks.sync(world.source)
        before = sinks.rows()
        world.remove_run("run-1")
        sinks.sync(world.source)
        rows = sinks.rows()
        assert set(rows) == set(before)
        deleted = {run_id for run_id, row in rows.items() if row["deleted_at"] is not None}
        assert deleted == ({world.run_id("run-1")} if world.proves_deletions else set())
        # It comes back, as from a backup.
        world.write_run("run-1", "Count", "answer 1", FIRST + timedelta(minutes=1))
        sinks.sync(world.source)
        assert not any(row["deleted_at"] for row in sinks.rows().values())

    def test_bad_record_is_quarantined_with_its_place_and_the_rest_goes_on(self, world: World, sinks: Sinks) -> None:
        world.write_run("good", "Count", "one", FIRST)
        world.write_run("bad", "Look", "two", FIRST + timedelta(minutes=1))
        place = world.break_run("bad")
        sinks.sync(world.source)
        assert world.run_id("good") in sinks.rows()
        assert world.run_id("bad") not in sinks.rows()
        (quarantined,) = sinks.quarantine().values()
        assert place in f"{quarantined['json_path']} {quarantined['error']}"
        assert source_of_key(quarantined["partition_key"]) == world.source.name
        world.write_run("bad", "Look", "mended", FIRST + timedelta(minutes=1))
        sinks.sync(world.source)
        assert not sinks.quarantine()
        assert "mended" in texts_of(sinks.rows()[world.run_id("bad")])

    def test_source_that_vanishes_changes_nothing(self, world: World, sinks: Sinks) -> None:
        world.write_run("run", "Count", "one", FIRST)
        sinks.sync(world.source)
        before, files = sinks.rows(), sinks.files()
        world.vanish()
        with pytest.raises(SourceError) as raised, world.source.snapshot() as snapshot:
            snapshot.run_ids(at_source(FIRST, world.source.name), at_source(FIRST + HOUR, world.source.name))
        assert "\n" not in str(raised.value)
        with pytest.raises(PipelineError):
            materialize_terminal_runs(at_source(FIRST, world.source.name), world.source, sinks.storage, force=True)
        world.return_()
        assert sinks.sync(world.source) == []
        assert sinks.rows() == before
        assert sinks.files() == files
