"""Starts the server and its watchdog, the two processes that outlive a call."""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trajectory_pipeline.demo.embedded_postgres import cluster, locks, placement
from trajectory_pipeline.demo.embedded_postgres.account import Account, environment
from trajectory_pipeline.demo.embedded_postgres.postmaster import Postmaster
from trajectory_pipeline.errors import EmbeddedPostgresError
from trajectory_pipeline.runtime import private_files

if TYPE_CHECKING:
    import psycopg

HOST = "127.0.0.1"
LOG = "server.log"
OLD_LOG = "server.log.1"
PORT = "port"

_DEFAULTS = {
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "trajectory-pipeline",
    # A line every few minutes, for good: the log is rotated only when the server starts.
    "log_checkpoints": "off",
    # For passwords that people choose; our own was created with fewer rounds (``cluster``).
    "scram_iterations": "4096",
}

_WATCHDOG = "trajectory_pipeline.demo.embedded_postgres.watchdog"
# What Python may need to start in the same way again.
_PYTHON_VARIABLES = ("PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")

_LOG_LIMIT_BYTES = 10_000_000
_LOG_END_LINES = 12
_POLL_SECONDS = 0.02
_REPORT_AFTER_SECONDS = 2.0
_MAX_PORTS = 5
# On the same machine, a longer wait means that the server hangs.
_CONNECT_TIMEOUT_SECONDS = 3


def ensure_watchdog(folder: Path, data: Path, log: int) -> None:
    """Start a watchdog unless there is one; returns when it is watching.

    Raises:
        EmbeddedPostgresError: it cannot be started, or exits.
    """
    for _ in range(3):  # it exits at once if another process is testing its lock
        if locks.is_held_exclusively(folder / locks.WATCHDOG):
            return
        _launch_watchdog(folder, data, log)
    if not locks.is_held_exclusively(folder / locks.WATCHDOG):
        raise EmbeddedPostgresError(
            f"The watchdog of the embedded Postgres in {folder} exits at once. See the end of {folder / LOG}."
        )


