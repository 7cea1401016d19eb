"""The demonstration: everything on one machine, with real rows and a simulated judge.

Belongs here: the order of things, and what is printed. Does not belong here: any of the things.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trajectory_pipeline.cli.console import err, out, step
from trajectory_pipeline.cli.dagster_processes import (
    DEFAULT_PORT,
    HOST,
    dagster_home,
    free_port,
    prepare_storage,
    skip_welcome,
    start_daemon,
    start_webserver,
    wait_for_daemon,
    wait_until_ready,
)
from trajectory_pipeline.cli.run_materialization import ASSETS, MaterializationSummary, materialize
from trajectory_pipeline.cli.subprocesses import SupervisedProcess, stop_all
from trajectory_pipeline.databases import Databases, resolve_databases
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.settings import Settings, load_settings
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.urls import describe_postgres

DEMO_FOLDER = Path("data") / "demo"
"""Apart from the folder that real use takes, so that a demonstration never mixes with real data."""


@dataclass(frozen=True)
class Summary:
    """What the sinks hold of the sample, counted from the sinks.

    Attributes:
        runs_in: terminal runs of the sample.
        in_postgres: of these, those with a row in ``trajectory.trajectories``.
        in_parquet: of these, those in the Parquet files.
        quarantined: of these, those in quarantine.
        verdicts: trajectories by verdict status; ``none`` where there is no verdict.
        cost_usd: of all calls to the judge.
        judges: that answered.
    """

    runs_in: int
    in_postgres: int
    in_parquet: int
    quarantined: int
    verdicts: dict[str, int]
    cost_usd: Decimal
    judges: list[str]

    @property
    def complete(self) -> bool:
        """Whether every terminal run is in both sinks, with a verdict or a stated reason for none."""
        return self.runs_in == self.in_postgres == self.in_parquet and "none" not in self.verdicts


def run_demo(*, stay: bool, port: int = DEFAULT_PORT) -> bool:
    """Run the demonstration; returns whether every run of the sample is in both sinks with a verdict or a reason.

    Args:
        stay: until Ctrl-C.
        port: of the Dagster UI, if it is free.

    Raises:
        PipelineError: something could not be started or done; the text says what to do.
    """
    began = time.monotonic()
    with _signals(), ExitStack() as stack:
        from trajectory_pipeline.demo.letta_sample.load import load_sample, sample_partitions, sample_window

        first, _ = sample_window()
        os.environ.setdefault("TRAJECTORY_DATA_FOLDER", str(DEMO_FOLDER))
        # From the sample's first day on: a bar of a few days can be read, one of two years cannot.
        os.environ.setdefault("TRAJECTORY_START", first.replace(hour=0).isoformat())
        os.environ.setdefault("ENABLE_TRAJECTORY_CAPTURE", "true")
        settings = load_settings()
        with step("Databases") as tell:
            endpoints = resolve_databases(settings, tell)
            stack.callback(endpoints.release)
            os.environ.update(endpoints.environment())
            migrate(endpoints.database_url)
            counts = load_sample(endpoints.letta_url, create_database=True, report=tell)
        _judge(stack, settings)
        settings = load_settings()
        database, store = TrajectoryDatabase(endpoints.database_url), ParquetStore(settings.storage.parquet_location)
        with step("Dagster's storage"):
            prepare_storage(dagster_home(settings.storage.data_folder), os.environ["DAGSTER_PG_URL"])
        port = free_port(port)
        log = settings.storage.data_folder.absolute() / "dagster.log"
        webserver = start_webserver(os.environ, port, log)
        processes = stack.enter_context(_stopping([webserver]))
        # The daemon, and with it the sensors, comes afterwards: they would ask for the same partitions.
        result = _materialize(list(sample_partitions()), database)
        with step(f"Dagster UI at http://{HOST}:{port}, with schedule and sensors on") as tell:
            processes.append(start_daemon(os.environ, log))
            wait_until_ready(webserver, port, log, lambda seconds: tell(f"starting, {seconds:.0f} s"))
            skip_welcome(port)
            wait_for_daemon(port, lambda seconds: tell(f"starting the daemon, {seconds:.0f} s"))
        summary = summarize(endpoints, store, counts.terminal_runs)
        _print(summary, result, endpoints, settings, time.monotonic() - began)
        out.print(f"\n  Dagster UI   http://{HOST}:{port}/locations/trajectory_pipeline/asset-groups/trajectories")
        if stay:
            out.print("\nCtrl-C ends all of it; `make demo` starts it again where it was.")
            _stay(processes, log)
    return summary.complete and not result.failures


def _judge(stack: ExitStack, settings: Settings) -> None:
    """Use the judge that the settings name; without one, start the simulated one."""
    if settings.judge.disabled_reason is None:
        err.print(f"Judge: {settings.judge.model}, as the settings say", markup=False)
        return
    from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, SimulatedJudge

    with step("Simulated judge (rules, not a model: its verdicts and prices are made up)"):
        judge = stack.enter_context(SimulatedJudge.start())
    os.environ["OPENAI_BASE_URL"] = judge.base_url
    os.environ["TRAJECTORY_JUDGE_MODEL"] = JUDGE_MODEL


def _materialize(hours: list[datetime], database: TrajectoryDatabase) -> MaterializationSummary:
    with bar() as progress:
        task = progress.add_task("Materialising", total=len(hours) * len(ASSETS))
        return materialize(
            hours,
            ASSETS,
            database,
            lambda done, words: progress.update(task, completed=done, description=f"Materialising {words}"),
        )


def bar() -> Progress:
    """Return a progress bar over (asset, partition) pairs."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
    )


