"""Starting, finding and removing an embedded server, and the handle by which it is used.

Belongs here: the order of things. Does not belong here: how each is done (``cluster``, ``placement``, ``postmaster``,
``watchdog``, ``locks``).
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, Self
from urllib.parse import quote

from trajectory_pipeline.demo.embedded_postgres import binaries, cluster, launch, locks, placement
from trajectory_pipeline.demo.embedded_postgres.account import account_for, user_name
from trajectory_pipeline.demo.embedded_postgres.postmaster import Postmaster
from trajectory_pipeline.errors import EmbeddedPostgresError

if TYPE_CHECKING:
    import psycopg

_POLL_SECONDS = 0.02
# Another process may be making the cluster, or the watchdog stopping the former server.
_LOCK_PATIENCE_SECONDS = 150.0
_RELEASE_PATIENCE_SECONDS = 30.0
_WATCHDOG_LEAVES_WITHIN_SECONDS = 2.0


@dataclass(frozen=True)
class EmbeddedServer:
    """A running embedded server; it runs at least until ``release`` is called or the process ends.

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
        """Return the URL of one of its databases; it stays the same from start to start while the port is free."""
        return f"postgresql://{self.user}:{quote(self.password)}@{self.host}:{self.port}/{quote(database, safe='')}"

    def ensure_database(self, name: str) -> None:
        """Make a database unless it exists."""
        from psycopg import errors

        with self._administration() as connection:
            if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount == 0:
                # Another process may make it at this very moment.
                with contextlib.suppress(errors.DuplicateDatabase, errors.UniqueViolation):
                    _run(connection, "CREATE DATABASE {}", name)

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make a database, as a copy of ``template`` (to which nobody may be connected) if one is named."""
        with self._administration() as connection:
            if template is None:
                _run(connection, "CREATE DATABASE {}", name)
            else:
                _run(connection, "CREATE DATABASE {} TEMPLATE {}", name, template)

    def drop_database(self, name: str, *, force: bool = False) -> None:
        """Drop a database if it exists; with ``force``, its connections are ended first."""
        with self._administration() as connection:
            _run(connection, "DROP DATABASE IF EXISTS {} WITH (FORCE)" if force else "DROP DATABASE IF EXISTS {}", name)

    def release(self) -> None:
        """Say that this user needs the server no more; the last one waits (30 s at most) until it is down.

        May be called again, and in a forked child, without effect.
        """
        if self._hold is None or not self._hold.drop():
            return
        deadline = time.monotonic() + _RELEASE_PATIENCE_SECONDS
        with _sentences(self.folder):
            while time.monotonic() < deadline and not locks.is_shared(self.folder / locks.IN_USE):
                watched = locks.is_held_alone(self.folder / locks.WATCHDOG)
                if locks.is_held_alone(self.folder / locks.SERVER):
                    found = cluster.find(self.folder)
                    if not watched and found:  # somebody killed it: a new one does its work
                        with launch.open_log(self.folder) as log:
                            launch.ensure_watchdog(self.folder, found.data, log.fileno())
                elif not watched:
                    return
                time.sleep(_POLL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextlib.contextmanager
    def _administration(self) -> "Iterator[psycopg.Connection[Any]]":
        import psycopg

        try:
            with launch.connect(self.port, self.password) as connection:
                yield connection
        except psycopg.Error as error:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {self.folder} (port {self.port}) refused: {str(error).strip()}. "
                f"See its log: {self.log}"
            ) from error


def start(
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
    report: Callable[[str], None] | None = None,
    timeout: float = 60.0,
) -> EmbeddedServer:
    """Start the server of ``folder``, or join the one that runs, and hold it until ``release``.

    The first call makes the cluster. ``settings`` are Postgres settings by name; they count only if this call starts
    the server. ``report`` is told, in a sentence, of what may take over two seconds. ``timeout`` is for the server to
    become ready, in seconds. Raises ``EmbeddedPostgresError``.
    """
    folder = placement.resolve(folder)
    tell = report or (lambda _: None)
    with _sentences(folder), _alone(folder, lambda: tell("Waiting for another process to start or stop it ...")):
        placement.check_note(folder)
        hold = locks.acquire(folder / locks.IN_USE, fcntl.LOCK_SH, patience=_LOCK_PATIENCE_SECONDS)
        try:
            port, password = _up(folder, dict(settings or {}), tell, timeout)
        except BaseException:
            hold.drop()
            raise
        return EmbeddedServer(folder, port, password, _hold=hold)


def running(folder: Path) -> EmbeddedServer | None:
    """Return the server of ``folder`` if it runs and answers; it is neither started nor held."""
    folder = placement.resolve(folder)
    with _sentences(folder):
        found = cluster.find(folder)
        if found is None or not locks.is_held_alone(folder / locks.SERVER):
            return None
        with contextlib.closing(Postmaster(folder, found.data)) as postmaster:
            stated = postmaster.pid_file()
        if stated is None or not stated.ready or launch.refusal(stated.port, found.password) is not None:
            return None
        return EmbeddedServer(folder, stated.port, found.password)


def location(folder: Path) -> Path:
    """Return the folder in which the data of ``folder`` really lies.

    That is ``folder`` itself, except (see ``placement``) when root runs the server from a folder closed to others.
    """
    folder = placement.resolve(folder)
    return placement.existing(folder) or folder


def remove(folder: Path) -> None:
    """Stop the server of ``folder`` and delete all that was made for it, wherever it lies.

    Other files in ``folder`` are left alone. Raises ``EmbeddedPostgresError`` while anybody uses the server.
    """
    folder = placement.resolve(folder)
    places = placement.places(folder)
    if not any(place.exists() for place in places):
        return
    with _sentences(folder), contextlib.ExitStack() as at_the_end:
        with _alone(folder):
            if locks.is_shared(folder / locks.IN_USE):
                raise EmbeddedPostgresError(
                    f"The embedded Postgres in {folder} is in use and is not removed. End what uses it first; to see "
                    f"what that is: fuser -v '{folder / locks.IN_USE}'"
                )
            of_watchdog = locks.open_file(folder / locks.WATCHDOG)
            at_the_end.callback(os.close, of_watchdog)
            found = cluster.find(folder)
            if found:
                with contextlib.closing(Postmaster(folder, found.data)) as postmaster:
                    if not postmaster.stop():
                        raise EmbeddedPostgresError(
                            f"The embedded Postgres in {folder} does not end, not even killed. Is its disk gone?"
                        )
            for place in places:
                _delete(place)
            placement.tidy_bases()
        # If there was a watchdog, it sees by now that there is nothing left to watch.
        deadline = time.monotonic() + _WATCHDOG_LEAVES_WITHIN_SECONDS
        while locks.held_alone(of_watchdog) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _up(folder: Path, settings: Mapping[str, str], tell: Callable[[str], None], timeout: float) -> tuple[int, str]:
    """Bring the server up, whatever state it is in, and return its port and password."""
    found = cluster.find(folder)
    account = account_for(found.data if found else None)
    if found is None:
        place, programs = placement.choose(folder, account)
        placement.leave_note(folder, place)
        found = cluster.make(place, programs, account, sync=settings.get("fsync") != "off", report=tell)
    found.check_version()
    with launch.open_log(folder) as log, contextlib.closing(Postmaster(folder, found.data)) as postmaster:
        # Before the server, so that none is ever without.
        launch.ensure_watchdog(folder, found.data, log.fileno())
        attempt = launch.Launch(folder, found, account, settings, postmaster=postmaster, log=log)
        return attempt.until_ready(tell, timeout=timeout)


def _run(connection: "psycopg.Connection[Any]", statement: LiteralString, *names: str) -> None:
    from psycopg import sql

    connection.execute(sql.SQL(statement).format(*(sql.Identifier(name) for name in names)))


@contextlib.contextmanager
def _alone(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold ``start.lock``; the folder is made if absent."""
    while True:
        placement.make_folder(folder)
        try:
            held = locks.acquire(folder / locks.START, fcntl.LOCK_EX, patience=_LOCK_PATIENCE_SECONDS, waiting=waiting)
        except FileNotFoundError:  # removed by another process while this one waited
            continue
        break
    try:
        yield
    finally:
        held.drop()


