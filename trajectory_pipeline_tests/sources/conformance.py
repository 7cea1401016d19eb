"""What every source must do, whatever it reads: a suite that each of them passes, with the same faults put into each.

A source's test module makes a ``World``, which writes what the source reads, and inherits ``SourceConformance``.
"""

import gc
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from trajectory_pipeline.errors import PipelineError, SourceError
from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness
from trajectory_pipeline.partition_keys import HOUR, at_source, parse_partition_key, partition_key, source_of_key
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.source_protocol import Source, SourceSnapshot
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.storage import Storage

Row = dict[str, Any]
FIRST = datetime(2026, 11, 20, 10, tzinfo=UTC)
HOURS = 4
"""The runs of the suite end in the hours from ``FIRST`` on; a file's own time may be later."""
TEXTS = ("List the folder", "Mail Ada \u00e9\U0001f600", "Count to \u0000 three")


@dataclass(frozen=True)
class Shape:
    """What is particular about a run: nothing, unless a test says so.

    Attributes:
        took: how long it took by its own clock; less than nothing where the clock was set back meanwhile.
        has_image: its question holds an image.
        has_return: its tool call has a return.
        extra: name of a field or column that no version of the format has, beside those of the run.
        rounds: how many tool calls it has, each with its return.
        padding: characters of text in each of these returns.
    """

    took: timedelta = timedelta(seconds=3)
    has_image: bool = False
    has_return: bool = True
    extra: str | None = None
    rounds: int = 1
    padding: int = 0

    def returned(self, number: int) -> str:
        """What the tool returned in a round."""
        return "no such folder" if not self.padding else f"no such folder {number} {'x' * self.padding}"


PLAIN = Shape()
LARGEST_PEAK = 5 * 2**30
"""Bytes that a worker may take for a run of 200 MB."""
IMAGE = "iVBORw0KGgo="
"""The data of an image, as far as anybody looks."""


class World(ABC):
    """What a source reads, as a test changes it. Keys are the test's own names of runs.

    Attributes:
        source: the source over it.
        proves_deletions: whether a run that is gone is known to be deleted.
    """

    source: Source
    proves_deletions = False

    @abstractmethod
    def write_run(self, key: str, asked: str, answered: str, at: datetime, shape: Shape = PLAIN) -> None:
        """Write a finished run with a question, a tool call with its return, and an answer; or write it anew.

        ``at`` is when it ended. What stands beside it stays.
        """

    def write_twin(self, key: str, of: str, asked: str, answered: str, at: datetime) -> None:
        """Write a finished run that has each id of another one that the format lets two of them have."""
        self.write_run(key, asked, answered, at)

    @abstractmethod
    def run_id(self, key: str) -> str:
        """Return the id of a run that was written."""

    @abstractmethod
    def remove_run(self, key: str) -> None:
        """Take a run away, as its owner would."""

    @abstractmethod
    def begin_run(self, key: str, asked: str, at: datetime) -> None:
        """Write a run that goes on: it is not terminal."""

    def cut_run(self, key: str, share: float) -> None:
        """Leave only a share of what was written of a run, as a writer that is not done, or was killed, leaves it."""
        self.begin_run(key, "Look", FIRST)

    @abstractmethod
    def break_run(self, key: str) -> str:
        """Damage a run so that it cannot be converted; returns a text that names the place."""

    def damages(self, key: str) -> dict[str, Callable[[], object]]:
        """Return ways in which a crash or a half-done copy damages what a run is read from, by name."""
        return {
            "cut to nothing": lambda: self.cut_run(key, 0.0),
            "cut": lambda: self.cut_run(key, 0.6),
            "broken": lambda: self.break_run(key),
        }

    @abstractmethod
    def vanish(self) -> None:
        """Make the source unreachable, as a disk that is unplugged or a server that is down."""

    @abstractmethod
    def return_(self) -> None:
        """Undo ``vanish``."""


