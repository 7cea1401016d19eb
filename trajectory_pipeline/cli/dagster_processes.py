"""Dagster's home and its processes, as this project uses them.

Belongs here: where Dagster's instance lives, and starting its UI and daemon. Does not belong here: the definitions.
"""

import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trajectory_pipeline.cli.subprocesses import SupervisedProcess
from trajectory_pipeline.errors import PipelineError, SettingsError
from trajectory_pipeline.urls import describe_postgres, normalize_postgres_url

HOST = "127.0.0.1"
DEFAULT_PORT = 3000
_READY_SECONDS = 180
_CONNECT_SECONDS = 10


def project_folder() -> Path:
    """Return the folder that holds ``workspace.yaml`` and ``dagster.yaml``: the working directory, else the checkout.

    Raises:
        PipelineError: neither does.
    """
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / "workspace.yaml").is_file() and (folder / "dagster.yaml").is_file():
            return folder
    raise PipelineError(
        f"Neither {Path.cwd()} nor the place of this package holds workspace.yaml and dagster.yaml: run this in the"
        " project's folder."
    )


def dagster_home(data_folder: Path) -> Path:
    """Return Dagster's home: ``DAGSTER_HOME`` where it is set, else a folder of ours that links to ``dagster.yaml``.

    Raises:
        SettingsError: ``DAGSTER_HOME`` is no folder with a ``dagster.yaml``.
    """
    given = os.environ.get("DAGSTER_HOME")
    if given:
        home = Path(given)
        if not home.is_absolute() or not (home / "dagster.yaml").is_file():
            raise SettingsError(
                f"DAGSTER_HOME is {given!r}, which is not the absolute path of a folder with a dagster.yaml: copy the"
                " project's dagster.yaml there, or unset it."
            )
        return home
    home = data_folder.absolute() / "dagster"
    link = home / "dagster.yaml"
    try:
        home.mkdir(parents=True, exist_ok=True)
        wanted = project_folder() / "dagster.yaml"
        if not link.is_symlink() or link.readlink() != wanted:
            link.unlink(missing_ok=True)
            link.symlink_to(wanted)
    except OSError as error:
        raise SettingsError(
            f"{home} cannot be written: {error.strerror}. Set TRAJECTORY_DATA_FOLDER to a folder of this user."
        ) from error
    return home


def prepare_storage(home: Path, url: str) -> None:
    """Make Dagster's tables, before several processes want them at once.

    Args:
        home: Dagster's home.
        url: of its storage, as Dagster takes it.

    Raises:
        SettingsError: the storage cannot be reached.
    """
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["DAGSTER_PG_URL"] = url
    import dagster as dg
    import psycopg

    try:
        # Dagster itself would try for eleven seconds, and say less.
        psycopg.connect(normalize_postgres_url(url), connect_timeout=_CONNECT_SECONDS).close()
        with dg.DagsterInstance.get() as instance:
            instance.get_runs_count()
    except Exception as error:
        first = " ".join(str(error.__cause__ or error).split())[:300]
        raise SettingsError(
            f"Dagster's storage at {describe_postgres(url)} cannot be used: {first}. Check DAGSTER_PG_URL."
        ) from error


def free_port(wanted: int) -> int:
    """Return the wanted port if it is free, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise PipelineError("No port is free on 127.0.0.1.")  # pragma: no cover


def start_webserver(environment: Mapping[str, str], port: int, log: Path | None) -> SupervisedProcess:
    """Start the Dagster UI on this project."""
    return _start(["dagster_webserver", "-h", HOST, "-p", str(port)], environment, log)


def start_daemon(environment: Mapping[str, str], log: Path | None) -> SupervisedProcess:
    """Start Dagster's daemon, which runs schedules, sensors, the run queue and backfills, on this project."""
    return _start(["dagster._daemon", "run"], environment, log)


def _start(arguments: list[str], environment: Mapping[str, str], log: Path | None) -> SupervisedProcess:
    folder = project_folder()
    module, *rest = arguments
    command = [sys.executable, "-W", "ignore", "-m", module, *rest, "-w", str(folder / "workspace.yaml")]
    return SupervisedProcess(command, environment, folder, log)


def wait_until_ready(process: SupervisedProcess, port: int, log: Path | None, tell: Callable[[float], None]) -> None:
    """Wait until the UI answers and has loaded the definitions.

    Args:
        process: that is starting.
        port: where it will answer.
        log: where its output goes, to be named if it fails.
        tell: is told the seconds waited, about once a second.

    Raises:
        PipelineError: it ended, or does not answer in three minutes.
    """
    began = time.monotonic()
    where = f"; see {log}" if log else ""
    while time.monotonic() - began < _READY_SECONDS:
        if process.exit_code is not None:
            raise PipelineError(f"Dagster ended with exit code {process.exit_code} while starting{where}.")
        if _loaded(port):
            return
        tell(time.monotonic() - began)
        time.sleep(0.5)
    raise PipelineError(f"Dagster did not answer on {HOST}:{port} within {_READY_SECONDS} s{where}.")


def wait_for_daemon(port: int, tell: Callable[[float], None]) -> None:
    """Wait until the daemon that runs sensors has reported itself healthy.

    Raises:
        PipelineError: it has not in three minutes.
    """
    began = time.monotonic()
    query = '{ instance { daemonHealth { daemonStatus(daemonType: "SENSOR") { healthy } } } }'
    while time.monotonic() - began < _READY_SECONDS:
        answer: Any = graphql(port, query)
        if answer and answer["data"]["instance"]["daemonHealth"]["daemonStatus"]["healthy"]:
            return
        tell(time.monotonic() - began)
        time.sleep(0.5)
    raise PipelineError(f"Dagster's daemon did not become healthy within {_READY_SECONDS} s.")


def _loaded(port: int) -> bool:
    query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
    answer: Any = graphql(port, query)
    return bool(answer and answer.get("data", {}).get("repositoriesOrError", {}).get("nodes"))


def skip_welcome(port: int) -> None:
    """Tell a fresh UI that its welcome dialog was seen: it would cover the asset graph."""
    graphql(port, "mutation { setNuxSeen }")


def graphql(port: int, query: str) -> dict[str, Any] | None:
    """Ask the UI's GraphQL endpoint; None where there is no (readable) answer."""
    request = urllib.request.Request(
        f"http://{HOST}:{port}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            value = json.load(answer)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
