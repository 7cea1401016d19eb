"""Backups that were made one after the other, of stores that go on changing: what is restored heals by itself."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from trajectory_pipeline.demo.embedded_postgres.binaries import installed_binaries
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline_tests.crashes.worker import mark
from trajectory_pipeline_tests.distributed.equality import check_equal_to_scratch
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

pytestmark = [pytest.mark.heavy, pytest.mark.process]


def postgres_program(name: str) -> str:
    """Return a client program of Postgres: the embedded server's own, which is as new as that server."""
    return str(installed_binaries().program(name))


def dump(url: str, file: Path) -> None:
    subprocess.run([postgres_program("pg_dump"), "-Fc", "-f", str(file), url], check=True)


def restore(url: str, file: Path) -> None:
    command = [postgres_program("pg_restore"), "--exit-on-error", "--no-owner", "-d", url, str(file)]
    subprocess.run(command, check=True)


def test_restored_stores_heal_when_files_are_newer_than_rows(
    pipeline: Pipeline, make_database: Callable[[str | None], str], tmp_path: Path
) -> None:
    hours = sorted(sample_partitions())[-6:]
    pipeline.capture(*hours)
    # 1. The trajectory database is backed up.
    dump(pipeline.database_url, tmp_path / "trajectory.dump")
    # Meanwhile the source changes, a run is deleted there, and both are captured.
    mark(pipeline, "changed", hours[:2])
    with psycopg.connect(pipeline.letta_url) as connection:
        row = connection.execute(
            "SELECT id FROM runs WHERE completed_at >= %s AND status = 'completed' ORDER BY id LIMIT 1",
            [hours[-1].replace(tzinfo=None)],
        ).fetchone()
        assert row is not None
        gone = row[0]
        for statement in ("DELETE FROM messages WHERE run_id = %s", "DELETE FROM steps WHERE run_id = %s"):
            connection.execute(statement.encode(), [gone])
        connection.execute("DELETE FROM runs WHERE id = %s", [gone])
    pipeline.capture(*hours)
    # 2. The files are backed up.
    shutil.copytree(pipeline.folder, tmp_path / "copy")
    # The source changes once more, and everything is lost.
    mark(pipeline, "again", hours[2:3])

    database = make_database(None)
    restore(database, tmp_path / "trajectory.dump")
    restored = Pipeline(pipeline.letta_url, database, tmp_path / "copy")
    stale = find_stale_partitions(LettaSource(restored.letta_url), restored.database, hours)
    assert {hours[0], hours[1], hours[2], hours[-1]} <= set(stale)
    restored.capture(*stale)
    assert find_stale_partitions(LettaSource(restored.letta_url), restored.database, hours) == []
    [kept] = restored.ask("SELECT deleted_at FROM trajectory.trajectories WHERE run_id = %s", gone)
    assert kept["deleted_at"] is not None
    scratch = Pipeline(pipeline.letta_url, make_database("template_trajectory"), tmp_path / "scratch")
    scratch.capture(*hours)
    check_equal_to_scratch(restored, scratch, hours, complete=False, deleted=frozenset({gone}))
