"""The four lock files that decide who may start, use and stop the server.

Belongs here: taking, testing and letting go of ``flock`` locks. Does not belong here: what is done under them
(``server`` and ``watchdog``).

================  ==================================  ===================================================
file              held by                             says
================  ==================================  ===================================================
``start.lock``    whoever starts, stops or removes    one at a time
``in-use.lock``   every user, shared                  the server is wanted; free means: stop it
``server.lock``   every process of the server         some process of *this* server is alive
``watchdog.lock`` the watchdog                        the server will be stopped when nobody uses it
================  ==================================  ===================================================

The kernel drops a ``flock`` when the last descriptor of it is closed, however the process ended. That is why no
question here is answered by a process id: ids are reused, and in containers they are small and reused soon.
"""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from trajectory_pipeline.errors import EmbeddedPostgresError

START = "start.lock"
IN_USE = "in-use.lock"
SERVER = "server.lock"
WATCHDOG = "watchdog.lock"
ALL = (START, IN_USE, SERVER, WATCHDOG)

_POLL_SECONDS = 0.02
_ASKED_AGAIN = 3
_SILENT_SECONDS = 2.0


def open_file(path: Path) -> int:
    """Open (and make, if absent) a lock file; the descriptor is closed on exec.

    Writable, because an exclusive lock on a network file system asks for that.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def try_lock(descriptor: int, mode: int) -> bool:
    """Take the lock in ``mode`` (``fcntl.LOCK_SH`` or ``LOCK_EX``) now, or say that it cannot be had."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def held_alone(descriptor: int) -> bool:
    """Whether another descriptor of this file holds it exclusively.

    Asked with a shared lock, so that two who ask at once do not take each other for a holder.
    """
    if not try_lock(descriptor, fcntl.LOCK_SH):
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def is_held_alone(path: Path) -> bool:
    """Whether the lock file at ``path`` is held exclusively; one that does not exist is not."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return held_alone(descriptor)
    finally:
        os.close(descriptor)


def is_shared(path: Path) -> bool:
    """Whether anybody holds the lock file at ``path`` as one of several."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # That takes two questions (can it be had alone? can it be shared?), and between them the watchdog may take it
        # or let it go. It does so once or twice and then keeps it, so its answer does not stay the same.
        for _ in range(_ASKED_AGAIN):
            if try_lock(descriptor, fcntl.LOCK_EX) or held_alone(descriptor):
                return False
            time.sleep(_POLL_SECONDS)
        return True
    finally:
        os.close(descriptor)


class Lock:
    """A lock file opened by this process for itself, until it is dropped.

    Each has a descriptor of its own, so the kernel does the counting: two users within one process are two users.
    """

    _open: ClassVar[set["Lock"]] = set()

    def __init__(self, path: Path) -> None:
        self.descriptor: int | None = open_file(path)
        self._path = path
        self._open.add(self)

    def take(self, mode: int) -> bool:
        """Take the lock in ``mode`` now, or say that it cannot be had."""
        return self.descriptor is not None and try_lock(self.descriptor, mode)

    def drop(self) -> bool:
        """Close the file; ``False`` if that had been done before.

        Closing is not unlocking: where another process was given the descriptor, that one holds the lock on.
        """
        if self.descriptor is None:
            return False
        self._open.discard(self)
        os.close(self.descriptor)
        self.descriptor = None
        return True

    def is_current(self) -> bool:
        """Whether this is still the file that others find under its name."""
        try:
            return self.descriptor is not None and os.path.samestat(self._path.stat(), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False

    @classmethod
    def forget_inherited(cls) -> None:
        """Close what a fork copied, or a child that knows nothing of it would keep the server up.

        A child that wants the server calls ``start`` itself.
        """
        for lock in tuple(cls._open):
            lock.drop()


os.register_at_fork(after_in_child=Lock.forget_inherited)


def acquire(path: Path, mode: int, *, patience: float, waiting: Callable[[], None] | None = None) -> Lock:
    """Take a lock within ``patience`` seconds.

    ``waiting`` is called once if it takes over two seconds. Raises ``FileNotFoundError`` if the folder is gone and
    ``EmbeddedPostgresError`` if time runs out.
    """
    deadline = time.monotonic() + patience
    while True:
        lock = Lock(path)
        try:
            _wait_for(lock, path, mode, deadline, waiting)
            if lock.is_current():
                return lock
        except BaseException:
            lock.drop()
            raise
        # The folder was removed, and perhaps made anew, while this process waited: a lock on a file that nobody else
        # can open any more would exclude nobody.
        lock.drop()


def _wait_for(lock: Lock, path: Path, mode: int, deadline: float, waiting: Callable[[], None] | None) -> None:
    tell_at = time.monotonic() + _SILENT_SECONDS
    while not lock.take(mode):
        now = time.monotonic()
        if now > deadline:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {path.parent} is busy: another process has held {path.name} for too long. "
                f"Wait for it, or see who it is with: fuser -v '{path}'"
            )
        if waiting and now > tell_at:
            waiting()
            waiting = None
        time.sleep(_POLL_SECONDS)
