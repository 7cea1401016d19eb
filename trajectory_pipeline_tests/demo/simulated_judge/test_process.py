"""The process of the judge: it reports its URL, listens on loopback only, and ends with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from trajectory_pipeline.demo.simulated_judge import FAULTS, SimulatedJudge
from trajectory_pipeline.demo.simulated_judge.__main__ import main
from trajectory_pipeline.demo.simulated_judge.process import serve
from trajectory_pipeline.errors import JudgeError

pytestmark = pytest.mark.process

COMMAND = [sys.executable, "-m", "trajectory_pipeline.demo.simulated_judge"]

posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups as POSIX has them")


def eventually(holds: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_judge_starts_answers_and_stops() -> None:
    with SimulatedJudge.start() as judge:
        assert judge.base_url.startswith("http://127.0.0.1:")
        assert judge.base_url.endswith("/v1")
        assert judge.running
        assert judge.calls()["received"] == 0
        pid = judge.pid
    assert gone(pid)
    assert not judge.running
    judge.stop()
    with pytest.raises(JudgeError, match="does not answer"):
        judge.calls()


OWNER = """
import os, sys, time
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
judge = SimulatedJudge.start()
if "fork" in sys.argv:
    child = os.fork()  # holds the server's standard input open, as a forked worker would
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child)
print(judge.pid, flush=True)
time.sleep(60)
"""


@posix
@pytest.mark.parametrize("how", ["plain", "fork"])
def test_killed_owner_leaves_no_server(how: str) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, how], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline()) if how == "fork" else None
    server = int(owner.stdout.readline())
    assert not gone(server)
    owner.kill()
    owner.wait()
    try:
        assert eventually(lambda: gone(server))
    finally:
        if child is not None:
            os.kill(child, signal.SIGKILL)
        owner.stdout.close()


@posix
def test_ctrl_c_does_not_reach_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    with SimulatedJudge.start() as judge:
        assert os.getsid(judge.pid) != os.getsid(0)
        os.kill(judge.pid, signal.SIGINT)
        assert eventually(lambda: not judge.running)
    assert "Traceback" not in capfd.readouterr().err


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_prints_one_line_and_writes_the_ready_file(tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    server = subprocess.Popen(
        [*COMMAND, "--ready-file", str(ready)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert eventually(ready.exists)
    url = ready.read_text(encoding="utf-8").strip()
    assert list(tmp_path.iterdir()) == [ready]
    server.send_signal(number)
    out, err = server.communicate(timeout=10)
    assert out == f"simulated judge: {url}\n"
    assert err == ""


def test_exit_with_parent_ends_when_standard_input_closes(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    server = subprocess.Popen(
        [*COMMAND, "--exit-with-parent", "--ready-file", str(ready)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert eventually(ready.exists)
    assert server.stdin is not None
    server.stdin.close()
    assert server.wait(10) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", "::"])
def test_serve_refuses_addresses_that_are_not_loopback(host: str) -> None:
    with pytest.raises(JudgeError, match="this machine only"):
        serve(host)


def test_start_reports_the_servers_error() -> None:
    with pytest.raises(JudgeError, match="this machine only"):
        SimulatedJudge.start(host="0.0.0.0")


def test_start_with_a_port_in_use_says_so(running_judge: SimulatedJudge) -> None:
    port = int(running_judge.base_url.rpartition(":")[2].removesuffix("/v1"))
    with pytest.raises(JudgeError, match=f"cannot listen on 127.0.0.1 port {port}"):
        SimulatedJudge.start(port=port)


@pytest.mark.parametrize("option", ["--help", "--list-faults"])
def test_help_and_markdown_table_list_every_fault(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) if option == "--help" else nullcontext():
        main([option])
    shown = capsys.readouterr().out
    assert all(name in shown for name in FAULTS)


def test_latency_delays_each_answer() -> None:
    with SimulatedJudge.start(latency=0.3) as judge:
        client = OpenAI(base_url=judge.base_url, api_key="x", max_retries=0)
        began = time.monotonic()
        client.chat.completions.create(model="simulated-judge", messages=[{"role": "user", "content": "Hello"}])
        assert 0.3 <= time.monotonic() - began < 3
