"""Dagster's home folder, storage and processes: prepared, started, awaited and stopped."""

import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from trajectory_pipeline.cli.console import step
from trajectory_pipeline.cli.listening import HOST, PORT, port_of
from trajectory_pipeline.cli.shared_workspace import SharedWorkspace
from trajectory_pipeline.cli.subprocesses import SupervisedProcess, stop_all
from trajectory_pipeline.errors import PipelineError, SettingsError
from trajectory_pipeline.runtime.private_files import make_folder, other_writer
from trajectory_pipeline.urls import describe_postgres, hide_credentials, normalize_postgres_url

_READY_TIMEOUT_SECONDS = 360
_CONNECT_TIMEOUT_SECONDS = 10
_LOG_LIMIT_BYTES = 10_000_000
_LOCATION = "trajectory_pipeline"
_PYTHON = (sys.executable, "-W", "ignore", "-m")
_EVENT_BATCH_SIZE = ("DAGSTER_EVENT_BATCH_SIZE", "100")
"""Makes Dagster store events in batches. One by one, they would take most of the time of a range."""
_READY_QUERY = """{
  repositoriesOrError { ... on RepositoryConnection { nodes { name } } }
  instance { daemonHealth { daemonStatus(daemonType: "SENSOR") { healthy } } }
}"""

port_option = click.option(
    "--port",
    default=3000,
    show_default=True,
    type=PORT,
    help="Port of the Dagster UI; if it is in use, a free one is chosen.",
)


def project_folder() -> Path:
    """Return the folder with ``workspace.yaml`` and ``dagster.yaml``: the working directory, else the checkout.

    Raises:
        PipelineError: neither has them.
    """
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / "workspace.yaml").is_file() and (folder / "dagster.yaml").is_file():
            return folder
    raise PipelineError(
        f"Neither {Path.cwd()} nor the folder of this package has workspace.yaml and dagster.yaml: run the command in"
        " the project's folder."
    )


def dagster_home(data_folder: Path) -> Path:
    """Return Dagster's home: ``DAGSTER_HOME`` if set, else a folder that links to ``dagster.yaml``.

    Raises:
        SettingsError: ``DAGSTER_HOME`` is not a folder with a ``dagster.yaml``, or the folder cannot be written.
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
    if problem := other_writer(data_folder):
        raise SettingsError(
            f"{data_folder.absolute()} cannot be used: {problem}, who could redirect what is written there. Run as its"
            " owner, or set TRAJECTORY_DATA_FOLDER to a folder of this user alone."
        )
    home = data_folder.absolute() / "dagster"
    link = home / "dagster.yaml"
    try:
        data_folder.mkdir(parents=True, exist_ok=True)
        make_folder(home)
        target = project_folder() / "dagster.yaml"
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    except OSError as error:
        raise SettingsError(
            f"{home} cannot be written: {error.strerror}. Set TRAJECTORY_DATA_FOLDER to a folder that this user owns."
        ) from error
    return home


def prepare_storage(home: Path, url: str) -> None:
    """Create Dagster's tables before several processes try to, and set ``DAGSTER_HOME`` and ``DAGSTER_PG_URL``.

    Raises:
        SettingsError: the storage at this URL, in SQLAlchemy's form, cannot be reached.
    """
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["DAGSTER_PG_URL"] = url
    os.environ.setdefault(*_EVENT_BATCH_SIZE)
    import dagster as dg
    import psycopg

    try:
        # Dagster itself would retry for eleven seconds, and report less.
        psycopg.connect(normalize_postgres_url(url), connect_timeout=_CONNECT_TIMEOUT_SECONDS).close()
        with dg.DagsterInstance.get() as instance:
            instance.get_runs_count()
    except Exception as error:
        cause = hide_credentials(" ".join(str(error.__cause__ or error).split()), url)[:300]
        raise SettingsError(
            f"Dagster's storage at {describe_postgres(url)} cannot be used: {cause}. Check DAGSTER_PG_URL."
        ) from None


def start_code_servers(
    environment: Mapping[str, str], workspace: SharedWorkspace, log: Path | None
) -> list[SupervisedProcess]:
    """Start the code servers of a shared workspace; they execute runs, too."""
    return [_start(command, environment, log) for command in workspace.code_servers]


def start_webserver(
    environment: Mapping[str, str], workspace: Path, listening: socket.socket, log: Path | None
) -> SupervisedProcess:
    """Start the Dagster UI on a workspace, guarded against web pages, and hand it the socket to answer on."""
    served = ["--fd", str(listening.fileno()), "-h", HOST, "-p", str(port_of(listening)), "-w", str(workspace)]
    with listening:
        return _start([*_PYTHON, "trajectory_pipeline.cli.webserver", *served], environment, log, listening)


def start_daemon(environment: Mapping[str, str], workspace: Path, log: Path | None) -> SupervisedProcess:
    """Start Dagster's daemon, which runs schedules, sensors, the run queue and backfills, on a workspace."""
    return _start([*_PYTHON, "dagster._daemon", "run", "-w", str(workspace)], environment, log)


