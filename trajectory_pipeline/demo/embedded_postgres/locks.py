"""The four lock files that decide who may start, use and stop the server.

================  ==================================  ===================================================
file              held by                             meaning
================  ==================================  ===================================================
``start.lock``    whoever starts, stops or removes    exclusive access
``in-use.lock``   every user, shared                  the server is needed; free means: stop it
``server.lock``   every process of the server         some process of *this* server is alive
``watchdog.lock`` the watchdog                        the server will be stopped when its last user ends
================  ==================================  ===================================================

The kernel releases a ``flock`` when its last descriptor is closed, however the process ended. Process ids are not used:
they are reused, and in containers they are small and reused soon.
"""

import fcntl
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from trajectory_pipeline.errors import EmbeddedPostgresError
from trajectory_pipeline.runtime.private_files import open_without_following

START = "start.lock"
IN_USE = "in-use.lock"
SERVER = "server.lock"
WATCHDOG = "watchdog.lock"
ALL = (START, IN_USE, SERVER, WATCHDOG)

_POLL_SECONDS = 0.02
_SHARED_CHECKS = 3
_REPORT_AFTER_SECONDS = 2.0


def open_file(path: Path) -> int:
    """Open (and create, if absent) a lock file; the descriptor is closed on exec.

    Writable, because an exclusive lock on a network file system requires it.
    """
    return open_without_following(path, os.O_RDWR | os.O_CREAT, 0o644)


def try_lock(descriptor: int, mode: int) -> bool:
    """Take the lock in ``mode`` (``fcntl.LOCK_SH`` or ``LOCK_EX``) without waiting; returns whether it was taken."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def held_exclusively(descriptor: int) -> bool:
    """Whether another descriptor of this file holds it exclusively.

    Tested with a shared lock, so that two concurrent tests do not mistake each other for a holder.
    """
    if not try_lock(descriptor, fcntl.LOCK_SH):
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def is_held_exclusively(path: Path) -> bool:
    """Whether the lock file at ``path`` is held exclusively; one that does not exist is not."""
    try:
        descriptor = open_without_following(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return held_exclusively(descriptor)
    finally:
        os.close(descriptor)


def is_shared(path: Path) -> bool:
    """Whether any process holds a shared lock on the file at ``path``."""
    try:
        descriptor = open_without_following(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # This takes two tests (exclusive, then shared). Between them the watchdog may take or release the lock; it does
        # so once or twice and then holds it, so repeated tests settle.
        for _ in range(_SHARED_CHECKS):
            if try_lock(descriptor, fcntl.LOCK_EX) or held_exclusively(descriptor):
                return False
            time.sleep(_POLL_SECONDS)
        return True
    finally:
        os.close(descriptor)


class Lock:
    """A lock file opened by this process.

    Each has its own descriptor, so the kernel counts the users: two users in one process are two users.
    """

    _open: ClassVar[set["Lock"]] = set()

    def __init__(self, path: Path) -> None:
        self.descriptor: int | None = open_file(path)
        self._path = path
        self._open.add(self)

    def take(self, mode: int) -> bool:
        """Take the lock in ``mode`` without waiting; returns whether it was taken."""
        return self.descriptor is not None and try_lock(self.descriptor, mode)

    def drop(self) -> bool:
        """Close the file; False if it was closed before.

        Closing does not unlock: another process that got the descriptor still holds the lock.
        """
        if self.descriptor is None:
            return False
        self._open.discard(self)
        os.close(self.descriptor)
        self.descriptor = None
        return True

    def is_current(self) -> bool:
        """Whether the path still names this file."""
        try:
            return self.descriptor is not None and os.path.samestat(self._path.lstat(), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False

    @classmethod
    def close_inherited(cls) -> None:
        """Close the descriptors that a fork copied: otherwise the child would keep the server running.

        A child that needs the server calls ``start`` itself.
        """
        for lock in tuple(cls._open):
            lock.drop()


os.register_at_fork(after_in_child=Lock.close_inherited)


def acquire(path: Path, mode: int, *, timeout: float, waiting: Callable[[], None] | None = None) -> Lock:
    """Take a lock within ``timeout`` seconds; ``waiting`` is called once if it takes more than two seconds.

    Raises:
        FileNotFoundError: the folder was removed.
        EmbeddedPostgresError: the lock is still held after the timeout.
    """
    deadline = time.monotonic() + timeout
    while True:
        lock = Lock(path)
        try:
            _wait_for(lock, path, mode, deadline, waiting)
            if lock.is_current():
                return lock
        except BaseException:
            lock.drop()
            raise
        # The folder was removed, and perhaps created again, while this process waited: a lock on a file that no other
        # process can open any more would exclude no one.
        lock.drop()


def _wait_for(lock: Lock, path: Path, mode: int, deadline: float, waiting: Callable[[], None] | None) -> None:
    report_at = time.monotonic() + _REPORT_AFTER_SECONDS
    while not lock.take(mode):
        now = time.monotonic()
        if now > deadline:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {path.parent} is busy: another process has held {path.name} for too long. "
                f"Wait for it, or find it with: fuser -v {shlex.quote(str(path))}"
            )
        if waiting and now > report_at:
            waiting()
            waiting = None
        time.sleep(_POLL_SECONDS)
