"""Child processes that end with this process, however it ends.

Run as ``python -m trajectory_pipeline.cli.subprocesses COMMAND …``, this module is the supervisor of one command. It
starts the command with default signal handlers: a process started in the background by a shell without job control
inherits ignored signals, and passes them on. It stops the command when its own standard input closes, which happens
even if its parent is killed with ``kill -9``.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from trajectory_pipeline.runtime.private_files import open_log

_STOP_TIMEOUT_SECONDS = 30


class SupervisedProcess:
    """A command in its own process group, which runs until it is stopped or this process ends."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path | None,
        listening: socket.socket | None = None,
    ) -> None:
        """Start the command in a folder, with this whole environment; its output goes to the log, else the terminal.

        The command inherits the socket ``listening``, by the same file descriptor.
        """
        output = None if log is None else open_log(log)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trajectory_pipeline.cli.subprocesses", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
                pass_fds=() if listening is None else (listening.fileno(),),
            )
        finally:
            if output is not None:
                output.close()

    @property
    def exit_code(self) -> int | None:
        """The command's exit code; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait for the command to end; returns its exit code, None if it still runs after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def request_stop(self) -> None:
        """Ask the command to end, without waiting."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def stop(self) -> None:
        """Stop the command and all processes that it started; returns when they have ended."""
        self.request_stop()
        if self.wait(2 * _STOP_TIMEOUT_SECONDS) is None:  # pragma: no cover - the supervisor itself hangs
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def stop_all(processes: Sequence[SupervisedProcess]) -> None:
    """Stop several commands in parallel; returns when all have ended."""
    for process in processes:
        process.request_stop()
    for process in processes:
        process.stop()


def _supervise(command: list[str]) -> int:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)
    # A socket that was handed to this process is the command's; all else is not inherited anyway.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=False)
    # From here on only the closed pipe ends the supervisor: a signal to this group is meant for the command.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: child.send_signal(number))

    def stop_when_stdin_closes() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        _stop(child)

    threading.Thread(target=stop_when_stdin_closes, daemon=True).start()
    code = child.wait()
    # A command that ended by itself may leave processes of its group behind.
    _kill_group(child.pid)
    return code


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.send_signal(signal.SIGINT)
    try:
        child.wait(_STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        _kill_group(child.pid)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(_supervise(sys.argv[1:]))
