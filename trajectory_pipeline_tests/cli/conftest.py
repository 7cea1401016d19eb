"""The command in this process, with an environment of its own that is put back afterwards."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from trajectory_pipeline.cli import console
from trajectory_pipeline.cli.main import main
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.settings import Settings, setting_fields
from trajectory_pipeline.urls import sqlalchemy_url
from trajectory_pipeline_tests.server_databases import create_database

Command = Callable[..., Result]
OURS = [*setting_fields(), "DAGSTER_HOME"]


@pytest.fixture
def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A function that runs the command with arguments, and variables given by name; no other of ours is set.

    Whatever it prints must be sentences: a traceback fails the test that sees it.
    """
    monkeypatch.chdir(tmp_path)
    for stream in (console.out, console.err):
        monkeypatch.setattr(stream, "width", 160)

    def run(*arguments: str, **variables: Any) -> Result:
        given = {name: str(value) for name, value in variables.items()}
        with mock.patch.dict(os.environ, given):
            for name in set(OURS) - set(given):
                os.environ.pop(name, None)
            result = CliRunner().invoke(main, arguments, prog_name="trajectory-pipeline")
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    return run


@pytest.fixture(scope="session")
def _dagster_template(postgres_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with Dagster's tables, which take two seconds to make."""
    name = "template_dagster"
    create_database(postgres_server, name)
    home = tmp_path_factory.mktemp("home")
    url = sqlalchemy_url(postgres_server.url(name), "psycopg2")
    (home / "dagster.yaml").write_text(f"storage:\n  postgres:\n    postgres_url: {url}\n")
    with mock.patch.dict(os.environ, {"DAGSTER_HOME": str(home)}), dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
    return name


@pytest.fixture
def dagster_database(_dagster_template: str, make_database: Callable[[str | None], str]) -> str:
    """URL of a fresh database with Dagster's empty tables."""
    return make_database(_dagster_template)


@pytest.fixture
def databases(settings: Settings, dagster_database: str) -> dict[str, str]:
    """The variables that name the test's own databases and folder."""
    return {
        "LETTA_PG_URI": str(settings.source.postgres_url),
        "TRAJECTORY_DATABASE_URL": str(settings.storage.database_url),
        "DAGSTER_PG_URL": dagster_database,
        "TRAJECTORY_DATA_FOLDER": str(settings.storage.data_folder),
    }


def squeezed(result: Result) -> str:
    """What was printed, without the layout: lines joined, spaces single."""
    return " ".join(result.output.split())
