"""The contract of a disk that is full, of one that only reads, and of a limit on files: one clear sentence, both sinks
as they were, and one ordinary run makes all true when there is room again.

A small file system in memory where it can be mounted (root, on Linux); a limit on the size of files, which any user can
set, everywhere. A full disk of the database is a tablespace on such a file system.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.errors import SinkError
from trajectory_pipeline_tests.crashes.expected import assert_complete, assert_no_leftovers
from trajectory_pipeline_tests.crashes.test_cut_connections import state
from trajectory_pipeline_tests.crashes.worker import mark
from trajectory_pipeline_tests.demo.embedded_postgres.processes import postmaster_pid
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

pytestmark = [pytest.mark.process, pytest.mark.heavy]

Mount = Callable[[str, str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A function that mounts a file system in memory of a given size, and returns its folder."""
    with ExitStack() as at_the_end:

        def mounted(name: str, size: str) -> Path:
            folder = tmp_path / name
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "none", str(folder)]
            if subprocess.run(command, capture_output=True).returncode != 0:
                pytest.skip("no file system can be mounted here: that needs root, on Linux")
            at_the_end.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield mounted


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_full_disk_leaves_the_former_files_unchanged(pipeline: Pipeline, hours: list[datetime], mount: Mount) -> None:
    pipeline.folder = mount("parquet", "8m")
    pipeline.capture(*hours)
    mark(pipeline, "changed", hours)
    before = state(pipeline)
    with (pipeline.folder / "ballast").open("wb") as ballast:
        free = shutil.disk_usage(pipeline.folder).free
        ballast.write(bytes(max(free - 8192, 0)))
    with pytest.raises(SinkError, match=r"^Writing .* failed: .*No space left on device.* Check that there is space"):
        pipeline.capture(*hours)
    (pipeline.folder / "ballast").unlink()
    assert_no_leftovers(pipeline)
    assert state(pipeline) == before
    assert_complete(pipeline, hours)


def test_disk_filling_during_a_range_loses_nothing(pipeline: Pipeline, hours: list[datetime], mount: Mount) -> None:
    pipeline.folder = mount("parquet", "96k")
    with pytest.raises(SinkError, match="No space left on device"):
        pipeline.capture(*hours)
    done = len(pipeline.ask("SELECT * FROM trajectory.partitions"))
    assert 0 < done < 2 * len(hours)
    assert len(list(pipeline.folder.rglob("*.parquet"))) == done
    assert_no_leftovers(pipeline)
    remount(pipeline.folder, "size=8m")
    assert_complete(pipeline, hours)


def test_read_only_file_system_raises_a_sink_error(pipeline: Pipeline, hours: list[datetime], mount: Mount) -> None:
    pipeline.folder = mount("parquet", "8m")
    pipeline.capture(*hours)
    mark(pipeline, "changed", hours)
    before = state(pipeline)
    remount(pipeline.folder, "ro")
    with pytest.raises(SinkError, match=r"^Writing .* failed: .*Read-only file system"):
        pipeline.capture(*hours)
    remount(pipeline.folder, "rw")
    assert state(pipeline) == before
    assert_complete(pipeline, hours)


def test_file_size_limit_raises_a_sink_error(pipeline: Pipeline, hours: list[datetime]) -> None:
    pipeline.capture(*hours)
    mark(pipeline, "changed", hours)
    before = state(pipeline)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SinkError, match=r"^Writing .* failed: .*File too large"):
            pipeline.capture(*hours)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state(pipeline) == before
    assert_complete(pipeline, hours)


def test_full_database_disk_changes_no_rows_or_files(
    pipeline: Pipeline, hours: list[datetime], mount: Mount, postgres_server: EmbeddedServer
) -> None:
    pipeline.capture(hours[0])
    mark(pipeline, "changed", hours)
    pipeline.read(hours[0])
    place = mount("tablespace", "16m")
    for folder in [place, *place.parents]:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    owner = Path(f"/proc/{postmaster_pid(postgres_server.folder)}").stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    with psycopg.connect(pipeline.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'".encode())
        try:
            connection.execute("ALTER TABLE trajectory.trajectories SET TABLESPACE small")
            (place / "ballast").write_bytes(bytes(shutil.disk_usage(place).free))
            before: list[object] = []

            def grow() -> None:
                """Write new versions of all rows until the table must grow."""
                for number in range(40):
                    mark(pipeline, f"version {number}", hours[:1])
                    pipeline.read(hours[0])
                    before[:] = state(pipeline)
                    pipeline.convert(hours[0])

            with pytest.raises(SinkError, match=r"No space left on device.* the server's disk is full: make room"):
                grow()
            assert list(state(pipeline)) == before
            (place / "ballast").unlink()
            assert_complete(pipeline, hours)
        finally:
            connection.execute("ALTER TABLE trajectory.trajectories SET TABLESPACE pg_default")
            connection.execute("DROP TABLESPACE small")
