"""Point 15: the service over HTTP, with 20 clients at once: gets, lists, search and contrast, by tokens of both kinds.

Service, clients and database share the machine. Two kinds of load. In a closed loop, each client asks again as soon as
it has its answer: that shows how many answers a second there can be. The time of an answer then follows from the number
of clients alone: for 20 clients to have theirs within 10 ms, 2,000 a second would have to be answered. So times are
measured in an open loop: the same clients ask at random times, together a third of what could be answered, and a
request counts from when it was due.

A database of this size takes long to fill. To keep it, and measure again:
.venv/bin/python -m benchmarks.serving --server FOLDER --rows 1000000
"""

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import click
import psutil
import psycopg
from rich.console import Console

from benchmarks.bench import SERVER_SETTINGS, Bench
from benchmarks.large_report import judge_story
from benchmarks.many_rows import multiply, multiply_search, multiply_verdicts
from benchmarks.measuring import Child, Result, in_child, machine, print_result
from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.search.embedding_models.wordllama import load_wordllama, wordllama_model
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.meaning_index import ensure_meaning_indexes
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.service_tokens import create_token

_CLIENTS = 20
_SECONDS = 10.0
_LOADS = 3
"""Times are measured at one of so many parts of what could be answered."""
_PORT = 18_321
_DATABASE = "many"
_QUERIES = (
    "refund refused", "a parcel that arrived damaged", "change the delivery address", "order lost in transit",
    "cancel a subscription", "why was my card charged twice", "the discount code does not work",
    "agent gave up after an error of a tool", "approval denied by a person", "look up an invoice",
)  # fmt: skip


def fill(server: EmbeddedServer, folder: Path, rows: int, report: Callable[[str], None]) -> str:
    """Make a database of so many judged trajectories with search texts and embeddings; returns its URL."""
    server.ensure_database(_DATABASE)
    url = server.url(_DATABASE)
    migrate(url)
    report("Judging the demonstration's runs …")
    judge_story(server, url, folder)
    with psycopg.connect(url, autocommit=True) as connection:
        report(f"Multiplying trajectories and verdicts to {rows:,} …")
        given = multiply(connection, rows, own_texts=True)
        multiply_verdicts(connection, rows)
        report("… and search texts and embeddings …")
        multiply_search(connection, given, rows, load_wordllama().embed, wordllama_model().model_id)
        report("… and the index of these.")
        connection.execute(f"ALTER DATABASE {_DATABASE} SET maintenance_work_mem = '1GB'".encode())
        ensure_meaning_indexes(TrajectoryDatabase(url))
        connection.execute(f"ALTER DATABASE {_DATABASE} RESET maintenance_work_mem".encode())
        connection.execute("CHECKPOINT")
    return url


def measure(bench: Bench) -> Result:
    """Measure point 15."""
    url = fill(bench.server, bench.scratch / "serving", bench.size.reading, bench.report)
    return measure_database(url, bench.scratch)


def measure_database(url: str, folder: Path, only: Sequence[str] = (), workers: int = 2) -> Result:
    """Measure the service of a database that ``fill`` made."""
    database = TrajectoryDatabase(url)
    rng = random.Random(15)
    with psycopg.connect(url) as connection:
        ids = [
            str(row[0])
            for row in connection.execute(
                "SELECT run_id FROM trajectory.trajectories TABLESAMPLE SYSTEM (1) REPEATABLE (1)"
            )
        ]
        found = connection.execute(
            "SELECT DISTINCT agent_id FROM trajectory.trajectories WHERE run_id = ANY(%s)", [ids]
        )
        agents = sorted(str(row[0]) for row in found)
        (rows,) = connection.execute("SELECT count(*) FROM trajectory.search_texts").fetchone() or (0,)
        own = [
            str(row[0])
            for row in connection.execute("SELECT run_id FROM trajectory.trajectories WHERE agent_id = %s", [agents[0]])
        ]
    tokens = {
        "all runs": create_token(database, "all", {TokenScope.READ}, None, timedelta(days=1)),
        "one agent": create_token(
            database, "agent", {TokenScope.READ}, Tenants(frozenset(), frozenset({agents[0]})), timedelta(days=1)
        ),
        "one organization": create_token(
            database, "organization", {TokenScope.READ}, Tenants(frozenset({"org-3"}), frozenset()), timedelta(days=1)
        ),
    }
    result = Result("15", f"The service, {rows:,} trajectories, {_CLIENTS} clients, {workers} processes")

    def queries(kind: str, filters: Callable[[], str] = str) -> list[str]:
        return [f"/v1/{kind}?q={quote(rng.choice(_QUERIES))}{filters()}" for _ in range(500)]

    def of_agent() -> str:
        return f"&agent_id={rng.choice(agents)}"

    def of_months() -> str:
        month = rng.randrange(1, 12)
        chosen = "".join(f"&agent_id={one}" for one in rng.sample(agents, 5))
        return f"{chosen}&completed_from=2025-{month:02}-01T00:00:00Z&completed_to=2025-{month + 1:02}-01T00:00:00Z"

    def of_failures() -> str:
        return "&organization_id=org-3&outcome=failure"

    asked: list[tuple[str, str, Sequence[str], float | None]] = [
        ("get by id", "all runs", [f"/v1/trajectories/{one}" for one in ids], 10),
        ("get by id", "one agent", [f"/v1/trajectories/{one}" for one in own], 10),
        ("newest 50", "all runs", ["/v1/trajectories?limit=50"], None),
        ("newest 50", "one agent", ["/v1/trajectories?limit=50"], None),
        ("search, one agent", "all runs", queries("search", of_agent), 100),
        ("search, five agents, a month", "all runs", queries("search", of_months), 100),
        ("search, its runs", "one agent", queries("search"), 100),
        ("search, an organization", "all runs", queries("search", lambda: "&organization_id=org-3"), 100),
        ("search, its runs", "one organization", queries("search"), 100),
        ("search, failures of an organization", "all runs", queries("search", of_failures), 100),
        ("search, its failures", "one organization", queries("search", lambda: "&outcome=failure"), 100),
        ("search, no filter", "all runs", queries("search"), None),
        ("contrast, one agent", "all runs", queries("contrast", of_agent), 150),
        ("contrast, its runs", "one agent", queries("contrast"), 150),
        ("contrast, an organization", "all runs", queries("contrast", lambda: "&organization_id=org-3"), 150),
        ("contrast, its runs", "one organization", queries("contrast"), 150),
        ("contrast, no filter", "all runs", queries("contrast"), None),
    ]
    with _service(url, folder, workers) as process, psycopg.connect(url) as connection:
        server = psutil.Process(connection.info.backend_pid).parent()
        assert server is not None  # noqa: S101 - the postmaster
        for what, token, paths, limit in asked:
            if only and not any(one in what for one in only):
                continue
            name = f"{what} (token: {token})"
            paths_file = folder / "paths"
            paths_file.write_text("\n".join(paths), encoding="ascii")
            interval = 0.0
            for _ in range(2):
                _load(tokens[token], paths_file, _SECONDS / 5, interval)
                before = _processor_seconds(process), _processor_seconds(server)
                child = _load(tokens[token], paths_file, _SECONDS, interval)
                taken, seconds = child.value["milliseconds"], child.value["seconds"]
                spent = [
                    1_000 * one / len(taken)
                    for one in (
                        _processor_seconds(process) - before[0],
                        _processor_seconds(server) - before[1],
                        child.processor_seconds,
                    )
                ]
                note = "processor for each: service {:.1f} ms, database {:.1f} ms, clients {:.1f} ms".format(*spent)
                p95 = statistics.quantiles(taken, n=20)[-1]
                median = statistics.median(taken)
                if child.value["failed"]:
                    note += f"; {child.value['failed']} of {len(taken)} answers were errors"
                if interval:
                    note = f"median {median:.1f} ms; {note}"
                    rate = f"{_CLIENTS / interval:.0f} a second"
                    result.add(f"{name}: p95 at {rate}", p95, "ms", at_most=limit, note=note)
                else:
                    interval = _LOADS * _CLIENTS * seconds / len(taken)
                    least = 500 if what == "get by id" else None
                    note = f"p95 {p95:.0f} ms, median {median:.0f} ms; {note}"
                    result.add(f"{name}: answers a second", len(taken) / seconds, "a second", at_least=least, note=note)
        result.add("memory of the service's processes", _megabytes(process), "MB", at_most=300, note="PSS")
    return result


