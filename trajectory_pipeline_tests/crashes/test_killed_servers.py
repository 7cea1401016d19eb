"""The contract of a Postgres server that is killed or stopped in the middle of a range: it comes back, and one ordinary
run makes all true. A server of the test's own, for the source and the sink alike."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.crashes.expected import assert_complete
from trajectory_pipeline_tests.crashes.processes import Workers, wait_until
from trajectory_pipeline_tests.demo.embedded_postgres.processes import postmaster_pid
from trajectory_pipeline_tests.letta_sample import load_sample
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.server_databases import create_database

pytestmark = [pytest.mark.process, pytest.mark.heavy]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with embedded_postgres.start(tmp_path / "server") as server:
        for name in ("letta", "trajectory"):
            create_database(server, name)
        load_sample(server.url("letta"))
        migrate(server.url("trajectory"))
        yield server
    embedded_postgres.remove(tmp_path / "server")


@pytest.fixture
def in_use(own_server: EmbeddedServer) -> Iterator[ExitStack]:
    """Takes further uses of the server, which end with the test."""
    with ExitStack() as uses:
        yield uses


@pytest.mark.timeout(240)
def test_server_killed_during_a_range_is_recovered_by_a_rerun(
    own_server: EmbeddedServer, in_use: ExitStack, crew: Workers, hours: list[datetime], tmp_path: Path
) -> None:
    """Another run of the range is all that is needed."""
    pipeline = Pipeline(own_server.url("letta"), own_server.url("trajectory"), tmp_path / "parquet")

    def holds(partitions: int) -> bool:
        return len(pipeline.ask("SELECT * FROM trajectory.partitions")) >= partitions

    for how in (signal.SIGKILL, signal.SIGQUIT):  # the second is Postgres' own immediate stop
        before = len(pipeline.ask("SELECT * FROM trajectory.partitions"))
        worker = crew.start(pipeline, hours, marked=how.name)
        wait_until(partial(holds, before + 3), "three partitions")
        postmaster = postmaster_pid(own_server.folder)
        os.kill(postmaster, how)
        said = crew.result(worker)
        assert "failed" in said["error"]
        assert any(words in said["error"] for words in ("connection", "server", "terminat", "shutting")), said
        assert own_server.password not in said["error"]
        # Whoever uses it next starts it again, on the same port: its URL still holds.
        with embedded_postgres.start(own_server.folder) as again:
            assert again.url("letta") == own_server.url("letta")
            pipeline.read(hours[0])
            if how is signal.SIGQUIT:
                assert_complete(pipeline, hours)
            else:
                pipeline.do("DELETE FROM trajectory.partitions WHERE asset = 'trajectories'")
        in_use.enter_context(embedded_postgres.start(own_server.folder))