@dataclass(frozen=True)
class Interrupted:
    """A source in which something happens after its runs were listed, and before they are read."""

    inner: Source
    happens: Callable[[], None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @contextmanager
    def snapshot(self) -> Iterator[SourceSnapshot]:
        with self.inner.snapshot() as snapshot:
            original = snapshot.prefetch_terminal_runs

            def prefetch(start: datetime, end: datetime, only: Any = None) -> AbstractContextManager[Iterator[Any]]:
                assert snapshot.run_ids(start, end)
                self.happens()
                return original(start, end, only)

            vars(snapshot)["prefetch_terminal_runs"] = prefetch
            yield snapshot

    @contextmanager
    def pooled(self) -> Iterator["Interrupted"]:
        yield self


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
        uses_images: whether it has images.
    """

    uses_tools = True
    uses_images = True

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

    @pytest.mark.heavy
    def test_damage_to_what_was_captured_removes_and_repeats_nothing(self, world: World, sinks: Sinks) -> None:
        if world.proves_deletions:
            return  # A database is damaged as a whole, if at all.

        def write() -> dict[str, str]:
            for number, key in enumerate(("run", "other")):
                world.write_run(key, "Count", f"answer {number}", FIRST + timedelta(minutes=number))
            sinks.sync(world.source)
            return {run_id: row["data"] for run_id, row in sinks.rows().items()}

        scope = CompletenessScope(FIRST, stuck_after=timedelta(days=1))
        before = write()
        assert set(before) == {world.run_id("run"), world.run_id("other")}
        for name, damage in world.damages("run").items():
            damage()
            sinks.sync(world.source)
            assert {run_id: row["data"] for run_id, row in sinks.rows().items()} == before, name
            # Whatever is quarantined is no run that was captured, and is named by the check as long as it is there.
            assert not sinks.quarantine().keys() & before.keys(), name
            differences = check_completeness(world.source, sinks.storage, scope).differences
            assert len(differences) == len(sinks.quarantine()), name
            assert write() == before, name
            assert not sinks.quarantine(), name
            assert check_completeness(world.source, sinks.storage, scope).differences == (), name

    @pytest.mark.parametrize("at", [datetime(2099, 1, 2, 3, 4, tzinfo=UTC), datetime(9999, 12, 31, 23, 30, tzinfo=UTC)])
    def test_run_that_ends_in_the_future_is_named_by_the_check(self, world: World, sinks: Sinks, at: datetime) -> None:
        world.write_run("run", "Count", "one", FIRST)
        world.write_run("later", "Look", "two", at)
        hour = at_source(FIRST, world.source.name)
        materialize_terminal_runs(hour, world.source, sinks.storage)
        materialize_trajectories(hour, sinks.storage)
        report = check_completeness(world.source, sinks.storage, CompletenessScope(FIRST, timedelta(days=1)))
        assert (report.misdated.after_now, report.misdated.without_time) == ((world.run_id("later"),), ())
        assert (report.runs, report.differences) == (1, ())

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

    @pytest.mark.parametrize("happening", ["written anew", "removed", "cut", "vanished"])
    def test_run_that_changes_while_it_is_read_is_read_again(self, world: World, sinks: Sinks, happening: str) -> None:
        world.write_run("run", "Count", "one", FIRST)
        world.write_run("other", "Look", "two", FIRST + timedelta(minutes=1))
        happenings: dict[str, Callable[[], None]] = {
            "written anew": lambda: world.write_run("run", "Sum", "three", FIRST),
            "removed": lambda: world.remove_run("run"),
            "cut": lambda: world.cut_run("run", 0.6),
            "vanished": world.vanish,
        }
        hour = at_source(FIRST, world.source.name)
        interrupted = Interrupted(world.source, happenings[happening])
        # It fails with a sentence; or gives what was listed, or some of what came later, which its fingerprint does not
        # cover: either is stale afterwards.
        with suppress(PipelineError):
            materialize_terminal_runs(hour, interrupted, sinks.storage)
            materialize_trajectories(hour, sinks.storage)
        if happening == "vanished":
            world.return_()
        else:
            world.write_run("run", "Sum", "three", FIRST)
        sinks.sync(world.source)
        assert not sinks.quarantine()
        assert [texts_of(row)[0] for _, row in sorted(sinks.rows().items())] == [
            text
            for _, text in sorted(
                [(world.run_id("run"), "Count" if happening == "vanished" else "Sum"), (world.run_id("other"), "Look")]
            )
        ]

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.97])
    def test_run_that_is_written_in_parts_is_withheld_or_quarantined_until_it_is_whole(
        self, world: World, sinks: Sinks, share: float
    ) -> None:
        world.write_run("good", "Count", "one", FIRST)
        world.write_run("run", "Look", "done", FIRST + timedelta(minutes=1))
        world.cut_run("run", share)
        sinks.sync(world.source)
        assert set(sinks.rows()) == {world.run_id("good")}
        world.write_run("run", "Look", "done", FIRST + timedelta(minutes=1))
        sinks.sync(world.source)
        assert set(sinks.rows()) == {world.run_id("good"), world.run_id("run")}
        assert not sinks.quarantine()

    def test_clock_that_was_set_back_during_a_run_loses_and_repeats_nothing(self, world: World, sinks: Sinks) -> None:
        world.write_run("run", "Count", "one", FIRST, Shape(took=timedelta(minutes=-70)))
        world.write_run("next", "Look", "two", FIRST)
        sinks.sync(world.source)
        rows = sinks.rows()
        assert set(rows) == {world.run_id("run"), world.run_id("next")}
        found = rows[world.run_id("run")]
        # Both times are as they were written.
        assert (found["start_time"], found["end_time"]) == (FIRST + timedelta(minutes=70), FIRST)
        assert {"Count", "one"} <= set(texts_of(found))

    def test_two_runs_with_the_same_ids_of_conversation_and_messages_are_two(self, world: World, sinks: Sinks) -> None:
        world.write_run("run", "Count", "one", FIRST)
        world.write_twin("twin", "run", "Look", "two", FIRST + timedelta(minutes=1))
        sinks.sync(world.source)
        rows = sinks.rows()
        assert set(rows) == {world.run_id("run"), world.run_id("twin")}
        assert [texts_of(rows[world.run_id(key)])[0] for key in ("run", "twin")] == ["Count", "Look"]
        assert not sinks.quarantine()

    def test_field_that_is_not_known_is_passed_over_and_named(self, world: World, sinks: Sinks) -> None:
        world.write_run("run", "Count", "one", FIRST, Shape(extra="mood"))
        sinks.sync(world.source)
        assert "one" in texts_of(sinks.rows()[world.run_id("run")])
        with world.source.snapshot() as snapshot:
            assert [name for name in snapshot.unknown_columns if name.endswith("mood")]

    def test_image_passes_through(self, world: World, sinks: Sinks) -> None:
        if not self.uses_images:
            assert any("images" in sentence for sentence in world.source.cannot_know)
            return
        world.write_run("run", "What is it?", "A dot.", FIRST, Shape(has_image=True))
        sinks.sync(world.source)
        (row,) = sinks.rows().values()
        parts = [part for turn in row["data"]["turns"] for message in turn["messages"] for part in message["content"]]
        assert ["image/png" in json.dumps(part) for part in parts if part["type"] == "image"] == [True]
        assert {"What is it?", "A dot."} <= set(texts_of(row))

    def test_tool_call_without_return_stays_open(self, world: World, sinks: Sinks) -> None:
        if not self.uses_tools:
            assert any("tools" in sentence for sentence in world.source.cannot_know)
            return
        world.write_run("run", "Count", "one", FIRST, Shape(has_return=False))
        sinks.sync(world.source)
        (row,) = sinks.rows().values()
        assert row["tools_requested"] == ["look"]
        # None is made up.
        messages = [message for turn in row["data"]["turns"] for message in turn["messages"]]
        assert not [message for message in messages if message["role"] == "tool" or message.get("tool_returns")]

    @pytest.mark.heavy
    def test_run_of_200_mb_is_captured_beside_others_in_bounded_memory(self, world: World, sinks: Sinks) -> None:
        if not self.uses_tools:
            return
        world.write_run("big", "Count", "one", FIRST, Shape(rounds=400, padding=2**19))
        world.write_run("small", "Look", "two", FIRST)
        hour = at_source(FIRST, world.source.name)
        with peak_memory() as peak:
            materialize_terminal_runs(hour, world.source, sinks.storage)
            materialize_trajectories(hour, sinks.storage)
        assert sinks.in_parquet([hour]) == sorted(world.run_id(key) for key in ("big", "small"))
        assert find_stale_partitions(world.source, sinks.storage.postgres, [hour]) == []
        assert peak() < LARGEST_PEAK


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that tells how many bytes more than at its start this process had in the block, at most."""

    def told(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # The peak from here on.
    before = told("VmRSS")
    peak = 0
    yield lambda: peak
    peak = told("VmHWM") - before
