"""Dagster's home and storage: found or created, with an error that says what to do."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from trajectory_pipeline.cli.dagster_processes import (
    dagster_home,
    graphql,
    prepare_storage,
    project_folder,
    shorten_log,
    start_webserver,
)
from trajectory_pipeline.cli.listening import HOST, listen, listen_nearby, port_of
from trajectory_pipeline.cli.shared_workspace import shared_workspace
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


def test_port_in_use_is_replaced_by_a_free_one() -> None:
    with listen(HOST, 0) as taken, listen_nearby(port_of(taken)) as other:
        assert port_of(other) != port_of(taken)


def test_port_in_use_is_refused_with_the_port_and_the_option() -> None:
    with listen(HOST, 0) as taken, pytest.raises(PipelineError, match=rf"{HOST}:{port_of(taken)} .*--port"):
        listen(HOST, port_of(taken))


def test_port_stays_ours_until_the_process_answers_on_it(tmp_path: Path) -> None:
    """Nobody can bind it meanwhile, and it is free again once the process has ended."""
    with listen_nearby(0) as listening:
        port = port_of(listening)
        with pytest.raises(PipelineError):
            listen(HOST, port)
        answer = (
            "import socket, sys\nserver = socket.socket(fileno=int(sys.argv[1]))\n"
            "client, _ = server.accept()\nclient.sendall(b'here')"
        )
        command = [sys.executable, "-c", answer, str(listening.fileno())]
        process = SupervisedProcess(command, os.environ, tmp_path, None, listening)
    with process, socket.create_connection((HOST, port)) as client:
        assert client.recv(10) == b"here"
        client.close()
        assert process.wait(30) == 0
    listen(HOST, port).close()


def test_webserver_takes_over_the_socket_that_the_command_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], socket.socket]] = []

    def start(command: list[str], _: object, __: Path, ___: object, listening: socket.socket) -> None:
        started.append((command, listening.dup()))

    monkeypatch.setattr("trajectory_pipeline.cli.dagster_processes.SupervisedProcess", start)
    with listen_nearby(0) as listening:
        handed, port = str(listening.fileno()), port_of(listening)
        start_webserver({}, tmp_path / "workspace.yaml", listening, None)
        assert listening.fileno() == -1, "only the webserver has it now"
    ((command, copy),) = started
    with copy:
        assert command[command.index("--fd") + 1] == handed
        assert port_of(copy) == port


def test_shared_workspace_has_every_entry_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text(
        "load_from:\n"
        "  - python_module: {module_name: trajectory_pipeline.definitions, location_name: trajectory_pipeline}\n"
        "  - python_file: {relative_path: mine.py, location_name: mine, executable_path: /opt/python}\n"
        "  - grpc_server: {host: elsewhere, port: 4266, location_name: remote}\n"
    )
    with shared_workspace(workspace) as shared:
        entries = [one["grpc_server"] for one in json.loads(shared.file.read_text())["load_from"]]
        assert [one["location_name"] for one in entries] == ["trajectory_pipeline", "mine", "remote"]
        assert (entries[2]["host"], entries[2]["port"]) == ("elsewhere", 4266)
        ours, mine = shared.code_servers
        for command, entry in zip((ours, mine), entries, strict=False):
            assert command[command.index("--socket") + 1] == entry["socket"]
            assert command[command.index("--location-name") + 1] == entry["location_name"]
        assert ours[0] == sys.executable
        assert "trajectory_pipeline.definitions" in ours
        assert mine[0] == "/opt/python"
        assert mine[mine.index("-f") + 1] == str(tmp_path / "mine.py")


@pytest.mark.parametrize("text", ["", "load_from: [", "load_from:\n  - python_modul: x\n"])
def test_workspace_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text(text)
    words = r"Dagster cannot read .*workspace\.yaml: .*Correct the file"
    with pytest.raises(SettingsError, match=words), shared_workspace(workspace):
        pass


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
