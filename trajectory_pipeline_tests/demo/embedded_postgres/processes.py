"""Owner processes that take commands and can be killed, and what they leave behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import locks, placement

# Nothing here outlives a test, and fsync costs time.
SETTINGS = {"fsync": "off", "shared_buffers": "16MB"}

# All that is importable here, for a Python that may not be that of the virtual environment.
_INSTALLED = (Path(__file__).resolve().parents[3], Path(psycopg.__file__).parents[1])
PYTHON_PATH = {"PYTHONPATH": os.pathsep.join(str(path) for path in _INSTALLED)}


class Owner:
    """A process that runs ``owner.py``, in a process group of its own."""

    def __init__(
        self,
        folder: Path,
        *extras: str,
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("owner.py")), str(folder), json.dumps(SETTINGS), *extras],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
            env={**os.environ, **PYTHON_PATH, **(env or {})},
            **options,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def hears(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, "the owner ended without a word"
        return json.loads(line)

    def release(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.hears() == {"released": True}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


def within(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def location(folder: Path) -> Path:
    """The folder in which the data of a folder is stored."""
    folder = placement.resolve(folder)
    return placement.existing(folder) or folder


def postmaster_pid(folder: Path) -> int:
    data = location(folder) / "cluster" / "data"
    return int((data / "postmaster.pid").read_text().partition("\n")[0])


def watchdog_pids(folder: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "trajectory_pipeline.demo.embedded_postgres.watchdog" in (process.info["cmdline"] or [])
        and str(folder) in process.info["cmdline"]
    ]


def nothing_is_left(folder: Path) -> bool:
    """No server, no worker, no watchdog: by the locks they would hold, and by their command lines."""
    return (
        not locks.is_held_exclusively(folder / locks.SERVER)
        and not locks.is_held_exclusively(folder / locks.WATCHDOG)
        and not [pid for pid in watchdog_pids(folder) if lives(psutil.Process(pid))]
    )


def lives(process: psutil.Process) -> bool:
    """Whether it can do anything; a zombie only waits for init to take note of its end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_a_row(server: embedded_postgres.EmbeddedServer) -> None:
    with psycopg.connect(server.url("postgres")) as connection:
        connection.execute("DROP TABLE IF EXISTS stored")
        connection.execute("CREATE TABLE stored (word text)")
        connection.execute("INSERT INTO stored VALUES ('stored')")


def rows(server: embedded_postgres.EmbeddedServer) -> list[tuple[str]]:
    with psycopg.connect(server.url("postgres")) as connection:
        return connection.execute("SELECT word FROM stored").fetchall()


def server_user_can_enter_environment() -> bool:
    """Whether the user that the server runs as, another one than root, can use the carried programs where they lie."""
    return os.geteuid() != 0 or all(place.stat().st_mode & 0o001 for place in Path(sys.prefix).resolve().parents)
