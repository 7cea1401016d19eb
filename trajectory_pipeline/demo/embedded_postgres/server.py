"""Starts, finds and removes an embedded server."""

import contextlib
import errno
import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote

from trajectory_pipeline.demo.embedded_postgres import binaries, cluster, launch, locks, placement
from trajectory_pipeline.demo.embedded_postgres.account import account_for, user_name
from trajectory_pipeline.demo.embedded_postgres.postmaster import Postmaster
from trajectory_pipeline.errors import EmbeddedPostgresError
from trajectory_pipeline.runtime.private_files import other_writer

_POLL_SECONDS = 0.02
# Another process may be creating the cluster, or the watchdog may be stopping the previous server.
_LOCK_TIMEOUT_SECONDS = 150.0
_RELEASE_TIMEOUT_SECONDS = 30.0
_WATCHDOG_EXIT_SECONDS = 2.0


@dataclass(frozen=True)
class EmbeddedServer:
    """An embedded server that runs at least until ``release`` is called or the process ends.

    >>> with start(Path("data/postgres")) as server:  # doctest: +SKIP
    ...     server.ensure_database("letta")
    ...     psycopg.connect(server.url("letta"))
    """

    folder: Path
    port: int
    password: str = field(repr=False)
    host: str = launch.HOST
    user: str = cluster.USER
    _hold: locks.Lock | None = field(default=None, repr=False, compare=False)

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.folder / launch.LOG

    def url(self, database: str) -> str:
        """Return the URL of a database; it stays the same over restarts while the port is free."""
        return f"postgresql://{self.user}:{quote(self.password)}@{self.host}:{self.port}/{quote(database, safe='')}"

    def ensure_database(self, name: str) -> None:
        """Create a database unless it exists."""
        import psycopg
        from psycopg import sql

        try:
            with launch.connect(self.port, self.password) as connection:
                if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount == 0:
                    # Another process may create it at the same time.
                    with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.Error as error:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {self.folder} (port {self.port}) could not create the database {name!r}: "
                f"{str(error).strip()}. See its log: {self.log}"
            ) from error

    def release(self) -> None:
        """Stop using the server; the last user waits (30 s at most) until it is down.

        Has no effect when called again, or in a forked child.
        """
        if self._hold is None or not self._hold.drop():
            return
        deadline = time.monotonic() + _RELEASE_TIMEOUT_SECONDS
        with _os_errors_explained(self.folder):
            while time.monotonic() < deadline and not locks.is_shared(self.folder / locks.IN_USE):
                watched = locks.is_held_exclusively(self.folder / locks.WATCHDOG)
                if locks.is_held_exclusively(self.folder / locks.SERVER):
                    found = cluster.find(self.folder)
                    if not watched and found:  # it was killed: start another
                        with launch.open_log(self.folder) as log:
                            launch.ensure_watchdog(self.folder, found.data, log.fileno())
                elif not watched:
                    return
                time.sleep(_POLL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def start(
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
    report: Callable[[str], None] | None = None,
    timeout: float = 60.0,
) -> EmbeddedServer:
    """Start the server of ``folder``, or join the running one, and hold it until ``release``.

    Args:
        folder: for the cluster, which the first call creates.
        settings: Postgres settings by name; used only if this call starts the server.
        report: called with a sentence about what may take more than two seconds.
        timeout: seconds for the server to become ready.

    Raises:
        EmbeddedPostgresError: it cannot be started; the text says why and what to do.
    """
    if problem := other_writer(folder.expanduser()):
        raise EmbeddedPostgresError(
            f"The embedded Postgres cannot be in {folder}: {problem}, who could redirect what is written there. Run as"
            " the folder's owner, make it and the folders above writable by the owner alone, or choose another folder"
            " (TRAJECTORY_DATA_FOLDER)."
        )
    folder = placement.resolve(folder)
    report = report or (lambda _: None)
    with (
        _os_errors_explained(folder),
        _start_lock(folder, lambda: report("Waiting for another process to start or stop it ...")),
    ):
        placement.check_note(folder)
        hold = locks.acquire(folder / locks.IN_USE, fcntl.LOCK_SH, timeout=_LOCK_TIMEOUT_SECONDS)
        try:
            port, password = _bring_up(folder, dict(settings or {}), report, timeout)
        except BaseException:
            hold.drop()
            raise
        return EmbeddedServer(folder, port, password, _hold=hold)


def running(folder: Path) -> EmbeddedServer | None:
    """Return the server of ``folder`` if it runs and accepts connections; neither starts nor holds it."""
    folder = placement.resolve(folder)
    with _os_errors_explained(folder):
        found = cluster.find(folder)
        if found is None or not locks.is_held_exclusively(folder / locks.SERVER):
            return None
        with contextlib.closing(Postmaster(folder, found.data)) as postmaster:
            pid_file = postmaster.pid_file()
        if pid_file is None or not pid_file.ready or launch.connection_error(pid_file.port, found.password):
            return None
        return EmbeddedServer(folder, pid_file.port, found.password)


def remove(folder: Path) -> None:
    """Stop the server of ``folder`` and delete its files, wherever they are stored; other files in ``folder`` stay.

    Raises:
        EmbeddedPostgresError: the server is in use, or does not stop.
    """
    folder = placement.resolve(folder)
    parents = placement.parents(folder)
    if not any(parent.exists() for parent in parents):
        return
    with _os_errors_explained(folder), contextlib.ExitStack() as stack:
        with _start_lock(folder):
            if locks.is_shared(folder / locks.IN_USE):
                raise EmbeddedPostgresError(
                    f"The embedded Postgres in {folder} is in use and is not removed. Stop what uses it first; find "
                    f"it with: fuser -v {shlex.quote(str(folder / locks.IN_USE))}"
                )
            watchdog_lock = locks.open_file(folder / locks.WATCHDOG)
            stack.callback(os.close, watchdog_lock)
            found = cluster.find(folder)
            if found:
                with contextlib.closing(Postmaster(folder, found.data)) as postmaster:
                    if not postmaster.stop():
                        raise EmbeddedPostgresError(
                            f"The embedded Postgres in {folder} does not stop, even after SIGKILL. Check its disk."
                        )
            for parent in parents:
                _delete_files(parent)
            placement.remove_empty_bases()
        # The watchdog, if there was one, is about to exit.
        deadline = time.monotonic() + _WATCHDOG_EXIT_SECONDS
        while locks.held_exclusively(watchdog_lock) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _bring_up(
    folder: Path, settings: Mapping[str, str], report: Callable[[str], None], timeout: float
) -> tuple[int, str]:
    """Start the server from whatever state it is in, and return its port and password."""
    found = cluster.find(folder)
    account = account_for(found.data if found else None)
    if found is None:
        parent, programs = placement.choose(folder, account)
        placement.write_note(folder, parent)
        found = cluster.create(parent, programs, account, sync=settings.get("fsync") != "off", report=report)
    found.check_version()
    with launch.open_log(folder) as log, contextlib.closing(Postmaster(folder, found.data)) as postmaster:
        # Before the server, which must never run without one.
        launch.ensure_watchdog(folder, found.data, log.fileno())
        attempt = launch.Launch(folder, found, account, settings, postmaster=postmaster, log=log)
        return attempt.until_ready(report, timeout=timeout)


@contextlib.contextmanager
def _start_lock(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold ``start.lock``; the folder is created if absent."""
    while True:
        placement.make_folder(folder)
        try:
            lock = locks.acquire(folder / locks.START, fcntl.LOCK_EX, timeout=_LOCK_TIMEOUT_SECONDS, waiting=waiting)
        except FileNotFoundError:  # removed by another process while this one waited
            continue
        break
    try:
        yield
    finally:
        lock.drop()


def _delete_files(parent: Path) -> None:
    """Delete what this package created in ``parent``, and the folder if it is then empty."""
    for pattern in (placement.CLUSTER, cluster.UNFINISHED, binaries.COPIES):
        for tree in parent.glob(pattern):
            shutil.rmtree(tree)
    for name in (launch.LOG, launch.OLD_LOG, launch.PORT, placement.NOTE, *locks.ALL):
        (parent / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # absent, or it holds other files
        parent.rmdir()


@contextlib.contextmanager
def _os_errors_explained(folder: Path) -> Iterator[None]:
    """Turn errors of the system into errors that say what to do."""
    try:
        yield
    except PermissionError as error:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
        raise EmbeddedPostgresError(
            f"The embedded Postgres in {folder} cannot be used by the user {user_name(os.geteuid())}: "
            f"{error.strerror}: {path} ({_ownership(path)}). Run as that user, have that user (or root) delete "
            f"{folder}, or choose another folder."
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {folder} cannot be used: {error.filename} is a link, and links there are not"
                " followed. Remove it, or choose another folder."
            ) from error
        raise EmbeddedPostgresError(
            f"The embedded Postgres in {folder} cannot be used: {error}. Fix this (is the disk full, or read-only?) "
            "or choose another folder."
        ) from error


def _ownership(path: Path) -> str:
    for existing in (path, *path.parents):
        with contextlib.suppress(OSError):
            return f"{existing} belongs to the user {user_name(existing.stat().st_uid)}"
    return "its owner is unknown"
