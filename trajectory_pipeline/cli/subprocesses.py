"""A child process in a group of its own that ends with us, however we end.

Belongs here: starting and stopping Dagster's processes. Does not belong here: what they do.

Run as ``python -m trajectory_pipeline.cli.subprocesses COMMAND …`` this module is the supervisor: it starts the command
with default signals (one that was started in the background from a shell without job control inherits ignored ones,
and copies them), and ends it when its own standard input closes, which happens even if its parent is killed with -9.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

_PATIENCE_SECONDS = 30


class SupervisedProcess:
    """A command that runs in a process group of its own until it is stopped or we are gone."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path | None) -> None:
        """Start it.

        Args:
            command: program and arguments.
            environment: whole.
            folder: to run it in.
            log: file for its output; None to leave it on our terminal.
        """
        output = None if log is None else log.open("ab")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trajectory_pipeline.cli.subprocesses", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def exit_code(self) -> int | None:
        """The command's exit code; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait for its end, at most so long; returns its exit code or None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def begin_to_stop(self) -> None:
        """Tell it to end, and return at once."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def stop(self) -> None:
        """End it and all that it started; returns when they are gone."""
        self.begin_to_stop()
        if self.wait(2 * _PATIENCE_SECONDS) is None:  # pragma: no cover - the supervisor itself hangs
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def stop_all(processes: Sequence[SupervisedProcess]) -> None:
    """End several at once; returns when all of them are gone."""
    for process in processes:
        process.begin_to_stop()
    for process in processes:
        process.stop()


def _supervise(command: list[str]) -> int:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    # From here on only the closed pipe ends us: whoever signals this group means the command.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: child.send_signal(number))

    def owner_gone() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        _end(child)

    threading.Thread(target=owner_gone, daemon=True).start()
    code = child.wait()
    # A command that ended by itself may leave others of its group behind.
    _kill_group(child.pid)
    return code


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.send_signal(signal.SIGINT)
    try:
        child.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill_group(child.pid)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(_supervise(sys.argv[1:]))