def _start(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None,
    listening: socket.socket | None = None,
) -> SupervisedProcess:
    environment = dict([_EVENT_BATCH_SIZE]) | dict(environment)
    return SupervisedProcess(command, environment, project_folder(), log, listening)


def wait_until_ready(webserver: SupervisedProcess, port: int, log: Path, report: Callable[[str], None]) -> None:
    """Wait until the UI has loaded the definitions and the daemon that runs sensors has reported itself healthy.

    Raises:
        PipelineError: the webserver ended, or this took more than six minutes; the text names the log.
    """
    loaded = False
    started = time.monotonic()
    while (seconds := time.monotonic() - started) < _READY_TIMEOUT_SECONDS:
        if webserver.exit_code is not None:
            raise PipelineError(f"Dagster ended with exit code {webserver.exit_code} while starting; see {log}.")
        data: Any = (graphql(port, _READY_QUERY) or {}).get("data") or {}
        loaded = bool(data and data["repositoriesOrError"].get("nodes"))
        if loaded and data["instance"]["daemonHealth"]["daemonStatus"]["healthy"]:
            return
        report(f"starting {'the daemon' if loaded else 'the UI'}, {seconds:.0f} s")
        time.sleep(0.5)
    problem = "Dagster's daemon was not healthy" if loaded else f"Dagster did not answer on {HOST}:{port}"
    raise PipelineError(f"{problem} within {_READY_TIMEOUT_SECONDS} s; see {log}.")


def run_until_interrupted(processes: Sequence[SupervisedProcess], log: Path | None = None) -> int | None:
    """Wait for Ctrl-C or for a process to end, and keep their log short.

    Returns the highest exit code, None after Ctrl-C.
    """
    try:
        while all(process.exit_code is None for process in processes):
            if log is not None:
                shorten_log(log)
            time.sleep(1)
    except KeyboardInterrupt:
        return None
    return max(process.exit_code or 0 for process in processes)


def shorten_log(log: Path) -> None:
    """Move what a large log holds to ``NAME.1``, in place of what is there; its writers append to the same file."""
    if log.stat().st_size > _LOG_LIMIT_BYTES:
        shutil.copy(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


@contextmanager
def stopping(processes: Sequence[SupervisedProcess]) -> Iterator[None]:
    """Stop the processes at the end of the block, those included that were added to the list meanwhile."""
    try:
        yield
    finally:
        # A second Ctrl-C would leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with step("Stopping Dagster"):
            stop_all(processes)


def assets_page(port: int) -> str:
    """Return the address of the page with the graph of the assets."""
    return f"http://{HOST}:{port}/locations/{_LOCATION}/asset-groups/trajectories"


def graphql(port: int, query: str) -> dict[str, Any] | None:
    """Query the UI's GraphQL endpoint; None without a readable answer."""
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
