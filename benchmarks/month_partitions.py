"""Whether `trajectories` should be partitioned by month: the same work on one table, and on one that is partitioned.

    python -m benchmarks.month_partitions --rows 2000000 --rows 10000000 --scratch /large/disk

Times are the server's processor time. Rows are in the order of time, as they are captured, over a year of hours.
Documents are left out, so that many rows fit: with them, each row takes about 12 kB more in TOAST, which a deletion
must mark and vacuum must clean as well.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import psutil
import psycopg

from benchmarks.many_rows import AGENTS, ORGANIZATIONS, table_columns, without_indexes
from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.storage.postgres.copy_writer import STAGED
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.partition_writer import merge_statement
from trajectory_pipeline.storage.storage import Storage

FIRST = datetime(2025, 1, 1, tzinfo=UTC)
HOURS = 365 * 24
MONTHS = [FIRST.replace(month=month) for month in range(1, 13)]
MERGES = 15
READS = 60
_AT_ONCE = 500_000
_SAMPLE_HOURS = 20
# As a server of 8 GB has it; the rest is the checkpoints' pace.
SERVER = {"shared_buffers": "2GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min", "maintenance_work_mem": "1GB"}
_KEY = "to_char(ended AT TIME ZONE 'UTC', 'YYYY-MM-DD-HH24:00')"


@dataclass
class Work:
    """One layout of the table, filled; ``lines`` are figures by what was measured."""

    connection: psycopg.Connection
    rows: int
    is_partitioned: bool
    lines: dict[str, float]

    @property
    def rows_an_hour(self) -> int:
        """Rows of one partition of the pipeline."""
        return self.rows // HOURS

    def processor_seconds(self) -> float:
        """Return what the server's process for this connection has used so far: other work does not distort it."""
        times = psutil.Process(self.connection.info.backend_pid).cpu_times()
        return float(times.user + times.system)

    def timed(self, what: str, work: Callable[[int], object]) -> None:
        """Add the server's processor time of one of many tries, in milliseconds."""
        start = self.processor_seconds()
        for number in range(READS):
            work(number)
        self.lines[f"{what}, ms"] = (self.processor_seconds() - start) * 1000 / READS


@click.command()
@click.option("--rows", "sizes", multiple=True, type=int, required=True, help="Of the table; may be repeated.")
@click.option("--scratch", type=click.Path(path_type=Path, file_okay=False), help="Folder for the server.")
def main(sizes: tuple[int, ...], scratch: Path | None) -> None:
    """Measure both layouts at each size."""
    folder = Path(tempfile.mkdtemp(prefix="months-", dir=scratch))
    try:
        with embedded_postgres.start(folder / "server", settings=SERVER) as server:
            base(server, folder)
            for rows in sizes:
                found = [measure(server, rows, is_partitioned) for is_partitioned in (False, True)]
                click.echo(f"\n{rows:,} rows {'one table':>42} {'12 partitions':>15}")
                for what in dict.fromkeys([*found[0], *found[1]]):
                    figures = "".join(f"{each.get(what, float('nan')):>16,.2f}" for each in found)
                    click.echo(f"{what:<42}{figures}")
        embedded_postgres.remove(folder / "server")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def base(server: EmbeddedServer, folder: Path) -> None:
    """Capture the demonstration's runs, whose rows are multiplied."""
    for name in ("story", "base"):
        server.ensure_database(name)
    STORY.load(server.url("story"))
    migrate(server.url("base"))
    storage = Storage.at(str(folder / "parquet"), server.url("base"))
    for hour in list(STORY.partitions())[:_SAMPLE_HOURS]:
        materialize_terminal_runs(hour, LettaSource(server.url("story")), storage)
        materialize_trajectories(hour, storage)


