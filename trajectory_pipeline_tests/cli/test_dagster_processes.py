"""Dagster's home and storage: found or created, with an error that says what to do."""

import os
import socket
import sys
from pathlib import Path

import pytest

from trajectory_pipeline.cli.dagster_processes import (
    HOST,
    dagster_home,
    free_port,
    graphql,
    prepare_storage,
    project_folder,
    shorten_log,
)
from trajectory_pipeline.cli.subprocesses import SupervisedProcess
from trajectory_pipeline.errors import PipelineError, SettingsError

pytestmark = pytest.mark.process

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


def test_project_folder_prefers_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_folder() == PROJECT
    for name in ("workspace.yaml", "dagster.yaml"):
        (tmp_path / name).write_text("")
    assert project_folder() == tmp_path


def test_dagster_home_is_created_with_the_project_configuration(tmp_path: Path) -> None:
    for _ in range(2):
        home = dagster_home(tmp_path / "data")
        assert home == tmp_path / "data" / "dagster"
        assert (home / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()


def test_dagster_home_with_a_wrong_link_is_repaired(tmp_path: Path) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").symlink_to(tmp_path / "gone")
    assert (dagster_home(tmp_path) / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()


def test_dagster_home_from_the_environment_needs_dagster_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=r"is not the absolute path of a folder with a dagster\.yaml"):
        dagster_home(tmp_path / "data")
    (tmp_path / "dagster.yaml").write_text("")
    assert dagster_home(tmp_path / "data") == tmp_path


def test_dagster_home_that_is_relative_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dagster.yaml").write_text("")
    monkeypatch.setenv("DAGSTER_HOME", ".")
    with pytest.raises(SettingsError, match=r"DAGSTER_HOME is '\.'"):
        dagster_home(tmp_path)


def test_free_port_replaces_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = free_port(port)
        assert other != port
    with socket.socket() as probe:
        probe.bind((HOST, other))


def test_log_of_running_processes_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajectory_pipeline.cli.dagster_processes._LOG_LIMIT_BYTES", 1000)
    log = tmp_path / "dagster.log"
    writer = "import time\nfor n in range(60):\n    print(str(n) * 50, flush=True)\n    time.sleep(0.05)"
    with SupervisedProcess([sys.executable, "-c", writer], os.environ, tmp_path, log) as process:
        while process.wait(0.05) is None:
            shorten_log(log)
            assert log.stat().st_size < 2500
    assert log.read_text().endswith("59" * 50 + "\n")
    assert len(log.with_name("dagster.log.1").read_text()) > 1000


def test_graphql_without_a_server_returns_none() -> None:
    assert graphql(1, "{ version }") is None


def test_prepare_storage_unreachable_error_hides_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_PG_URL", "")
    with pytest.raises(PipelineError) as caught:
        prepare_storage(tmp_path, "postgresql+psycopg2://me:hunter2@127.0.0.1:1/dagster")
    assert str(caught.value).startswith("Dagster's storage at 127.0.0.1:1/dagster cannot be used: ")
    assert str(caught.value).endswith("Check DAGSTER_PG_URL.")
    assert "hunter2" not in str(caught.value)
