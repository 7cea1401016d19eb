"""Workers to kill, the hours that they work on, and object storage."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from trajectory_pipeline_tests import object_store
from trajectory_pipeline_tests.crashes.objects import BUCKET
from trajectory_pipeline_tests.crashes.processes import Workers, workers
from trajectory_pipeline_tests.crashes.wire import Wire
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
    with object_store.s3_server() as url:
        yield url


@pytest.fixture
def s3_wire(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The way to the server, which a test may cut; the variables that s3fs reads lead over it."""
    with closing(Wire(s3_server)) as made, object_store.s3_variables(made.url.replace("//@", "//"), monkeypatch):
        yield made


@pytest.fixture
def client(s3_wire: Wire, s3_server: str) -> Any:
    client = botocore.session.get_session().create_client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def stored(letta_database: str, trajectory_database: str, client: Any, tmp_path: Path) -> Stored:
    # A prefix of its own: s3fs keeps one file system a process, and what a test wrote stands there for the next.
    return Stored(letta_database, trajectory_database, tmp_path, uri=f"s3://{BUCKET}/{tmp_path.name}")
