"""A migrated database that is only read, made once a module."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.server_databases import create_database, drop_database


@pytest.fixture(scope="module")
def migrated_database(postgres_server: EmbeddedServer) -> Iterator[str]:
    name = f"migrated_{uuid4().hex[:12]}"
    create_database(postgres_server, name)
    url = postgres_server.url(name)
    migrate(url)
    yield url
    drop_database(postgres_server, name)
