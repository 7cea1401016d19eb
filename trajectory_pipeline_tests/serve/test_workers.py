"""Workers answer at one address, one that ends is replaced, and none outlives the process that started them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent

import psutil

# Each worker answers a connection with its process id.
_PROGRAM = """
    import os, socket, sys
    from prometheus_client import CollectorRegistry
    from trajectory_pipeline.serve import workers
    from trajectory_pipeline.serve.metrics import Metrics, forget_process
    workers.SHORTEST_LIFE = float(sys.argv[1])
    metrics = Metrics()
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    def work():
        if sys.argv[2] == "fail":
            raise RuntimeError("no database")
        metrics.running.inc()
        while True:
            connection, _ = listening.accept()
            metrics.requests.labels("GET", "/", "200").inc()
            connection.sendall(b"%d\\n" % os.getpid() + metrics.text())
            connection.close()
    workers.Workers(2, work, forget_process).run()
"""


@contextmanager
def _running(folder: Path, shortest_life: float = 0, how: str = "answer") -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", dedent(_PROGRAM), str(shortest_life), how]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _ask(port: int) -> tuple[int, str]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        received = b"".join(iter(lambda: connection.recv(65_536), b"")).decode()
    process, _, metrics = received.partition("\n")
    return int(process), metrics


def _until(what: Callable[[], bool]) -> None:
    for _ in range(400):
        with suppress(OSError, ValueError):
            if what():
                return
        time.sleep(0.05)
    raise AssertionError("not within 20 seconds")


def _counted(metrics: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", metrics, re.MULTILINE))


def test_workers_share_an_address_and_metrics_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    with _running(tmp_path) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        workers = psutil.Process(process.pid)
        _until(lambda: len(workers.children()) == 2)
        answers = [_ask(port) for _ in range(20)]
        first = {child.pid for child in workers.children()}
        assert {pid for pid, _ in answers} <= first
        assert _counted(answers[-1][1], "trajectory_http_requests_total") == 20, "those of the other worker too"
        _until(lambda: _counted(_ask(port)[1], "trajectory_http_requests_running") == 2)
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        _until(lambda: len({child.pid for child in workers.children()} - {killed}) == 2)
        _until(lambda: _counted(_ask(port)[1], "trajectory_http_requests_running") == 2)
        left = workers.children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in left)


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    with _running(tmp_path) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        _until(lambda: len(psutil.Process(process.pid).children()) == 2)
        children = psutil.Process(process.pid).children()
        process.kill()
        assert psutil.wait_procs(children, 20)[1] == []
        # Whoever starts the service again finds its port free.
        socket.create_server(("127.0.0.1", port)).close()


def test_where_workers_cannot_start_the_service_ends_with_the_reason(tmp_path: Path) -> None:
    with _running(tmp_path, shortest_life=60, how="fail") as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "RuntimeError: no database" in errors
        assert "ended right after its start" in errors
