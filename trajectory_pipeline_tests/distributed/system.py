"""All processes of a distributed deployment on this machine: Redis, S3, code server, daemon, Celery workers.

Each worker has a folder, and where root starts it a user, of its own; what they share is Postgres, Redis and object
storage. ``deploy/celery`` has the files that they run with; only waiting times are shorter here.
"""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.session
import psutil
import yaml

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import setting_fields
from trajectory_pipeline_tests.ports import free_port

PROJECT = Path(__file__).parents[2]
REDIS = shutil.which("redis-server")
BUCKET = "trajectories"
USERS = ("games", "lp", "news", "uucp")
"""Users that Debian has and nobody uses."""
LOST_WORKER_SECONDS = 150
"""After so long, the run of a worker that is gone is given up here; deploy/celery/dagster.yaml has more patience."""
_BACKFILL = """mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
    ... on InvalidSubsetError { message }
  }
}"""


@dataclass
class Process:
    """One process with its children, in a session of its own, that can be killed and started again."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    user: str | None = None
    running: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start it; its log goes on."""
        identity: dict[str, Any] = {}
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        with self.log.open("ab") as output:
            self.running = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **identity,
            )

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self.running is not None and self.running.poll() is not None

    def kill(self) -> None:
        """Kill it with its children, as a machine that loses power does."""
        if self.running is not None:
            children = []
            with contextlib.suppress(psutil.Error):
                # Some are in sessions of their own.
                children = psutil.Process(self.running.pid).children(recursive=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            self.running.wait()
            self.running = None

    def kill_one_child(self) -> bool:
        """Kill a process that it started, as the kernel does when memory is short; returns whether there was one."""
        if self.running is None:
            return False
        children = psutil.Process(self.running.pid).children(recursive=True)
        leaves = [child for child in children if not child.children()]
        for child in leaves[-1:]:
            child.kill()
        return bool(leaves)

    def memory_bytes(self) -> int:
        """Return the most resident memory of one of its processes."""
        if self.running is None:
            return 0
        sizes = [0]
        with contextlib.suppress(psutil.Error):
            for each in (parent := psutil.Process(self.running.pid), *parent.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    sizes.append(each.memory_info().rss)
        return max(sizes)

    def end_of_log(self, characters: int = 4000) -> str:
        return f"--- {self.log} ---\n{self.log.read_text(errors='replace')[-characters:]}"


@dataclass
class System:
    """A deployment: its processes, and what it is made of."""

    folder: Path
    letta_url: str
    database_url: str
    dagster_url: str
    environment: dict[str, str]
    s3_url: str
    redis: Process
    s3: Process
    code_server: Process
    daemon: Process
    workers: list[Process] = field(default_factory=list)

    @property
    def processes(self) -> list[Process]:
        return [self.s3, self.redis, self.code_server, self.daemon, *self.workers]

    @property
    def storage_uri(self) -> str:
        return f"s3://{BUCKET}/parquet"

    def check_alive(self) -> None:
        """Fail where a process that nobody killed has ended."""
        ended = [process.name for process in self.processes if process.ended]
        assert ended == [], f"ended by themselves: {ended}"

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()

    def logs(self) -> str:
        return "\n".join(process.end_of_log() for process in self.processes)

    def requests(self) -> int:
        """Return how many requests the object storage has answered."""
        return sum('HTTP/1.1"' in line for line in self.s3.log.read_text(errors="replace").splitlines())

    def launch_backfill(self, assets: list[str], hours: list[datetime]) -> str:
        """Launch a backfill as the UI does; returns its id."""
        variables = {
            "params": {
                "assetSelection": [{"path": [asset]} for asset in assets],
                "partitionNames": [partition_key(hour) for hour in hours],
            }
        }
        command = [sys.executable, "-c", "from dagster_graphql.cli import main; main()"]
        command += ["-w", str(self.folder / "workspace.yaml")]
        result = subprocess.run(
            [*command, "-t", _BACKFILL, "-v", json.dumps(variables), "-o", str(self.folder / "backfill.json")],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        answer = json.loads((self.folder / "backfill.json").read_text())["data"]["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        backfill: str = answer["backfillId"]
        return backfill


def start_system(
    letta_url: str, database_url: str, dagster_url: str, *, workers: int, settings: dict[str, str]
) -> System:
    """Start everything but the workers' work: Redis, S3, the code server, the daemon, and so many workers."""
    assert REDIS is not None, "redis-server is not installed: apt-get install redis-server"
    folder = Path(tempfile.mkdtemp(prefix="distributed-", dir="/tmp"))
    folder.chmod(0o711)
    ports = {name: free_port() for name in ("redis", "s3", "code")}
    broker, s3_url = f"redis://127.0.0.1:{ports['redis']}/0", f"http://127.0.0.1:{ports['s3']}"
    ours = {*setting_fields(), "DAGSTER_HOME"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("AWS_")}
    site = sysconfig.get_path("purelib")
    environment = {
        **inherited,
        "PYTHONPATH": f"{PROJECT}{os.pathsep}{site}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DAGSTER_HOME": str(folder),
        "DAGSTER_PG_URL": dagster_url,
        "DAGSTER_EVENT_BATCH_SIZE": "100",
        "DAGSTER_CELERY_BROKER_URL": broker,
        "DAGSTER_CELERY_BACKEND_URL": broker,
        "LETTA_PG_URI": letta_url,
        "TRAJECTORY_DATABASE_URL": database_url,
        "TRAJECTORY_STORAGE_URI": f"s3://{BUCKET}/parquet",
        "AWS_ENDPOINT_URL_S3": s3_url,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        **settings,
    }
    write_instance(folder)
    (folder / "workspace.yaml").write_text(
        yaml.safe_dump(
            {
                "load_from": [
                    {
                        "grpc_server": {
                            "host": "127.0.0.1",
                            "port": ports["code"],
                            "location_name": "trajectory_pipeline",
                        }
                    }
                ]
            }
        )
    )
    python = [sys.executable, "-W", "ignore", "-m"]
    code = ["dagster", "code-server", "start", "-m", "trajectory_pipeline.definitions", "-h", "127.0.0.1", "-p"]
    system = System(
        folder,
        letta_url,
        database_url,
        dagster_url,
        environment,
        s3_url,
        redis=Process(
            "redis",
            [REDIS, "--port", str(ports["redis"]), "--appendonly", "yes", "--dir", str(folder)],
            inherited,
            folder,
        ),
        s3=Process("s3", [*python, "moto.server", "-H", "127.0.0.1", "-p", str(ports["s3"])], inherited, folder),
        code_server=Process("code-server", [*python, *code, str(ports["code"])], environment, folder),
        daemon=Process(
            "daemon", [*python, "dagster._daemon", "run", "-w", str(folder / "workspace.yaml")], environment, folder
        ),
    )
    try:
        system.s3.start()
        system.redis.start()
        wait_until(lambda: _answers(s3_url), "the object storage")
        make_bucket(s3_url)
        # Before several processes want its tables at once.
        subprocess.run(
            [*python, "dagster", "instance", "info"], env=environment, cwd=folder, check=True, capture_output=True
        )
        system.code_server.start()
        for number in range(workers):
            add_worker(system, number)
        health = [*python, "dagster", "api", "grpc-health-check", "-p", str(ports["code"])]
        wait_until(
            lambda: subprocess.run(health, env=environment, capture_output=True, check=False).returncode == 0,
            "the code server",
        )
        system.daemon.start()
    except BaseException:
        print(system.logs())
        system.stop()
        raise
    return system


def write_instance(folder: Path) -> None:
    """Write the shipped dagster.yaml, with less patience."""
    instance = yaml.safe_load((PROJECT / "deploy" / "celery" / "dagster.yaml").read_text())
    instance["run_monitoring"] |= {
        "poll_interval_seconds": 10,
        "start_timeout_seconds": LOST_WORKER_SECONDS,
        "max_runtime_seconds": LOST_WORKER_SECONDS,
    }
    instance["run_retries"]["max_retries"] = 10
    (folder / "dagster.yaml").write_text(yaml.safe_dump(instance))


def add_worker(system: System, number: int) -> Process:
    """Start a worker in a folder of its own, under a user of its own where root starts it."""
    user = USERS[number] if os.geteuid() == 0 else None
    name = f"worker-{number}"
    folder = system.folder / name
    for each in (folder, folder / "tmp", folder / "bin", folder / "storage"):
        each.mkdir()
    write_instance(folder)
    shutil.copy(PROJECT / "deploy" / "celery" / "worker.yaml", folder)
    python = python_of(user)
    celery = folder / "bin" / "celery"
    celery.write_text(f'#!/bin/sh\nexec {python} -W ignore -m celery "$@"\n')
    celery.chmod(0o755)
    environment = {
        **system.environment,
        "DAGSTER_HOME": str(folder),
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "TRAJECTORY_DATA_FOLDER": str(folder / "data"),
        "PATH": f"{folder / 'bin'}:{system.environment['PATH']}",
    }
    if user is not None:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, user)
    command = [python, "-W", "ignore", "-c", "from dagster_celery.cli import main; main()", "worker", "start"]
    command += ["-A", "dagster_celery.app"]
    command += ["-y", "worker.yaml", "-n", name, "-i", "trajectory_pipeline.definitions"]
    worker = Process(name, [*command, "--", "--concurrency", "1"], environment, folder, user)
    worker.start()
    system.workers.append(worker)
    return worker


def python_of(user: str | None) -> str:
    """Return an interpreter that a user may execute: this one, else the system's of the same version."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for program in (sys.executable, f"/usr/bin/python{version}"):
        if user is None:
            return program
        entry = pwd.getpwnam(user)
        with contextlib.suppress(OSError):
            tried = subprocess.run(
                [program, "-c", ""], user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], check=False
            )
            if tried.returncode == 0:
                return program
    raise AssertionError(f"{user} may execute neither {sys.executable} nor /usr/bin/python{version}")


def make_bucket(s3_url: str) -> None:
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=s3_url,
        region_name="us-east-1",
        aws_access_key_id="somebody",
        aws_secret_access_key="of-the-test",
    )
    client.create_bucket(Bucket=BUCKET)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in vain: waited {seconds:.0f} s for {what}"
        time.sleep(0.5)


@contextlib.contextmanager
def running(system: System) -> Iterator[System]:
    """Stop the system at the end, and print its logs where that is an error."""
    try:
        yield system
    except BaseException:
        print(system.logs())
        raise
    finally:
        system.stop()
    shutil.rmtree(system.folder, ignore_errors=True)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/moto-api/", timeout=2):
        return True
    return False
