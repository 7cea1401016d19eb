"""Workers to kill, the hours that they work on, and object storage."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from s3fs import S3FileSystem

from trajectory_pipeline_tests.crashes.objects import BUCKET, SECRET
from trajectory_pipeline_tests.crashes.processes import Workers, wait_until, workers
from trajectory_pipeline_tests.crashes.wire import Wire, wire
from trajectory_pipeline_tests.crashes.worker import Stored
from trajectory_pipeline_tests.letta_sample import sample_partitions


@pytest.fixture(scope="session")
def crew() -> Iterator[Workers]:
    with workers() as crew:
        yield crew


@pytest.fixture
def hours() -> list[datetime]:
    """Five partitions with runs in them, one after the other."""
    return sorted(sample_partitions())[-5:]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The URL of a server that speaks S3."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _answers(port), "the server of objects")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def s3_wire(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The way to the server, which a test may cut; the variables that s3fs reads lead over it."""
    with wire(s3_server) as made:
        variables = {
            "AWS_ENDPOINT_URL_S3": made.url.replace("//@", "//"),
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        # It keeps a file system a process, whatever the variables say later.
        S3FileSystem.clear_instance_cache()
        yield made
        S3FileSystem.clear_instance_cache()


@pytest.fixture
def client(s3_wire: Wire, s3_server: str) -> Any:
    client = botocore.session.get_session().create_client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def stored(letta_database: str, trajectory_database: str, client: Any, tmp_path: Path) -> Stored:
    # A prefix of its own: s3fs keeps one file system a process, and what a test wrote stands there for the next.
    return Stored(letta_database, trajectory_database, tmp_path, uri=f"s3://{BUCKET}/{tmp_path.name}")
