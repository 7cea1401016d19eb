"""Databases: each is the one that is set, or else one of the embedded server."""

from pathlib import Path
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.databases import (
    DAGSTER_DATABASE,
    LETTA_DATABASE,
    TRAJECTORY_DATABASE,
    Databases,
    resolve_databases,
    running_databases,
)
from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.errors import EmbeddedPostgresError, SinkError
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.server_databases import drop_database

GIVEN = {
    "source__postgres_url": "postgresql://me:geheim@letta.invalid/l",
    "storage__database_url": "postgresql://me:geheim@trajectory.invalid/t",
    "dagster__database_url": "postgresql://me:geheim@dagster.invalid/d",
}
EMBEDDED = {
    "source__postgres_url": LETTA_DATABASE,
    "storage__database_url": TRAJECTORY_DATABASE,
    "dagster__database_url": DAGSTER_DATABASE,
}
FIELDS = {
    "source__postgres_url": "letta_url",
    "storage__database_url": "database_url",
    "dagster__database_url": "dagster_url",
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, postgres_server: EmbeddedServer) -> list[Path]:
    """The folders in which the embedded server was started; it is the tests' own server."""
    folders: list[Path] = []

    def start(folder: Path, **_: Any) -> EmbeddedServer:
        folders.append(folder)
        return postgres_server

    monkeypatch.setattr(embedded_postgres, "start", start)
    return folders


@pytest.fixture(autouse=True)
def _no_databases_left(postgres_server: EmbeddedServer) -> Any:
    yield
    for name in EMBEDDED.values():
        drop_database(postgres_server, name)


def test_resolve_databases_with_all_set_starts_no_server(started: list[Path]) -> None:
    databases = resolve_databases(make_settings(**GIVEN))
    assert started == []
    assert databases == Databases(*GIVEN.values(), embedded=False)


@pytest.mark.parametrize("unset", GIVEN)
def test_resolve_databases_with_one_unset_embeds_only_that_one(
    started: list[Path], postgres_server: EmbeddedServer, tmp_path: Path, unset: str
) -> None:
    settings = make_settings(**{**GIVEN, unset: None}, storage__data_folder=tmp_path)
    databases = resolve_databases(settings)
    assert started == [tmp_path / "postgres"]
    assert databases.embedded
    for name, url in GIVEN.items():
        expected = postgres_server.url(EMBEDDED[name]) if name == unset else url
        assert getattr(databases, FIELDS[name]) == expected
    with psycopg.connect(postgres_server.url("postgres")) as connection:
        there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
    assert there & set(EMBEDDED.values()) == {EMBEDDED[unset]}


def test_embedded_database_is_migrated_and_a_set_one_is_not(
    started: list[Path], tmp_path: Path, empty_database: str
) -> None:
    databases = resolve_databases(make_settings(storage__data_folder=tmp_path))
    with TrajectoryDatabase(databases.database_url).connect():
        pass
    # A second time changes nothing.
    assert resolve_databases(make_settings(storage__data_folder=tmp_path)) == databases
    given = resolve_databases(make_settings(storage__database_url=empty_database, storage__data_folder=tmp_path))
    with (
        pytest.raises(SinkError, match="trajectory-pipeline migrate"),
        TrajectoryDatabase(given.database_url).connect(),
    ):
        pass


def test_resolve_databases_with_failing_server_raises_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise EmbeddedPostgresError("no space")

    monkeypatch.setattr(embedded_postgres, "start", fail)
    with pytest.raises(EmbeddedPostgresError, match=r"^no space$"):
        resolve_databases(make_settings(storage__data_folder=tmp_path))


def test_running_databases_uses_a_server_and_never_starts_one(
    monkeypatch: pytest.MonkeyPatch, postgres_server: EmbeddedServer, started: list[Path], tmp_path: Path
) -> None:
    settings = make_settings(**{**GIVEN, "source__postgres_url": None}, storage__data_folder=tmp_path)
    with pytest.raises(EmbeddedPostgresError, match=r"does not run: start `trajectory-pipeline demo` or `dev`"):
        running_databases(settings)
    monkeypatch.setattr(embedded_postgres, "running", lambda _: postgres_server)
    assert running_databases(settings).letta_url == postgres_server.url(LETTA_DATABASE)
    assert running_databases(make_settings(**GIVEN)) == resolve_databases(make_settings(**GIVEN))
    assert started == []


def test_environment_names_the_driver_that_dagster_uses() -> None:
    environment = resolve_databases(make_settings(**GIVEN)).environment()
    assert environment == {
        "LETTA_PG_URI": GIVEN["source__postgres_url"],
        "TRAJECTORY_DATABASE_URL": GIVEN["storage__database_url"],
        "DAGSTER_PG_URL": "postgresql+psycopg2://me:geheim@dagster.invalid/d",
    }


def test_databases_repr_shows_no_password() -> None:
    assert "geheim" not in repr(resolve_databases(make_settings(**GIVEN)))
