"""A sample that is only read, made once."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline_tests.letta_sample import load_sample
from trajectory_pipeline_tests.server_databases import create_database, drop_database


@pytest.fixture(scope="session")
def untouched_sample(postgres_server: EmbeddedServer) -> Iterator[str]:
    """The URL of a database that holds the sample; a test that changes it takes ``letta_database`` instead."""
    name = f"untouched_{uuid4().hex[:12]}"
    create_database(postgres_server, name)
    url = postgres_server.url(name)
    load_sample(url)
    yield url
    drop_database(postgres_server, name)
