"""The command ``serve --workers 2`` itself: it answers, survives a killed worker, and ends without leaving anything."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest

from trajectory_pipeline.serve.workers import SHORTEST_LIFE
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.serve.tenancy import MINE, OTHER, Tokens

pytestmark = pytest.mark.heavy

_SECONDS = 60


@dataclass(frozen=True)
class Command:
    """A running command: its process, and the address that it printed."""

    process: psutil.Popen
    address: str

    def workers(self) -> set[int]:
        return {child.pid for child in self.process.children()}

    def get(self, path: str, token: str = "") -> httpx2.Response:
        """Send one request over a connection of its own, which any worker may take."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx2.get(self.address + path, headers=headers, timeout=_SECONDS)

    def counted(self, token: str) -> float:
        """Return how many requests for a run were answered, by the metrics of all workers."""
        text = self.get("/metrics", token).text
        route = re.escape("/v1/trajectories/{run_id}")
        return sum(
            float(one) for one in re.findall(rf'^trajectory_http_requests_total\{{.*"{route}".*\}} (\S+)$', text, re.M)
        )


@contextmanager
def running(settings: Settings, folder: Path) -> Iterator[Command]:
    url = str(settings.storage.database_url)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ},
        "TMPDIR": str(folder / "temporary"),
        "TRAJECTORY_DATABASE_URL": url,
        "LETTA_PG_URI": url,
        "TRAJECTORY_STORAGE_URI": settings.storage.parquet_location,
    }
    (folder / "temporary").mkdir()
    log = folder / "serve.log"
    arguments = ["-m", "trajectory_pipeline.cli.main", "serve", "--port", "0", "--workers", "2"]
    with log.open("w") as output:
        process = psutil.Popen([sys.executable, *arguments], env=environment, stdout=output, stderr=output, cwd=folder)
    try:
        until(lambda: "Serving on" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        command = Command(process, re.findall(r"http://127\.0\.0\.1:[1-9][0-9]*", log.read_text())[0])
        until(lambda: len(command.workers()) == 2)
        yield command
    finally:
        with suppress(psutil.NoSuchProcess):
            for one in [*process.children(recursive=True), process]:
                one.kill()
        process.wait(_SECONDS)


def until(what: Callable[[], bool]) -> None:
    stop = time.monotonic() + _SECONDS
    while not what():
        assert time.monotonic() < stop, f"not within {_SECONDS} seconds"
        time.sleep(0.05)


def test_command_answers_survives_a_killed_worker_and_ends_at_sigterm(
    tenant_settings: Settings, tokens: Tokens, tmp_path: Path
) -> None:
    mine, everything = tokens.by_name["mine"], tokens.by_name["all"]
    run_id, foreign = min(tokens.runs[MINE]), min(tokens.runs[OTHER])
    with running(tenant_settings, tmp_path) as command:
        asked = 0

        def ask() -> None:
            nonlocal asked
            for one, status in ((run_id, 200), (foreign, 404)):
                answer = command.get(f"/v1/trajectories/{one}", mine)
                assert (answer.status_code, answer.json().get("run_id")) == (status, one if status == 200 else None)
                asked += 1

        for _ in range(20):
            ask()
        assert command.get("/health").json()["status"] == "ok"
        assert command.counted(everything) == asked, "those of the other worker too"

        first = command.workers()
        # One that ends sooner ends the service.
        until(lambda: all(time.time() - psutil.Process(pid).create_time() > SHORTEST_LIFE + 1 for pid in first))
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        ask()
        until(lambda: len(command.workers() - {killed}) == 2)
        assert len(command.workers() & first) == 1, "the other one goes on"
        for _ in range(20):
            ask()
        assert command.counted(everything) == asked, "none is forgotten with the worker that answered it"

        left = [psutil.Process(pid) for pid in command.workers()]
        assert [one.name for one in (tmp_path / "temporary").iterdir()] != []
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(_SECONDS) == 0
        assert not any(one.is_running() for one in left)
        with pytest.raises(httpx2.TransportError):
            command.get("/health")
    assert [one.name for one in (tmp_path / "temporary").iterdir()] == [], "the folder of metrics is removed"
    log = (tmp_path / "serve.log").read_text()
    assert log.count('"route": "/v1/trajectories/{run_id}"') == asked
    assert "Traceback" not in log
    assert run_id not in log
