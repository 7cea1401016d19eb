"""A migrated database that is only read, made once a module."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.storage.postgres.migrate import migrate


@pytest.fixture(scope="module")
def migrated_database(postgres_server: EmbeddedServer) -> Iterator[str]:
    name = f"migrated_{uuid4().hex[:12]}"
    postgres_server.create_database(name)
    url = postgres_server.url(name)
    migrate(url)
    yield url
    postgres_server.drop_database(name, force=True)
