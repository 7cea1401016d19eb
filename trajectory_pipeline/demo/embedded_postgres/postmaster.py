"""The processes of a running server: whether there are any, and stopping them.

Belongs here: what can be known and done from outside, through ``server.lock``, ``postmaster.pid`` and signals. Does not
belong here: starting them (``server``), and the decision to stop them (``watchdog``).

All goes through descriptors opened at the beginning, so a folder that was meanwhile moved, or deleted and made anew,
is never mistaken for another. The signals are those that ``pg_ctl`` sends: SIGINT for a fast shutdown, SIGQUIT for an
immediate one (https://www.postgresql.org/docs/18/server-shutdown.html).
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trajectory_pipeline.demo.embedded_postgres import locks
from trajectory_pipeline.demo.embedded_postgres.account import environment

PID_FILE = "postmaster.pid"

_PROC_IS_THERE = Path("/proc/self").exists()

_POLL_SECONDS = 0.02
_ORPHANS_MAY_LAST_SECONDS = 1.0
# A fast shutdown writes a checkpoint, which takes its time on a slow disk.
_STEPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True)
class PidFile:
    """What a server says of itself in ``postmaster.pid``."""

    pid: int
    data: str
    port: int
    ready: bool


class Postmaster:
    """The server of one folder, seen from outside."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._lock_path = folder / locks.SERVER
        self._lock = locks.open_file(self._lock_path)
        try:
            self._data = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
        except BaseException:
            os.close(self._lock)
            raise

        self._orphaned = False
        self._look_again = 0.0

    def close(self) -> None:
        """Close the descriptors; the server is not concerned."""
        os.close(self._lock)
        os.close(self._data)

    def alive(self) -> bool:
        """Whether any process of this server is alive."""
        return locks.held_alone(self._lock)

    def pid_file(self) -> PidFile | None:
        """Read ``postmaster.pid``; ``None`` if there is none, or it is not written to its end yet."""
        try:
            descriptor = os.open(PID_FILE, os.O_RDONLY, dir_fd=self._data)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            # pid, data folder, start time, port, socket folder, address, shared memory, status
            lines = os.fsdecode(file.read()).splitlines()
        try:
            ready = len(lines) > 7 and lines[7].strip() == "ready"
            return PidFile(pid=int(lines[0]), data=lines[1], port=int(lines[3]), ready=ready)
        except (IndexError, ValueError):
            return None

    def delete_pid_file(self) -> None:
        """Delete a ``postmaster.pid`` that a server left behind; only when it is known to be dead.

        Postgres itself asks whether a process of that id exists, and refuses to start if it does, whatever it is.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PID_FILE, dir_fd=self._data)

    def stop(self) -> bool:
        """Stop the server, ever more firmly, and wait until its last process is gone; ``False`` if one stays."""
        for number, patience in _STEPS:
            signalled = None
            deadline = time.monotonic() + patience
            while self.alive():
                # Absent while the server is just starting: then it is waited for.
                found = self.pid_file()
                if found and found.pid != signalled and self._is_ours(found.pid):
                    _send(found.pid, number)
                    signalled = found.pid
                self.end_orphans()
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_SECONDS)
            else:
                return True
        return False

    def end_orphans(self) -> None:
        """End the workers that outlive a postmaster which was killed.

        Idle ones leave by themselves at once; one in the middle of a long query would go on with it, and as long as
        it does no new server can start.
        """
        now = time.monotonic()
        if now < self._look_again:
            return
        self._look_again = now + _ORPHANS_MAY_LAST_SECONDS
        found = self.pid_file()
        members = self._members() if found and self.alive() else set()
        orphaned = found is not None and bool(members) and found.pid not in members
        if orphaned and self._orphaned:
            for pid in members:
                _send(pid, signal.SIGKILL)
        self._orphaned = orphaned

    def _members(self) -> set[int]:
        if _PROC_IS_THERE:
            return set(self._members_in_proc())
        # macOS has no /proc, but always lsof: those named postgres that hold the lock file open.
        listed = subprocess.run(
            ["/usr/sbin/lsof", "-t", "-a", "-c", "postgres", "--", str(self._lock_path)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return {int(pid) for pid in listed.stdout.split()}

    def _members_in_proc(self) -> Iterator[int]:
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and self._is_ours(int(process.name)):
                yield int(process.name)

    def _is_ours(self, pid: int) -> bool:
        """Whether the process is a Postgres in this data folder.

        A last guard before a signal: with the folder shared between containers, ``postmaster.pid`` may name a process
        of another container, whose number means something else here.
        """
        if not _PROC_IS_THERE:
            return True
        process = Path("/proc", str(pid))
        try:
            named = (process / "comm").read_text(encoding="utf-8", errors="replace").strip() == "postgres"
            return named and os.path.samestat((process / "cwd").stat(), os.fstat(self._data))
        except OSError:  # ended meanwhile, or another user's
            return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
