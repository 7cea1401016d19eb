"""Point 15: the service over HTTP, with 20 clients at once: gets, lists and words by a token for all runs and for one.

Service, clients and database share the machine. A get is one trajectory with its document and verdict, redacted.
"""

import asyncio
import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import aiohttp
import psutil
import psycopg

from benchmarks.bench import FIRST_HOUR, Bench, Sinks, capture
from benchmarks.letta_database.load import DatabaseSpec
from benchmarks.many_rows import multiply
from benchmarks.measuring import Result
from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.service_tokens import create_token

_CLIENTS = 20
_SECONDS = 10.0
_MULTIPLIED = 1_000
_PORT = 18_321


def measure(bench: Bench) -> Result:
    """Measure point 15."""
    rows = bench.size.reading
    result = Result("15", f"The service, {rows:,} trajectories, {_CLIENTS} clients")
    url = bench.letta(DatabaseSpec(_MULTIPLIED, first_hour=FIRST_HOUR, extra_loops=0.0, length=0.2))
    with bench.sinks() as sinks:
        capture(url, sinks.database_url, str(sinks.folder))
        with psycopg.connect(sinks.database_url, autocommit=True) as connection:
            bench.report(f"Multiplying trajectories to {rows:,} …")
            multiply(connection, rows)
            ids = [row[0] for row in connection.execute("SELECT run_id FROM trajectory.trajectories")]
            (agent,) = connection.execute(
                "SELECT agent_id FROM trajectory.trajectories GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
            ).fetchone() or ("",)
            own = [
                row[0]
                for row in connection.execute("SELECT run_id FROM trajectory.trajectories WHERE agent_id = %s", [agent])
            ]
            bench.settle()
        database = TrajectoryDatabase(sinks.database_url)
        day = timedelta(days=1)
        everything = create_token(database, "all", {TokenScope.READ}, None, day)
        tenant = create_token(database, "tenant", {TokenScope.READ}, Tenants(frozenset(), frozenset({agent})), day)
        rng = random.Random(15)
        with _service(sinks, bench.scratch / "serve.log") as (address, process):
            for what, token, path in (
                ("get by id", everything, lambda: f"/v1/trajectories/{rng.choice(ids)}"),
                ("get by id, one agent's token", tenant, lambda: f"/v1/trajectories/{rng.choice(own)}"),
                ("newest 50", everything, lambda: "/v1/trajectories?limit=50"),
                ("newest 50, one agent's token", tenant, lambda: "/v1/trajectories?limit=50"),
            ):
                taken = asyncio.run(_load(address, {"authorization": f"Bearer {token}"}, path))
                result.add(f"{what}: answers a second", len(taken) / _SECONDS, "a second")
                result.add(f"{what}: p95", statistics.quantiles(taken, n=20)[-1] * 1000, "ms")
            result.add("memory of the service", process.memory_info().rss / 1e6, "MB", at_most=300)
    return result


async def _load(address: str, headers: Mapping[str, str], path: Callable[[], str]) -> list[float]:
    """Ask with all clients for a while; returns the seconds of each answer."""
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS

    async def client(session: aiohttp.ClientSession) -> None:
        while (started := time.perf_counter()) < until:
            async with session.get(address + path()) as answer:
                await answer.read()
                answer.raise_for_status()
            taken.append(time.perf_counter() - started)

    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=_CLIENTS)) as session:
        await asyncio.gather(*(client(session) for _ in range(_CLIENTS)))
    return taken


@contextlib.contextmanager
def _service(sinks: Sinks, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run ``serve`` in a process of its own."""
    environment = {
        **os.environ,
        "LETTA_PG_URI": sinks.database_url,
        "TRAJECTORY_DATABASE_URL": sinks.database_url,
        "DAGSTER_PG_URL": sinks.database_url,
        "TRAJECTORY_STORAGE_URI": str(sinks.folder),
    }
    command = [sys.executable, "-m", "trajectory_pipeline.cli.main", "serve", "--port", str(_PORT)]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        address = f"http://127.0.0.1:{_PORT}"
        asyncio.run(_until_ready(address, process))
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def _until_ready(address: str, process: "subprocess.Popen[bytes]") -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with exit code {process.returncode}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{address}/health"):
                    return
            await asyncio.sleep(0.1)
    raise RuntimeError("the service did not answer within a minute")
