"""Connection poolers: nothing that they refuse is in a startup packet, and all stages work behind one."""

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.crashes.wire import Wire
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.ports import free_port

HOUR = min(hour for hour, runs in sample_partitions().items() if runs >= 3)
PASSED_ON = {"user", "database", "application_name", "client_encoding"}
"""Parameters at startup that every pooler accepts."""
_PROTOCOL_3 = struct.pack("!i", 196_608)
PGBOUNCER = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")


def startup_parameters(message: bytes) -> set[str]:
    """Return the names of the parameters of a startup message."""
    return set(message[8:].decode().split("\0")[:-2:2])


def run_all_stages(pipeline: Pipeline) -> None:
    """Migrate, run the three stages, and look for all verdicts."""
    migrate(pipeline.database_url)
    pipeline.capture(HOUR)
    pipeline.refine(HOUR)
    verdicts = [row["verdict_status"] for row in pipeline.parquet(REFINED_OUTCOMES, HOUR)]
    assert len(verdicts) == sample_partitions()[HOUR]
    assert "judged" in verdicts
    assert pipeline.convert(HOUR).unchanged


def test_startup_packets_hold_only_what_every_pooler_accepts(
    letta_database: str, empty_database: str, tmp_path: Path, judge: SimulatedJudge
) -> None:
    found: list[set[str]] = []
    with ExitStack() as stack:
        wires = [stack.enter_context(closing(Wire(url))) for url in (letta_database, empty_database)]
        for each in wires:

            def sees(piece: bytes, passed: int) -> bool:
                # Requests for encryption of 8 bytes may come before.
                if passed <= 16 and piece[4:8] == _PROTOCOL_3:
                    found.append(startup_parameters(piece))
                return False

            each.from_client = sees
        run_all_stages(Pipeline(wires[0].url, wires[1].url, tmp_path / "parquet", judge.base_url))
    assert len(found) >= 3
    assert [names for names in found if not names <= PASSED_ON] == []


@contextmanager
def running_pgbouncer(config: Path, url: str) -> Iterator[None]:
    """Run PgBouncer as nobody where it would be root, which it refuses; wait until it answers at a URL."""
    assert PGBOUNCER is not None
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    log = config.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen([PGBOUNCER, *user, str(config)], stdout=output, stderr=output)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(url).close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def pooled(letta_database: str, empty_database: str, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A function that returns a database's URL by way of PgBouncer in transaction mode, which resets each session."""
    parts = urlsplit(letta_database)
    port = free_port()
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port} user={parts.username} password={parts.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\n"
        "default_pool_size = 3\nunix_socket_dir =\nserver_reset_query_always = 1\n"
    )

    def by_way(url: str) -> str:
        login = urlsplit(url).netloc.rpartition("@")[0]
        return urlunsplit(urlsplit(url)._replace(netloc=f"{login}@127.0.0.1:{port}"))

    with running_pgbouncer(config, by_way(letta_database)):
        yield by_way


if PGBOUNCER is not None:

    def test_all_stages_work_behind_pgbouncer(
        pooled: Callable[[str], str], letta_database: str, empty_database: str, tmp_path: Path, judge: SimulatedJudge
    ) -> None:
        run_all_stages(Pipeline(pooled(letta_database), pooled(empty_database), tmp_path / "parquet", judge.base_url))
        with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
            psycopg.connect(pooled(empty_database), options="-c timezone=UTC")