def _delete(place: Path) -> None:
    """Delete what this package made in ``place``, and the folder if nothing else is in it."""
    for pattern in (placement.CLUSTER, cluster.HALF_MADE, binaries.COPIES):
        for tree in place.glob(pattern):
            shutil.rmtree(tree)
    for name in (launch.LOG, launch.OLD_LOG, launch.PORT, placement.NOTE, *locks.ALL):
        (place / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # absent, or the user keeps other files there
        place.rmdir()


@contextlib.contextmanager
def _sentences(folder: Path) -> Iterator[None]:
    """Turn the system's errors into sentences for a person."""
    try:
        yield
    except PermissionError as error:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
        raise EmbeddedPostgresError(
            f"The embedded Postgres in {folder} cannot be used by the user {user_name(os.geteuid())}: "
            f"{error.strerror}: {path} ({_ownership(path)}). Run as that user, or have that user (or root) delete "
            f"{folder}, or choose another folder."
        ) from error
    except OSError as error:
        raise EmbeddedPostgresError(
            f"The embedded Postgres in {folder} cannot be used: {error}. Mend that (is the disk full, or read-only?) "
            "or choose another folder."
        ) from error


def _ownership(path: Path) -> str:
    for existing in (path, *path.parents):
        with contextlib.suppress(OSError):
            return f"{existing} belongs to the user {user_name(existing.stat().st_uid)}"
    return "its owner cannot be seen"