def _load(token: str, paths_file: Path, seconds: float, interval: float) -> Child:
    return in_child(
        "benchmarks.load_client:load",
        port=_PORT,
        token=token,
        paths_file=str(paths_file),
        clients=_CLIENTS,
        seconds=seconds,
        interval=interval,
        seed=15,
    )


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _processor_seconds(process: psutil.Process) -> float:
    """Return what a process and its children have used so far, ended ones included."""
    total = 0.0
    for one in _family(process):
        # One that ends meanwhile is in its parent's sum the next time.
        with contextlib.suppress(psutil.NoSuchProcess):
            spent = one.cpu_times()
            total += spent.user + spent.system
            if one == process:
                total += spent.children_user + spent.children_system
    return total


def _megabytes(process: psutil.Process) -> float:
    """Return the memory of all processes of the service; what they share counts once."""
    return sum(one.memory_full_info().pss for one in _family(process)) / 1e6


@contextlib.contextmanager
def _service(url: str, folder: Path, workers: int) -> Iterator[psutil.Process]:
    """Run ``serve`` in processes of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "LETTA_PG_URI": url,
        "TRAJECTORY_DATABASE_URL": url,
        "DAGSTER_PG_URL": url,
        "TRAJECTORY_STORAGE_URI": str(folder / "files"),
        "TRAJECTORY_EMBEDDING_MODEL": "wordllama",
    }
    command = [sys.executable, "-m", "trajectory_pipeline.cli.main", "serve", "--port", str(_PORT)]
    if workers > 1:
        command += ["--workers", str(workers)]
    with (folder / "serve.log").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait_until_ready(process)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with exit code {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{_PORT}/health", timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError("the service did not answer within a minute")


@click.command()
@click.option("--server", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder, kept.")
@click.option("--rows", default=1_000_000, show_default=True, help="Trajectories, if the database is not there yet.")
@click.option("--workers", default=2, show_default=True, help="Processes of the service.")
@click.option("--only", multiple=True, help="Measure what has this in its name.")
@click.option("--fill-only", is_flag=True, help="Fill the database, and measure nothing.")
def main(server: Path, rows: int, workers: int, only: tuple[str, ...], *, fill_only: bool) -> None:
    """Measure the service of a database that stays in a folder; the first call fills it."""
    console = Console(width=200)
    where = machine()
    console.print(
        f"{where['processor']}, {where['cores']} cores, {where['memory_gb']} GB, load {where['load_average']}"
    )
    with embedded_postgres.start(server / "postgres", settings=SERVER_SETTINGS, report=console.print) as running:
        with psycopg.connect(running.url("postgres")) as connection:
            there = connection.execute("SELECT FROM pg_database WHERE datname = %s", [_DATABASE]).rowcount
        url = running.url(_DATABASE) if there else fill(running, server / "files", rows, console.print)
        if not fill_only:
            print_result(console, measure_database(url, server, only, workers))


if __name__ == "__main__":
    main()