def _launch_watchdog(folder: Path, data: Path, log: int) -> None:
    package_root = Path(__file__).resolve().parents[3]
    inherited = {name: os.environ[name] for name in _PYTHON_VARIABLES if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-m", _WATCHDOG, str(folder), str(data)],
        env={**environment(), **inherited, "PYTHONPATH": str(package_root)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        check=False,
    )
    if result.returncode != 0:
        raise EmbeddedPostgresError(
            f"The watchdog of the embedded Postgres in {folder} could not be started ({sys.executable} ended with exit "
            f"code {result.returncode}). See the end of {folder / LOG}."
        )


class Launch:
    """One call's attempts to start the server; the caller holds ``start.lock``."""

    def __init__(
        self,
        folder: Path,
        existing: cluster.Cluster,
        account: Account,
        settings: Mapping[str, str],
        *,
        postmaster: Postmaster,
        log: IO[bytes],
    ) -> None:
        self._folder = folder
        self._cluster = existing
        self._account = account
        self._settings = settings
        self._postmaster = postmaster
        self._log = log
        self._log_offset = log.seek(0, os.SEEK_END)
        self._attempts = 0

    def until_ready(self, report: Callable[[str], None], *, timeout: float) -> tuple[int, str]:
        """Start the server unless it runs, wait until it accepts a connection, and return its port and password."""
        started = time.monotonic()
        reported = False
        error: str | None = "it has not reported that it is ready"
        while True:
            self._launch_unless_alive()
            pid_file = self._postmaster.pid_file()
            if pid_file and pid_file.ready:
                error = connection_error(pid_file.port, self._cluster.password)
                if error is None:
                    private_files.write_text(self._folder / PORT, str(pid_file.port))
                    return pid_file.port, self._cluster.password
            self._postmaster.kill_orphans()
            waited = time.monotonic() - started
            if waited > _REPORT_AFTER_SECONDS and not reported:
                report("Waiting for the embedded Postgres to become ready ...")
                reported = True
            if waited > timeout:
                raise EmbeddedPostgresError(
                    f"The embedded Postgres in {self._cluster.root} was not ready after {timeout:g} s: {error}. If "
                    "the folder is shared with another container or machine, stop the server there. The end of its "
                    f"log ({self._folder / LOG}):\n{self._log_end()}"
                )
            time.sleep(_POLL_SECONDS)

    def _launch_unless_alive(self) -> None:
        lock = locks.Lock(self._folder / locks.SERVER)
        try:
            if lock.take(fcntl.LOCK_EX):
                if self._attempts and not (self._port_was_taken() and self._attempts < _MAX_PORTS):
                    raise EmbeddedPostgresError(
                        f"The embedded Postgres in {self._cluster.root} does not start. The end of its log "
                        f"({self._folder / LOG}):\n{self._log_end()}"
                    )
                self._launch(lock)
                self._attempts += 1
        finally:
            lock.drop()

    def _launch(self, lock: locks.Lock) -> None:
        found = self._postmaster.pid_file()
        ours = found and found.data == str(self._cluster.data)
        if found and ours and connection_error(found.port, self._cluster.password) is None:
            raise EmbeddedPostgresError(
                f"A server that was started by hand runs on {self._cluster.data} (process {found.pid}). Stop it "
                f"first: kill -INT {found.pid}"
            )
        self._postmaster.delete_pid_file()
        _, programs = placement.choose(self._folder, self._account)
        fixed = {"port": str(self._port()), "listen_addresses": HOST, "unix_socket_directories": ""}
        options = {**_DEFAULTS, **self._settings, **fixed}
        # The shell exits at once and init inherits (and reaps) the server: no zombie remains with a long-lived owner.
        # The lock is passed on: every process of the server holds it while it lives.
        self._account.run(
            "/bin/sh",
            "-c",
            '"$@" &',
            "sh",
            programs.program("postgres"),
            "-D",
            self._cluster.data,
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            pass_fds=[lock.descriptor],
        )

    def _port(self) -> int:
        """Return the port used last, so that URLs stay valid, or else any free one."""
        previous = self._folder / PORT
        if self._attempts == 0 and previous.is_file():
            with contextlib.suppress(OSError, ValueError, OverflowError):
                return _free_port(int(private_files.read_text(previous)))
        return _free_port(0)

    def _port_was_taken(self) -> bool:
        return b"could not bind" in self._logged()

    def _log_end(self) -> str:
        """Return the last lines that the server logged since this launch began."""
        lines = self._logged().decode("utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_LOG_END_LINES:])

    def _logged(self) -> bytes:
        return (self._folder / LOG).read_bytes()[self._log_offset :]


def _free_port(port: int) -> int:
    """Return the port if it is free (0: any free one), or raise ``OSError``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])


def connect(port: int, password: str) -> "psycopg.Connection[Any]":
    """Connect as the superuser, in autocommit mode; raises ``psycopg.Error``."""
    # Imported here because the long-lived watchdog loads this package and needs no database driver.
    import psycopg

    # Everything that libpq would otherwise take from the user's PG* variables.
    return psycopg.connect(
        host=HOST,
        hostaddr=HOST,
        port=port,
        user=cluster.USER,
        password=password,
        dbname="postgres",
        sslmode="disable",
        gssencmode="disable",
        channel_binding="disable",
        target_session_attrs="any",
        options="",
        client_encoding="utf8",
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        application_name="trajectory_pipeline.demo.embedded_postgres",
        autocommit=True,
    )


def connection_error(port: int, password: str) -> str | None:
    """Return why the server on that port refuses a connection, None if it accepts one."""
    import psycopg

    try:
        connect(port, password).close()
    except psycopg.Error as error:
        return str(error).strip()
    return None


def open_log(folder: Path) -> IO[bytes]:
    """Open the log to append to it; a large one is renamed first."""
    path = folder / LOG
    # A running server continues to write into the renamed file.
    if path.is_file() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(folder / OLD_LOG)
    return private_files.open_log(path)
