"""What the measurements use: a Postgres server, generated databases, sinks, the pipeline, and the sizes."""

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg

from benchmarks.databases import drop_database
from benchmarks.letta_database.load import DatabaseSpec, generate
from benchmarks.measuring import Child, in_child, timed
from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.embedded_postgres.binaries import installed_binaries
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.pipeline.convert_range import RangeConversion
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.storage import Storage

FIRST_HOUR = datetime(2025, 6, 1, tzinfo=UTC)

SERVER_SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "log_checkpoints": "off",
}
"""A small production server's; commits reach the disk, as everywhere."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        runs: in the one partition of the points about speed.
        tries: of which the median counts.
        orm_runs: that are converted one at a time; the rest is reckoned from them.
        memory: runs of the small and of the large partition whose memory is compared.
        giant: messages of one run.
        scale: runs of two partitions, the second ten times the first.
        others: messages of runs outside the partition.
        hours: partitions of one Dagster run.
        runs_an_hour: in each of these.
        reading: rows of ``trajectories`` that are read from.
        judged: runs that are judged by a quick and by a slow provider.
        exported: runs of a small and of a large export.
    """

    runs: int
    tries: int
    orm_runs: int
    memory: tuple[int, int]
    giant: int
    scale: tuple[int, int]
    others: int
    hours: int
    runs_an_hour: int
    reading: int
    judged: tuple[int, int]
    exported: tuple[int, int]


SIZES = {
    "laptop": Size(
        runs=2_000,
        tries=3,
        orm_runs=100,
        memory=(1_000, 5_000),
        giant=5_000,
        scale=(300, 3_000),
        others=200_000,
        hours=72,
        runs_an_hour=5,
        reading=50_000,
        judged=(1_000, 1_280),
        exported=(500, 5_000),
    ),
    "full": Size(
        runs=50_000,
        tries=5,
        orm_runs=2_000,
        memory=(10_000, 500_000),
        giant=50_000,
        scale=(5_000, 50_000),
        others=20_000_000,
        hours=720,
        runs_an_hour=5,
        reading=1_000_000,
        judged=(5_000, 5_000),
        exported=(5_000, 50_000),
    ),
}


@dataclass
class Sinks:
    """Where a capture goes: a migrated database and a folder, both empty at first."""

    database_url: str
    folder: Path

    def used(self, asset: str) -> Path:
        """Return the folder of an asset's files."""
        return self.folder / asset


