"""Starting the two kinds of processes that outlive a call: the server and its watchdog.

Belongs here: bringing them up, and asking the server whether it lets us in. Does not belong here: the cluster it runs
on (``cluster``), and everything after (``server``, ``postmaster``).
"""

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
    # Of passwords that people choose; our own was made with fewer rounds (``cluster``).
    "scram_iterations": "4096",
}

_WATCHDOG = "trajectory_pipeline.demo.embedded_postgres.watchdog"
# What Python itself may need to start again as it was started.
_PYTHON_VARIABLES = ("PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")

_LOG_LIMIT_BYTES = 10_000_000
_LOG_END_LINES = 12
_POLL_SECONDS = 0.02
_SILENT_SECONDS = 2.0
_PORTS_TRIED = 5
# On the same machine: more means that the server hangs, and somebody waits for us to say so.
_CONNECT_SECONDS = 3


def ensure_watchdog(folder: Path, data: Path, log: int) -> None:
    """Start a watchdog unless there is one; when this returns, it watches."""
    for _ in range(3):  # it gives up at once if somebody happens to be looking at its lock
        if locks.is_held_alone(folder / locks.WATCHDOG):
            return
        _launch(folder, data, log)
    if not locks.is_held_alone(folder / locks.WATCHDOG):
        raise EmbeddedPostgresError(
            f"The watchdog of the embedded Postgres in {folder} does not stay. The end of {folder / LOG} says why."
        )


def _launch(folder: Path, data: Path, log: int) -> None:
    package_root = Path(__file__).resolve().parents[3]
    kept = {name: os.environ[name] for name in _PYTHON_VARIABLES if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", _WATCHDOG, str(folder), str(data)],
        env={**environment(), **kept, "PYTHONPATH": str(package_root)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0:
        raise EmbeddedPostgresError(
            f"The watchdog of the embedded Postgres in {folder} could not be started ({sys.executable} ended with "
            f"{done.returncode}). The end of {folder / LOG} says why."
        )


class Launch:
    """The attempts of one call to get the server up; the caller holds ``start.lock``."""

    def __init__(
        self,
        folder: Path,
        whole: cluster.Cluster,
        account: Account,
        settings: Mapping[str, str],
        *,
        postmaster: Postmaster,
        log: IO[bytes],
    ) -> None:
        self._folder = folder
        self._cluster = whole
        self._account = account
        self._settings = settings
        self._postmaster = postmaster
        self._log = log
        self._log_begin = log.seek(0, os.SEEK_END)
        self._tries = 0

    def until_ready(self, tell: Callable[[str], None], *, timeout: float) -> tuple[int, str]:
        """Launch the server unless it runs, wait until it lets us in, and return its port and password."""
        begun = time.monotonic()
        told = False
        refused: str | None = "it has not said yet that it is ready"
        while True:
            self._if_none_is_alive()
            stated = self._postmaster.pid_file()
            if stated and stated.ready:
                refused = refusal(stated.port, self._cluster.password)
                if refused is None:
                    (self._folder / PORT).write_text(str(stated.port), encoding="ascii")
                    return stated.port, self._cluster.password
            self._postmaster.end_orphans()
            waited = time.monotonic() - begun
            if waited > _SILENT_SECONDS and not told:
                tell("Waiting for the embedded Postgres to become ready ...")
                told = True
            if waited > timeout:
                raise EmbeddedPostgresError(
                    f"The embedded Postgres in {self._cluster.root} was not ready after {timeout:g} s: {refused}. If "
                    "the folder is shared with another container or machine, stop the server there. The end of its "
                    f"log ({self._folder / LOG}):\n{self._log_end()}"
                )
            time.sleep(_POLL_SECONDS)

    def _if_none_is_alive(self) -> None:
        lock = locks.Lock(self._folder / locks.SERVER)
        try:
            if lock.take(fcntl.LOCK_EX):
                if self._tries and not (self._port_was_taken() and self._tries < _PORTS_TRIED):
                    raise EmbeddedPostgresError(
                        f"The embedded Postgres in {self._cluster.root} does not start. The end of its log "
                        f"({self._folder / LOG}):\n{self._log_end()}"
                    )
                self._launch(lock)
                self._tries += 1
        finally:
            lock.drop()

    def _launch(self, lock: locks.Lock) -> None:
        stated = self._postmaster.pid_file()
        if stated and stated.data == str(self._cluster.data) and refusal(stated.port, self._cluster.password) is None:
            raise EmbeddedPostgresError(
                f"A server that was started by hand runs on {self._cluster.data} (process {stated.pid}). Stop it "
                f"first: kill -INT {stated.pid}"
            )
        self._postmaster.delete_pid_file()
        _, programs = placement.choose(self._folder, self._account)
        fixed = {"port": str(self._port()), "listen_addresses": HOST, "unix_socket_directories": ""}
        options = {**_DEFAULTS, **self._settings, **fixed}
        # The shell ends at once, and init inherits (and reaps) the server: no zombie stays with a long-lived owner.
        # The lock goes along: every process of the server holds it for as long as it lives.
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
        """Choose the port used last, so that URLs stay valid, or else any that is free."""
        before = self._folder / PORT
        if self._tries == 0 and before.is_file():
            with contextlib.suppress(OSError, ValueError, OverflowError):
                return _bound(int(before.read_text(encoding="ascii")))
        return _bound(0)

    def _port_was_taken(self) -> bool:
        return b"could not bind" in self._logged()

    def _log_end(self) -> str:
        """Return what the server logged since this launch began, its last lines."""
        lines = self._logged().decode("utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_LOG_END_LINES:])

    def _logged(self) -> bytes:
        return (self._folder / LOG).read_bytes()[self._log_begin :]


def _bound(port: int) -> int:
    """Return the port if it is free (0: any free one), or raise ``OSError``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])


def connect(port: int, password: str) -> "psycopg.Connection[Any]":
    """Connect as the superuser, in autocommit mode; raises ``psycopg.Error``."""
    # Here, because the watchdog loads this package and lives long: it needs no database driver.
    import psycopg

    # All that libpq would otherwise take from the user's PG* variables.
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
        connect_timeout=_CONNECT_SECONDS,
        application_name="trajectory_pipeline.demo.embedded_postgres",
        autocommit=True,
    )


def refusal(port: int, password: str) -> str | None:
    """Say why the server on that port does not let us in, or ``None`` if it does."""
    import psycopg

    try:
        connect(port, password).close()
    except psycopg.Error as error:
        return str(error).strip()
    return None


def open_log(folder: Path) -> IO[bytes]:
    """Open the log to append to it; a large one is put aside first."""
    path = folder / LOG
    # A server that runs goes on writing into the renamed file.
    if path.is_file() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(folder / OLD_LOG)
    return path.open("ab")
