"""The processes of a running server, seen from outside: ``server.lock``, ``postmaster.pid`` and signals.

All access goes through descriptors opened at the start, so a folder that was moved, or deleted and created again, is
never mistaken for another. The signals are those that ``pg_ctl`` sends: SIGINT for a fast shutdown, SIGQUIT for an
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
from trajectory_pipeline.runtime.private_files import open_without_following

PID_FILE = "postmaster.pid"

_HAS_PROC = Path("/proc/self").exists()

_POLL_SECONDS = 0.02
_ORPHAN_CHECK_SECONDS = 1.0
# A fast shutdown writes a checkpoint, which is slow on a slow disk.
_STOP_STEPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True)
class PidFile:
    """The contents of ``postmaster.pid``."""

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
            self._data = open_without_following(data, os.O_RDONLY | os.O_DIRECTORY)
        except BaseException:
            os.close(self._lock)
            raise

        self._orphaned = False
        self._next_orphan_check = 0.0

    def close(self) -> None:
        """Close the descriptors; the server is not affected."""
        os.close(self._lock)
        os.close(self._data)

    def alive(self) -> bool:
        """Whether any process of this server is alive."""
        return locks.held_exclusively(self._lock)

    def pid_file(self) -> PidFile | None:
        """Read ``postmaster.pid``; None if it does not exist or is incomplete."""
        try:
            descriptor = os.open(PID_FILE, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._data)
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
        """Delete the ``postmaster.pid`` of a server that is known to be dead.

        Postgres refuses to start if any process with that id exists.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PID_FILE, dir_fd=self._data)

    def stop(self) -> bool:
        """Stop the server with ever stronger signals, and wait for its last process; False if one remains."""
        for number, timeout in _STOP_STEPS:
            signalled = None
            deadline = time.monotonic() + timeout
            while self.alive():
                # Absent while the server is starting: then wait for it.
                found = self.pid_file()
                if found and found.pid != signalled and self._is_ours(found.pid):
                    _send(found.pid, number)
                    signalled = found.pid
                self.kill_orphans()
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_SECONDS)
            else:
                return True
        return False

    def kill_orphans(self) -> None:
        """Kill the workers of a postmaster that was killed.

        Idle workers exit at once. One in a long query would continue, and no new server can start meanwhile.
        """
        now = time.monotonic()
        if now < self._next_orphan_check:
            return
        self._next_orphan_check = now + _ORPHAN_CHECK_SECONDS
        found = self.pid_file()
        members = self._members() if found and self.alive() else set()
        orphaned = found is not None and bool(members) and found.pid not in members
        if orphaned and self._orphaned:
            for pid in members:
                _send(pid, signal.SIGKILL)
        self._orphaned = orphaned

    def _members(self) -> set[int]:
        if _HAS_PROC:
            return set(self._members_in_proc())
        # macOS has no /proc, but lsof: processes named postgres that have the lock file open.
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

        Checked before a signal: if containers share the folder, ``postmaster.pid`` may name a process of another
        container, and here that id belongs to something else.
        """
        if not _HAS_PROC:
            return True
        process = Path("/proc", str(pid))
        try:
            is_postgres = (process / "comm").read_text(encoding="utf-8", errors="replace").strip() == "postgres"
            return is_postgres and os.path.samestat((process / "cwd").stat(), os.fstat(self._data))
        except OSError:  # ended, or another user's
            return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
