"""The connections that docs/deploy.md states for each process are all that it needs, at a server that has no more.

A range is captured and judged by the command while the service answers more clients than it has connections.
"""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE, SimulatedJudge
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.letta_sample import load_sample, sample_partitions
from trajectory_pipeline_tests.ports import free_port

pytestmark = [pytest.mark.heavy, pytest.mark.process]
DATABASES = ("letta", "trajectory", "dagster")
STATED = {
    ("run", "letta"): 1,
    ("run", "trajectory"): 8,
    ("run", "dagster"): 2,
    ("serve", "trajectory"): 40,
}
"""By process and database, as docs/deploy.md says."""
OUR_OWN = 1 + 3
"""Who counts, and what Postgres keeps for superusers."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that accepts what is stated, and not one connection more."""
    limit = str(sum(STATED.values()) + OUR_OWN)
    settings = {"max_connections": limit, "max_wal_senders": "0", "fsync": "off"}
    folder = tmp_path / "server"
    with embedded_postgres.start(folder, settings=settings) as server:
        for name in DATABASES:
            server.ensure_database(name)
        load_sample(server.url("letta"))
        migrate(server.url("trajectory"))
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE ROLE process LOGIN PASSWORD 'process'")
            for name in DATABASES:
                connection.execute(f"ALTER DATABASE {name} OWNER TO process".encode())
        for name in ("letta", "trajectory"):
            hand_over(server.url(name))
        yield server
    embedded_postgres.remove(folder)


def hand_over(url: str) -> None:
    """Let the role ``process``, which is no superuser, do everything in a database."""
    with psycopg.connect(url) as connection:
        schemas = [
            row[0] for row in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^inf'")
        ]
        for schema in schemas:
            for what in ("SCHEMA {0}", "ALL TABLES IN SCHEMA {0}", "ALL SEQUENCES IN SCHEMA {0}"):
                connection.execute(f"GRANT ALL ON {what.format(schema)} TO process".encode())


@contextmanager
def counted(server: EmbeddedServer) -> Iterator[Counter[tuple[str, str]]]:
    """The most connections that each process had to each database at the same time.

    One counts that is there at two looks in sequence: Postgres still shows those that were closed just now.
    """
    most: Counter[tuple[str, str]] = Counter()
    ended = threading.Event()

    def count() -> None:
        before: set[int] = set()
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            while not ended.is_set():
                rows = connection.execute(
                    "SELECT pid, application_name, datname FROM pg_stat_activity WHERE usename = 'process'"
                ).fetchall()
                now = Counter((process, database) for pid, process, database in rows if pid in before)
                for key, number in now.items():
                    most[key] = max(most[key], number)
                before = {pid for pid, _, _ in rows}
                time.sleep(0.02)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def environment_of(process: str, server: EmbeddedServer, judge: SimulatedJudge, folder: Path) -> dict[str, str]:
    place = urlsplit(server.url("x")).netloc.rpartition("@")[2]
    url = f"postgresql://process:process@{place}/{{}}?application_name={process}"
    names = {"LETTA_PG_URI": "letta", "TRAJECTORY_DATABASE_URL": "trajectory"}
    return {
        **os.environ,
        **{variable: url.format(name) for variable, name in names.items()},
        "DAGSTER_PG_URL": url.format("dagster").replace("postgresql://", "postgresql+psycopg2://"),
        "TRAJECTORY_DATA_FOLDER": str(folder / "data"),
        "TRAJECTORY_JUDGE_MODEL": JUDGE_MODEL,
        "TRAJECTORY_PRICES": PRICE_TABLE,
        "OPENAI_BASE_URL": judge.base_url,
    }


def test_backfill_judging_and_service_keep_the_stated_connections(
    server: EmbeddedServer, judge: SimulatedJudge, tmp_path: Path
) -> None:
    hours = sorted(sample_partitions())[-12:]
    program = [sys.executable, "-m", "trajectory_pipeline.cli.main"]
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with counted(server) as most:
        service = subprocess.Popen(
            [*program, "serve", "--port", str(port)], env=environment_of("serve", server, judge, tmp_path), cwd=tmp_path
        )
        try:
            until = time.monotonic() + 60
            while not answers(f"{address}/health"):
                assert service.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
            command = ["materialize", "--from", partition_key(hours[0]), "--to", partition_key(hours[-1])]
            run = subprocess.Popen(
                [*program, *command],
                env=environment_of("run", server, judge, tmp_path),
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            refused: list[str] = []

            def ask(_: int) -> None:
                while run.poll() is None:
                    if not answers(f"{address}/v1/trajectories?limit=5"):
                        refused.append("no answer")

            with ThreadPoolExecutor(60) as clients:
                list(clients.map(ask, range(60)))
            said = run.communicate()[0]
            assert run.returncode == 0, said
            assert refused == []
        finally:
            service.terminate()
            service.wait()
    assert set(most) == set(STATED)
    assert {who: (number, STATED[who]) for who, number in most.items() if number > STATED[who]} == {}
    with psycopg.connect(server.url("trajectory")) as connection:
        row = connection.execute("SELECT count(*) FROM trajectory.verdicts WHERE verdict_status = 'judged'").fetchone()
    assert row is not None
    assert row[0] > 0


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return bool(response.status == 200)
    except OSError:
        return False