def summarize(endpoints: Databases, store: ParquetStore, runs_in: int) -> Summary:
    """Count what the sinks hold of the sample.

    Raises:
        SinkError: a sink cannot be read.
    """
    from trajectory_pipeline.demo.letta_sample.load import sample_partitions, sample_terminal_run_ids
    from trajectory_pipeline.schema.trajectories import TRAJECTORIES

    database = TrajectoryDatabase(endpoints.database_url)
    ids = sorted(sample_terminal_run_ids())
    in_parquet: set[str] = set()
    for hour in sample_partitions():
        for batch in store.read(TRAJECTORIES, hour, ["run_id"]):
            in_parquet.update(map(str, batch.column("run_id").to_pylist()))
    of_sample = "run_id = ANY(%s)"
    verdicts = database.rows(
        "SELECT coalesce(verdict_status, 'none') AS status, count(*) AS number FROM trajectory.outcomes"
        f" WHERE {of_sample} GROUP BY 1 ORDER BY 2 DESC, 1",
        [ids],
    )
    spent = database.rows(
        "SELECT coalesce(sum(cost_usd), 0) AS cost, array_remove(array_agg(DISTINCT response_model), NULL) AS judges"
        f" FROM trajectory.verdict_attempts WHERE {of_sample}",
        [ids],
    )[0]
    return Summary(
        runs_in=runs_in,
        in_postgres=_count(database, "trajectories", ids),
        in_parquet=len(in_parquet & set(ids)),
        quarantined=_count(database, "quarantine", ids),
        verdicts={row["status"]: row["number"] for row in verdicts},
        cost_usd=spent["cost"],
        judges=spent["judges"] or [],
    )


def _count(database: TrajectoryDatabase, table: str, ids: list[str]) -> int:
    rows = database.rows(f"SELECT count(*) AS number FROM trajectory.{table} WHERE run_id = ANY(%s)", [ids])
    return int(rows[0]["number"])


def _print(
    summary: Summary, result: MaterializationSummary, endpoints: Databases, settings: Settings, seconds: float
) -> None:
    table = Table(title=f"{result.partitions} partitions in {seconds:.0f} s", title_justify="left")
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_row("terminal runs in", str(summary.runs_in))
    table.add_row("trajectories out, Postgres", str(summary.in_postgres))
    table.add_row("trajectories out, Parquet", str(summary.in_parquet))
    table.add_row("quarantined", str(summary.quarantined))
    for status, number in summary.verdicts.items():
        table.add_row(f"verdicts: {status}", str(number))
    simulated = all(judge.startswith("simulated-judge") for judge in summary.judges)
    words = "cost of the judge, USD (simulated prices)" if simulated else "cost of the judge, USD"
    table.add_row(words, f"{summary.cost_usd:.4f}")
    out.print(table)
    for run_id, why in result.failures.items():
        err.print(f"Dagster run {run_id} failed: {why}", markup=False, style="red")
    out.print(f"\n  Postgres     {describe_postgres(endpoints.database_url)}, schema trajectory", markup=False)
    out.print(f"  Parquet      {settings.storage.parquet_location}", markup=False)
    out.print(f"  Judge        {', '.join(summary.judges) or 'none'}", markup=False)


def _stay(processes: Sequence[SupervisedProcess], log: Path) -> None:
    try:
        while all(process.exit_code is None for process in processes):
            time.sleep(1)
    except KeyboardInterrupt:
        return
    raise PipelineError(f"A process of Dagster ended by itself; see {log}.")


@contextmanager
def _stopping(processes: list[SupervisedProcess]) -> Iterator[list[SupervisedProcess]]:
    try:
        yield processes
    finally:
        # A second Ctrl-C would leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with step("Stopping Dagster"):
            stop_all(processes)


@contextmanager
def _signals() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM end us in order, also where a shell without job control had them ignored."""

    def end(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    former = {name: signal.signal(name, end) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in former.items():
            signal.signal(name, handler)
