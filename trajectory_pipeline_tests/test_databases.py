"""The contract of the databases in use: those that are set, else the embedded server's, each by itself."""

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
IN_ENDPOINTS = {
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


def test_where_all_are_set_no_server_is_started(started: list[Path]) -> None:
    endpoints = resolve_databases(make_settings(**GIVEN))
    assert started == []
    assert endpoints == Databases(*GIVEN.values(), embedded=False)


@pytest.mark.parametrize("unset", GIVEN)
def test_one_that_is_unset_falls_back_by_itself(
    started: list[Path], postgres_server: EmbeddedServer, tmp_path: Path, unset: str
) -> None:
    settings = make_settings(**{**GIVEN, unset: None}, storage__data_folder=tmp_path)
    endpoints = resolve_databases(settings)
    assert started == [tmp_path / "postgres"]
    assert endpoints.embedded
    for name, url in GIVEN.items():
        expected = postgres_server.url(EMBEDDED[name]) if name == unset else url
        assert getattr(endpoints, IN_ENDPOINTS[name]) == expected
    with psycopg.connect(postgres_server.url("postgres")) as connection:
        there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
    assert there & set(EMBEDDED.values()) == {EMBEDDED[unset]}


def test_the_embedded_trajectory_database_is_migrated_and_one_that_is_set_is_not(
    started: list[Path], tmp_path: Path, empty_database: str
) -> None:
    endpoints = resolve_databases(make_settings(storage__data_folder=tmp_path))
    with TrajectoryDatabase(endpoints.database_url).connect():
        pass
    # Twice does no harm.
    assert resolve_databases(make_settings(storage__data_folder=tmp_path)) == endpoints
    of_mine = resolve_databases(make_settings(storage__database_url=empty_database, storage__data_folder=tmp_path))
    with (
        pytest.raises(SinkError, match="trajectory-pipeline migrate"),
        TrajectoryDatabase(of_mine.database_url).connect(),
    ):
        pass


def test_a_server_that_cannot_be_started_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise EmbeddedPostgresError("no room")

    monkeypatch.setattr(embedded_postgres, "start", fail)
    with pytest.raises(EmbeddedPostgresError, match=r"^no room$"):
        resolve_databases(make_settings(storage__data_folder=tmp_path))


def test_without_starting_anything_a_running_server_is_used_or_missed(
    monkeypatch: pytest.MonkeyPatch, postgres_server: EmbeddedServer, started: list[Path], tmp_path: Path
) -> None:
    settings = make_settings(**{**GIVEN, "source__postgres_url": None}, storage__data_folder=tmp_path)
    with pytest.raises(EmbeddedPostgresError, match=r"does not run: start `trajectory-pipeline demo` or `dev`"):
        running_databases(settings)
    monkeypatch.setattr(embedded_postgres, "running", lambda _: postgres_server)
    assert running_databases(settings).letta_url == postgres_server.url(LETTA_DATABASE)
    assert running_databases(make_settings(**GIVEN)) == resolve_databases(make_settings(**GIVEN))
    assert started == []


def test_other_processes_get_the_urls_with_dagsters_own_driver() -> None:
    environment = resolve_databases(make_settings(**GIVEN)).environment()
    assert environment == {
        "LETTA_PG_URI": GIVEN["source__postgres_url"],
        "TRAJECTORY_DATABASE_URL": GIVEN["storage__database_url"],
        "DAGSTER_PG_URL": "postgresql+psycopg2://me:geheim@dagster.invalid/d",
    }


def test_no_password_stands_in_a_repr() -> None:
    assert "geheim" not in repr(resolve_databases(make_settings(**GIVEN)))
