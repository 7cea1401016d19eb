"""A hot standby as the source: it ends snapshots when it replays what they conflict with, and capture begins again."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import cluster, placement
from trajectory_pipeline.demo.embedded_postgres.account import account_for
from trajectory_pipeline.errors import SourceConflictError
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline_tests.letta_sample import load_sample, sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.ports import free_port

pytestmark = [pytest.mark.heavy, pytest.mark.process]
HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
NO_DELAY = "-c max_connections=200 -c max_standby_streaming_delay=0 -c max_standby_archive_delay=0"


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URLs of the sample on a primary, and on its standby."""
    folder: Path = tmp_path_factory.mktemp("replicated") / "primary"
    with embedded_postgres.start(folder, settings={"wal_level": "replica"}) as primary:
        primary.ensure_database("letta")
        url = primary.url("letta")
        load_sample(url)
        found = cluster.find(primary.folder)
        assert found is not None
        account = account_for(found.data)
        _, programs = placement.choose(primary.folder, account)
        # In a folder that this user can reach, where root runs the tests.
        standby, port = Path(tempfile.mkdtemp(prefix="standby-", dir="/tmp")), free_port()
        os.chown(standby, account.uid, account.gid)

        def run(program: str, *arguments: str) -> None:
            result = account.run(str(programs.program(program)), *arguments, capture_output=True)
            assert result.returncode == 0, result.stderr

        run("pg_basebackup", "-R", "-X", "stream", "-c", "fast", "-D", str(standby), "-d", primary.url("postgres"))
        options = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' {NO_DELAY}"
        run("pg_ctl", "-D", str(standby), "-w", "-l", str(standby / "log"), "-o", options, "start")
        try:
            parts = urlsplit(url)
            login = parts.netloc.rpartition("@")[0]
            yield url, urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))
        finally:
            run("pg_ctl", "-D", str(standby), "-m", "immediate", "stop")
            shutil.rmtree(standby, ignore_errors=True)
    embedded_postgres.remove(folder)


def remove_row_versions(primary: str, standby: str) -> None:
    """Make the primary forget row versions that a snapshot on the standby may need, and wait for the replay."""
    with psycopg.connect(primary, autocommit=True) as connection:
        for table in ("runs", "steps", "messages"):
            connection.execute(f"UPDATE {table} SET id = id".encode())
            connection.execute(f"VACUUM {table}".encode())
        row = connection.execute("SELECT pg_current_wal_lsn()").fetchone()
        assert row is not None
    with psycopg.connect(standby, autocommit=True) as connection:
        until = time.monotonic() + 30
        while connection.execute("SELECT pg_last_wal_replay_lsn() < %s::pg_lsn", [row[0]]).fetchone() == (True,):
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture
def conflicts(replicated: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """A function that lets the next so many snapshots conflict; it returns a list that grows by each snapshot."""
    snapshot = LettaSource.snapshot

    def set_up(number: int) -> list[int]:
        taken: list[int] = []

        @contextmanager
        def conflicting(source: LettaSource) -> Iterator[Snapshot]:
            with snapshot(source) as opened:
                taken.append(1)
                if len(taken) <= number:
                    remove_row_versions(*replicated)
                yield opened

        monkeypatch.setattr(LettaSource, "snapshot", conflicting)
        return taken

    return set_up


def test_capture_begins_again_after_a_recovery_conflict(
    replicated: tuple[str, str], conflicts: Callable[[int], list[int]], trajectory_database: str, tmp_path: Path
) -> None:
    pipeline = Pipeline(replicated[1], trajectory_database, tmp_path / "parquet")
    taken = conflicts(2)
    pipeline.capture(HOUR)
    assert len(taken) == 3
    assert len(pipeline.parquet(TERMINAL_RUNS, HOUR)) == sample_partitions()[HOUR]


def test_capture_gives_up_after_three_conflicts_and_writes_nothing(
    replicated: tuple[str, str], conflicts: Callable[[int], list[int]], trajectory_database: str, tmp_path: Path
) -> None:
    pipeline = Pipeline(replicated[1], trajectory_database, tmp_path / "parquet")
    taken = conflicts(10)
    with pytest.raises(SourceConflictError, match=r"conflict with recovery — .*hot standby"):
        pipeline.capture(HOUR)
    assert len(taken) == 3
    assert pipeline.files() == {}
    assert pipeline.ask("SELECT * FROM trajectory.partitions") == []