@dataclass
class Bench:
    """One run of measurements; everything it creates is deleted at its end.

    Attributes:
        size: how much is measured.
        scratch: folder for all files, the server's included.
        server: its Postgres.
        report: called with a sentence about what takes long.
    """

    size: Size
    scratch: Path
    server: EmbeddedServer
    report: Callable[[str], None]
    _databases: dict[DatabaseSpec, str] = field(default_factory=dict)
    _made: int = 0

    def letta(self, spec: DatabaseSpec) -> str:
        """Return the URL of a generated database, which the first call creates."""
        if spec not in self._databases:
            name = f"letta_{len(self._databases)}_{hashlib.sha256(repr(spec).encode()).hexdigest()[:8]}"
            self.report(f"Generating a Letta database: {_describe(spec)} …")
            self.server.ensure_database(name)
            done = generate(self.server.url(name), spec)
            self.report(
                f"… {done.rows['runs']:,} runs, {done.rows['steps']:,} steps, {done.rows['messages']:,} messages"
                f" in {done.seconds:.0f} s."
            )
            self._databases[spec] = name
        return self.server.url(self._databases[spec])

    def drop(self, spec: DatabaseSpec) -> None:
        """Drop a generated database to free its disk space."""
        drop_database(self.server, self._databases.pop(spec))

    @contextlib.contextmanager
    def sinks(self) -> Iterator[Sinks]:
        """Create empty sinks; they are deleted after the block."""
        self._made += 1
        name = f"sinks_{self._made}"
        self.server.ensure_database(name)
        folder = self.scratch / name
        try:
            migrate(self.server.url(name))
            yield Sinks(self.server.url(name), folder)
        finally:
            drop_database(self.server, name)
            shutil.rmtree(folder, ignore_errors=True)

    def psql(self, url: str, *commands: str) -> str:
        r"""Run commands, ``\copy`` among them, in one session of psql and return what it printed.

        Raises:
            RuntimeError: one of them failed.
        """
        program = installed_binaries().program("psql")
        arguments = [argument for command in commands for argument in ("-c", command)]
        done = subprocess.run(
            [str(program), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", url, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"psql failed: {done.stderr.strip()}")
        return done.stdout

    @contextlib.contextmanager
    def timed(self, wall: list[float], processor: list[float]) -> Iterator[None]:
        """Append the seconds that the block takes by the clock, and by the processors of all that take part.

        Processor time is that of this process, of those it waits for, and of the server: on a busy machine it says
        more than the clock.
        """
        before = self._processor_seconds()
        with timed(wall):
            yield
        processor.append(self._processor_seconds() - before)

    def _processor_seconds(self) -> float:
        spent = psutil.Process().cpu_times()
        own = spent.user + spent.system + spent.children_user + spent.children_system
        return own + self.server_processor_seconds()

    def server_processor_seconds(self) -> float:
        """Return the CPU seconds of the server's processes so far, ended ones included."""
        with psycopg.connect(self.server.url("postgres")) as connection:
            backend = psutil.Process(connection.info.backend_pid)
            postmaster = backend.parent()
            if postmaster is None:
                raise RuntimeError("the server has ended")
            spent = postmaster.cpu_times()
            total = spent.user + spent.system + spent.children_user + spent.children_system
            for process in postmaster.children():
                # One that ends meanwhile is in the postmaster's sum the next time.
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent = process.cpu_times()
                    total += spent.user + spent.system
        return total

    def settle(self) -> None:
        """Write out what is waiting to be written, so that one measurement does not pay for the one before."""
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            connection.execute("CHECKPOINT")


@contextlib.contextmanager
def open_bench(size: Size, scratch: Path, report: Callable[[str], None]) -> Iterator[Bench]:
    """Start a server in a folder; both are deleted after the block."""
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        with embedded_postgres.start(scratch / "postgres", settings=SERVER_SETTINGS, report=report) as server:
            yield Bench(size, scratch, server, report)
    finally:
        embedded_postgres.remove(scratch / "postgres")


def capture(
    letta_url: str, database_url: str, folder: str, hours: int = 1, *, verified: bool = False
) -> dict[str, Any]:
    """Materialize ``terminal_runs`` and ``trajectories`` of the first hours, without Dagster; return what was done.

    Args:
        letta_url: of the source.
        database_url: of the trajectory database.
        folder: of the Parquet files.
        hours: how many.
        verified: count both sides of each partition afterwards, as the asset's check does.
    """
    counts: dict[str, Any] = {}
    keys = [FIRST_HOUR + number * HOUR for number in range(hours)]
    with LettaSource(letta_url).pooled_for(keys) as source, Storage.at(folder, database_url).pooled() as storage:
        # All of one stage, then all of the next, as a Dagster run does it.
        captured = [materialize_terminal_runs(hour, source, storage) for hour in keys]
        together = RangeConversion(keys, storage.parquet)
        for hour, raw in zip(keys, captured, strict=True):
            done = materialize_trajectories(hour, storage, together=together)
            if verified:
                reconcile_partition(hour, storage)
            for name, value in (
                ("runs", raw.counts.runs),
                ("messages", raw.counts.messages),
                ("trajectories", done.row_balance.trajectories),
                ("quarantined", done.row_balance.quarantined),
                ("inserted", done.merge_stats.inserted if done.merge_stats else 0),
                ("updated", done.merge_stats.updated if done.merge_stats else 0),
                ("unchanged", done.merge_stats.unchanged if done.merge_stats else 0),
            ):
                counts[name] = counts.get(name, 0) + value
    return counts


def one_partition(runs: int) -> DatabaseSpec:
    """Return the usual database: all runs in one hour."""
    return DatabaseSpec(runs, first_hour=FIRST_HOUR)


def capture_in_child(letta_url: str, sinks: Sinks, hours: int = 1, *, verified: bool = False) -> Child:
    """Do what ``capture`` does in a process of its own."""
    return in_child(
        "benchmarks.bench:capture",
        letta_url=letta_url,
        database_url=sinks.database_url,
        folder=str(sinks.folder),
        hours=hours,
        verified=verified,
    )


def _describe(spec: DatabaseSpec) -> str:
    parts = [f"{spec.runs:,} runs", f"{spec.hours:,} partitions" if spec.hours > 1 else "one partition"]
    if spec.giant_messages:
        parts.append(f"one more run of {spec.giant_messages:,} messages")
    if spec.other_messages:
        parts.append(f"{spec.other_messages:,} messages of other runs")
    return ", ".join(parts)