def measure(server: EmbeddedServer, rows: int, is_partitioned: bool) -> dict[str, float]:
    """Fill one layout, measure the work on it, and drop it."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE work TEMPLATE base")
    try:
        with psycopg.connect(server.url("work"), autocommit=True) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            work = Work(connection, rows, is_partitioned, {})
            fill(work)
            measure_writing(work)
            measure_reading(work)
            measure_retention(work)
            return work.lines
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE work WITH (FORCE)")


def fill(work: Work) -> None:
    """Make the table in its layout with so many rows and all indexes, in the order of time."""
    connection = work.connection
    connection.execute("CREATE TABLE trajectory.samples AS SELECT * FROM trajectory.trajectories")
    connection.execute("ALTER TABLE trajectory.samples ADD COLUMN sample bigint GENERATED ALWAYS AS IDENTITY")
    names = table_columns(connection, "trajectories")
    connection.execute("TRUNCATE trajectory.trajectories CASCADE")
    if work.is_partitioned:
        partition(connection)
    apart = 365 * 86_400 / work.rows
    made = {
        **made_values("n"),
        "end_time": "ended",
        "start_time": "ended - interval '30 seconds'",
        "partition_key": _KEY,
    }
    start = work.processor_seconds()
    with without_indexes(connection, "trajectories"):
        for first in range(0, work.rows, _AT_ONCE):
            connection.execute(
                f"INSERT INTO trajectory.trajectories ({', '.join(names)})"
                f" SELECT {', '.join(made.get(name, name) for name in names)}"
                f" FROM generate_series({first}, {min(first + _AT_ONCE, work.rows) - 1}) n"
                f" CROSS JOIN LATERAL (SELECT timestamptz '{FIRST}' + n * {apart} * interval '1 second' AS ended) e"
                " JOIN trajectory.samples ON sample = 1 + n % (SELECT count(*) FROM trajectory.samples)".encode()
            )
    connection.execute("VACUUM (ANALYZE) trajectory.trajectories")
    connection.execute("CHECKPOINT")
    work.lines["filling, s"] = work.processor_seconds() - start
    work.lines["size with indexes, GB"] = size(connection) / 1e9


def made_values(number: str) -> dict[str, str]:
    """Return SQL of what tells rows apart."""
    return {
        "run_id": f"'run-' || md5('run' || {number})::uuid",
        "trajectory_id": f"md5('trajectory' || {number})::uuid::text",
        "agent_id": f"'agent-' || md5('agent' || {number} % {AGENTS})::uuid",
        "organization_id": f"'org-' || {number} % {ORGANIZATIONS}",
        "continues_run_id": "NULL",
        "data": "NULL",
        "data_omitted_reason": "'left out'",
    }


def partition(connection: psycopg.Connection) -> None:
    """Put a table that is partitioned by the month of the partition key in the place of the plain one.

    A unique key must hold what a table is partitioned by: of a run alone, it cannot be had.
    """
    indexes = [
        str(row[0])
        for row in connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'trajectory' AND tablename = 'trajectories'"
            " AND indexdef NOT LIKE 'CREATE UNIQUE%'"
        )
    ]
    connection.execute(
        "CREATE TABLE trajectory.months (LIKE trajectory.trajectories INCLUDING DEFAULTS INCLUDING GENERATED)"
        " PARTITION BY RANGE (partition_key)"
    )
    connection.execute("DROP TABLE trajectory.trajectories CASCADE")
    connection.execute("ALTER TABLE trajectory.months RENAME TO trajectories")
    connection.execute("ALTER TABLE trajectory.trajectories ADD PRIMARY KEY (run_id, partition_key)")
    for start, end in zip(MONTHS, [*MONTHS[1:], FIRST.replace(year=FIRST.year + 1)], strict=True):
        connection.execute(
            f"CREATE TABLE trajectory.trajectories_{start:%Y_%m} PARTITION OF trajectory.trajectories"
            f" FOR VALUES FROM ('{start:%Y-%m}') TO ('{end:%Y-%m}')".encode()
        )
    for definition in indexes:
        connection.execute(definition.encode())


def size(connection: psycopg.Connection) -> int:
    """Return the bytes of the table, with indexes and all of its partitions."""
    row = connection.execute(
        "SELECT coalesce(sum(pg_total_relation_size(relid)), pg_total_relation_size('trajectory.trajectories'))::bigint"
        " FROM pg_partition_tree('trajectory.trajectories')"
    ).fetchone()
    return int(row[0]) if row else 0


def some_keys(number: int) -> list[str]:
    """Return so many partition keys of the year, at random but always the same."""
    hours = random.Random(7).sample(range(31 * 24, HOURS), number)
    return [f"{FIRST + timedelta(hours=hour):%Y-%m-%d-%H:00}" for hour in sorted(hours)]


def measure_writing(work: Work) -> None:
    """Write a partition again of which one row in ten has changed, and another one that is new."""
    merge = merge_statement("run_id, partition_key" if work.is_partitioned else "run_id")
    if work.is_partitioned:
        # Of a partitioned table, ON CONFLICT does not tell whether a row was inserted or updated.
        merge = merge.replace(b"(xmax = 0)", b"true")
    names = ", ".join(column.name for column in STAGED)

    def staged(key: str, change: str) -> None:
        connection = work.connection
        connection.execute(
            f"CREATE TEMP TABLE staged AS SELECT {names} FROM trajectory.trajectories WHERE partition_key = %s", [key]
        )
        connection.execute(change.encode())
        connection.execute("ALTER TABLE staged ADD PRIMARY KEY (run_id)")
        connection.execute("ANALYZE staged")

    def time_merges(what: str, change: str, keys: list[str]) -> None:
        took, written = 0.0, 0
        for number, key in enumerate(keys):
            staged(key, change.replace("$n", str(number)))
            before, start = wal(work.connection), work.processor_seconds()
            work.connection.execute(merge, [key])
            took += work.processor_seconds() - start
            written += wal(work.connection) - before
            work.connection.execute("DROP TABLE staged")
        work.lines[f"{what}, ms"] = took * 1000 / len(keys)
        work.lines[f"{what}, WAL kB"] = written / 1000 / len(keys)

    keys = some_keys(2 * MERGES)
    time_merges(
        f"hour of {work.rows_an_hour:,} rows, a tenth changed",
        "UPDATE staged SET tags = ARRAY['changed'] WHERE hashtext(run_id) % 10 = 0",
        keys[:MERGES],
    )
    renamed = (
        "UPDATE staged SET run_id = 'run-' || md5(run_id || '$n')::uuid, trajectory_id = md5(run_id || '$n')::uuid"
    )
    time_merges(f"hour of {work.rows_an_hour:,} rows, all new", renamed, keys[MERGES:])


def wal(connection: psycopg.Connection) -> int:
    """Return how many bytes of WAL the server has written so far."""
    row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchone()
    return int(row[0]) if row else 0


def measure_reading(work: Work) -> None:
    """Read as the pipeline and the service do."""
    numbers = random.Random(8).sample(range(work.rows), 20 * READS)
    keys = some_keys(READS)
    connection = work.connection

    def by_run_id(number: int) -> None:
        for each in numbers[number * 20 : number * 20 + 20]:
            connection.execute(
                "SELECT * FROM trajectory.trajectories WHERE run_id = 'run-' || md5('run' || %s::bigint)::uuid", [each]
            )

    work.timed("20 runs, one by one by their ids", by_run_id)
    work.timed(
        "a partition's checksum",
        lambda number: connection.execute(
            "SELECT count(*), sum(hashtextextended(run_id || ':' || xmin::text, 0)::numeric)"
            " FROM trajectory.trajectories WHERE partition_key = %s",
            [keys[number]],
        ),
    )
    page = "SELECT * FROM trajectory.trajectories WHERE {} end_time < %s ORDER BY end_time DESC LIMIT 100"
    times = [datetime.strptime(key, "%Y-%m-%d-%H:00").replace(tzinfo=UTC) for key in keys]
    for what, condition in (
        ("100 runs before a time", ""),
        ("100 of an organization before a time", "organization_id = 'org-7' AND"),
        ("100 of an agent before a time", "agent_id = 'agent-' || md5('agent' || 77)::uuid AND"),
    ):
        statement = page.format(condition).encode()
        work.timed(what, lambda number, statement=statement: connection.execute(statement, [times[number]]))  # type: ignore[misc]
    work.timed(
        "runs of a day by outcome",
        lambda number: connection.execute(
            "SELECT heuristic_outcome, count(*) FROM trajectory.trajectories"
            " WHERE end_time >= %s AND end_time < %s + interval '1 day' GROUP BY 1",
            [times[number], times[number]],
        ),
    )


def measure_retention(work: Work) -> None:
    """Remove January: hour by hour and then vacuum, as retention does, or by dropping its partition."""
    connection = work.connection
    with logged(work, "removing a month"):
        if work.is_partitioned:
            connection.execute(f"DROP TABLE trajectory.trajectories_{FIRST:%Y_%m}".encode())
        else:
            for hour in range(31 * 24):
                connection.execute(
                    "DELETE FROM trajectory.trajectories WHERE partition_key = %s",
                    [f"{FIRST + timedelta(hours=hour):%Y-%m-%d-%H:00}"],
                )
    if not work.is_partitioned:
        with logged(work, "vacuum after it"):
            connection.execute("VACUUM trajectory.trajectories")
    work.lines["size after it, GB"] = size(connection) / 1e9


@contextmanager
def logged(work: Work, what: str) -> Iterator[None]:
    """Add the time and the WAL of what is inside."""
    before, start = wal(work.connection), work.processor_seconds()
    yield
    work.lines[f"{what}, s"] = work.processor_seconds() - start
    work.lines[f"{what}, WAL GB"] = (wal(work.connection) - before) / 1e9


if __name__ == "__main__":
    main()
