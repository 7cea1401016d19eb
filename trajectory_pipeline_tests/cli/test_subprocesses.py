"""The contract of supervised processes: they end with their owner, however it ends, and leave nobody behind.

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
    """What a command told of itself: its own process, the one that it started, and how many signals it ignores."""

    def __init__(self, told: Path) -> None:
        within(30, told.exists)
        pid, child, self.ignored = (int(word) for word in told.read_text().split())
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
def told(tmp_path: Path) -> Iterator[Path]:
    """Where the command says who it is; whoever is left at the end is ended."""
    path = tmp_path / "told"
    yield path
    for process in psutil.process_iter(["cmdline"]):
        if str(path) in (process.info["cmdline"] or []):
            process.kill()


def start(told: Path, *more: str, log: Path | None = None) -> SupervisedProcess:
    return SupervisedProcess([sys.executable, "-c", COMMAND, str(told), *more], os.environ, told.parent, log)


def test_stop_ends_the_command_and_all_that_it_started(told: Path) -> None:
    process = start(told)
    started = Started(told)
    assert len(started.alive) == 2
    assert process.exit_code is None
    process.stop()
    assert started.alive == []
    assert process.exit_code is not None


def test_stopping_twice_does_no_harm(told: Path) -> None:
    process = start(told)
    Started(told)
    process.stop()
    process.stop()


def test_several_are_stopped_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    processes = [start(path) for path in paths]
    started = [Started(path) for path in paths]
    stop_all(processes)
    assert [each.alive for each in started] == [[], []]


def test_leaving_the_block_stops_it(told: Path) -> None:
    with start(told):
        started = Started(told)
    assert started.alive == []


def test_a_command_that_ends_by_itself_leaves_nobody_behind_and_its_exit_code(told: Path) -> None:
    process = start(told, "0.1")
    started = Started(told)
    assert process.wait(20) == 7
    assert process.exit_code == 7
    within(5, lambda: not started.alive)
    process.stop()


def test_waiting_gives_up_in_time(told: Path) -> None:
    with start(told) as process:
        began = time.monotonic()
        assert process.wait(0.2) is None
        assert time.monotonic() - began < 5


def test_a_command_that_ignores_the_interrupt_is_killed_with_its_group(
    told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocesses, "_STOP_TIMEOUT_SECONDS", 0.5)
    stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + COMMAND
    child = subprocess.Popen([sys.executable, "-c", stubborn, str(told)], start_new_session=True)
    started = Started(told)
    subprocesses._stop(child)
    child.wait(10)
    within(5, lambda: not started.alive)


def test_an_owner_that_is_killed_takes_the_command_along(told: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, COMMAND, str(told)], start_new_session=True)
    started = Started(told)
    owner.kill()
    owner.wait()
    within(10, lambda: not started.alive)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_owner_that_is_ended_by_a_signal_takes_the_command_along(told: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, COMMAND, str(told)], start_new_session=True)
    started = Started(told)
    owner.send_signal(number)
    owner.wait()
    within(10, lambda: not started.alive)


def test_a_command_ignores_no_signal_though_its_owner_was_started_in_the_background(told: Path) -> None:
    """A shell without job control starts what ends in ``&`` with interrupts ignored, and children inherit that."""
    script = f'"{sys.executable}" -c "$OWNER" "$COMMAND" "$TOLD" & echo $!; wait'
    shell = subprocess.Popen(
        ["/bin/sh", "-c", script],
        env={**os.environ, "OWNER": OWNER, "COMMAND": COMMAND, "TOLD": str(told)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert shell.stdout is not None
    owner = psutil.Process(int(shell.stdout.readline()))
    started = Started(told)
    assert started.ignored == 0
    owner.send_signal(signal.SIGINT)
    time.sleep(0.3)
    # The owner itself does ignore it; that is why it must not be handed on.
    assert lives(owner)
    owner.kill()
    shell.wait()
    shell.stdout.close()
    within(10, lambda: not started.alive)


def test_output_goes_to_the_log_behind_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    command = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"]
    assert SupervisedProcess(command, os.environ, tmp_path, log).wait(20) == 0
    assert sorted(log.read_text().split()) == ["before", "err", "out"]


def test_the_command_gets_the_environment_and_the_folder_that_it_is_given(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import os; print(os.environ['MARK'], os.getcwd())"]
    assert SupervisedProcess(command, {**os.environ, "MARK": "here"}, tmp_path, log).wait(20) == 0
    assert log.read_text().split() == ["here", str(tmp_path)]


def test_a_signal_to_the_supervisor_is_handed_to_the_command(told: Path) -> None:
    process = start(told)
    started = Started(told)
    os.kill(process._process.pid, signal.SIGTERM)
    assert process.wait(20) is not None
    within(5, lambda: not started.alive)
    process.stop()
