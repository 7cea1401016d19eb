"""Supervised processes end with their owner, however it ends, and leave no process.

Real processes throughout: an owner that may be killed, the command, and a process that the command starts.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from trajectory_pipeline.cli import subprocesses
from trajectory_pipeline.cli.subprocesses import SupervisedProcess, stop_all

pytestmark = pytest.mark.process

COMMAND = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]])
ignored = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
           if signal.getsignal(number) == signal.SIG_IGN]
with open(sys.argv[1] + ".new", "w") as file:
    print(os.getpid(), child.pid, len(ignored), file=file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 600)
sys.exit(7)
"""
OWNER = """
import os, sys, time
from pathlib import Path
from trajectory_pipeline.cli.subprocesses import SupervisedProcess
log = Path(sys.argv[2] + ".log")
process = SupervisedProcess([sys.executable, "-c", sys.argv[1], sys.argv[2]], os.environ, Path("."), log)
time.sleep(600)
"""


class Started:
    """What a command wrote of itself: its own process id, that of its child, and how many signals it ignores."""

    def __init__(self, pid_file: Path) -> None:
        within(30, pid_file.exists)
        pid, child, self.ignored = (int(word) for word in pid_file.read_text().split())
        self.processes = [psutil.Process(pid), psutil.Process(child)]

    @property
    def alive(self) -> list[psutil.Process]:
        return [process for process in self.processes if lives(process)]


def lives(process: psutil.Process) -> bool:
    """A zombie does nothing any more; it only waits to be taken note of."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def within(seconds: float, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[Path]:
    """Where the command says who it is; whoever is left at the end is ended."""
    path = tmp_path / "pids"
    yield path
    for process in psutil.process_iter(["cmdline"]):
        if str(path) in (process.info["cmdline"] or []):
            process.kill()


def start(pid_file: Path, *more: str, log: Path | None = None) -> SupervisedProcess:
    return SupervisedProcess([sys.executable, "-c", COMMAND, str(pid_file), *more], os.environ, pid_file.parent, log)


def test_stop_ends_the_command_and_its_children(pid_file: Path) -> None:
    process = start(pid_file)
    started = Started(pid_file)
    assert len(started.alive) == 2
    assert process.exit_code is None
    process.stop()
    assert started.alive == []
    assert process.exit_code is not None


def test_stop_twice_has_no_effect(pid_file: Path) -> None:
    process = start(pid_file)
    Started(pid_file)
    process.stop()
    process.stop()


def test_stop_all_ends_every_command(tmp_path: Path) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    processes = [start(path) for path in paths]
    started = [Started(path) for path in paths]
    stop_all(processes)
    assert [each.alive for each in started] == [[], []]


def test_context_manager_stops_the_command_on_exit(pid_file: Path) -> None:
    with start(pid_file):
        started = Started(pid_file)
    assert started.alive == []


def test_command_that_ends_leaves_no_children_and_its_exit_code(pid_file: Path) -> None:
    process = start(pid_file, "0.1")
    started = Started(pid_file)
    assert process.wait(20) == 7
    assert process.exit_code == 7
    within(5, lambda: not started.alive)
    process.stop()


def test_wait_returns_none_after_its_timeout(pid_file: Path) -> None:
    with start(pid_file) as process:
        began = time.monotonic()
        assert process.wait(0.2) is None
        assert time.monotonic() - began < 5


def test_stop_kills_the_group_of_a_command_that_ignores_sigint(pid_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "_STOP_TIMEOUT_SECONDS", 0.5)
    stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + COMMAND
    child = subprocess.Popen([sys.executable, "-c", stubborn, str(pid_file)], start_new_session=True)
    started = Started(pid_file)
    subprocesses._stop(child)
    child.wait(10)
    within(5, lambda: not started.alive)


def test_killed_owner_ends_the_command(pid_file: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, COMMAND, str(pid_file)], start_new_session=True)
    started = Started(pid_file)
    owner.kill()
    owner.wait()
    within(10, lambda: not started.alive)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signaled_owner_ends_the_command(pid_file: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, COMMAND, str(pid_file)], start_new_session=True)
    started = Started(pid_file)
    owner.send_signal(number)
    owner.wait()
    within(10, lambda: not started.alive)


def test_command_of_background_owner_ignores_no_signals(pid_file: Path) -> None:
    """A shell without job control starts what ends in ``&`` with interrupts ignored, and children inherit that."""
    script = f'"{sys.executable}" -c "$OWNER" "$COMMAND" "$PID_FILE" & echo $!; wait'
    shell = subprocess.Popen(
        ["/bin/sh", "-c", script],
        env={**os.environ, "OWNER": OWNER, "COMMAND": COMMAND, "PID_FILE": str(pid_file)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert shell.stdout is not None
    owner = psutil.Process(int(shell.stdout.readline()))
    started = Started(pid_file)
    assert started.ignored == 0
    owner.send_signal(signal.SIGINT)
    time.sleep(0.3)
    # The owner itself does ignore it; that is why it must not be handed on.
    assert lives(owner)
    owner.kill()
    shell.wait()
    shell.stdout.close()
    within(10, lambda: not started.alive)


def test_output_is_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    command = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"]
    assert SupervisedProcess(command, os.environ, tmp_path, log).wait(20) == 0
    assert sorted(log.read_text().split()) == ["before", "err", "out"]


def test_command_gets_the_given_environment_and_folder(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import os; print(os.environ['MARK'], os.getcwd())"]
    assert SupervisedProcess(command, {**os.environ, "MARK": "here"}, tmp_path, log).wait(20) == 0
    assert log.read_text().split() == ["here", str(tmp_path)]


def test_signal_to_supervisor_is_forwarded_to_the_command(pid_file: Path) -> None:
    process = start(pid_file)
    started = Started(pid_file)
    os.kill(process._process.pid, signal.SIGTERM)
    assert process.wait(20) is not None
    within(5, lambda: not started.alive)
    process.stop()
