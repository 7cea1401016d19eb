"""The contract of object storage, on S3's own wire: the whole pipeline on ``s3://``, one PUT a partition and file.

A ``moto`` server in a process of its own speaks S3 over HTTP. A reader gets one version or the other; a writer that is
killed in the middle of an upload leaves the former object; no listing that a process remembers hides what others wrote.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from s3fs import S3FileSystem

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.sample.load import sample_partitions
from trajectory_pipeline.schema.letta import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectory import TRAJECTORIES
from trajectory_pipeline.sinks.parquet import ParquetStore
from trajectory_pipeline.stages.verification import verify_partition
from trajectory_pipeline_tests.crashes.processes import wait_until, workers
from trajectory_pipeline_tests.crashes.wire import Wire, wire
from trajectory_pipeline_tests.crashes.worker import Stored, mark

SECRET = "an-access-key-that-nobody-may-see"
BUCKET = "trajectories"
BUSY = max(sample_partitions().items(), key=lambda item: item[1])[0]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The URL of a server that speaks S3."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _answers(port), "the server of objects")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def s3_wire(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The way to the server, which a test may cut; the variables that s3fs reads lead over it."""
    with wire(s3_server) as made:
        variables = {
            "AWS_ENDPOINT_URL_S3": made.url.replace("//@", "//"),
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        # It keeps a file system a process, whatever the variables say later.
        S3FileSystem.clear_instance_cache()
        yield made
        S3FileSystem.clear_instance_cache()


@pytest.fixture
def client(s3_wire: Wire, s3_server: str) -> Any:
    client = botocore.session.get_session().create_client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def stored(letta_database: str, trajectory_database: str, client: Any, tmp_path: Path) -> Stored:
    # A prefix of its own: s3fs keeps one file system a process, and what a test wrote stands there for the next.
    return Stored(letta_database, trajectory_database, tmp_path, storage=f"s3://{BUCKET}/{tmp_path.name}")


def key_of_file(stored: Stored, hour: datetime = BUSY) -> str:
    return stored.store.path_of(TRAJECTORIES, hour).removeprefix(f"s3://{BUCKET}/")


def test_the_whole_pipeline_stands_on_object_storage(stored: Stored, client: Any, s3_wire: Wire) -> None:
    puts: list[bytes] = []

    def notes(piece: bytes, passed: int) -> bool:
        if piece.startswith((b"PUT ", b"POST ")):
            puts.append(piece.split(b" ")[1])
        return False

    s3_wire.from_client = notes
    stored.capture(BUSY)
    assert len(puts) == 2
    assert verify_partition(BUSY, stored.store, stored.database).differences == ()
    before = {item["Key"]: item["LastModified"] for item in objects(client, stored)}
    assert len(before) == 2
    # Unchanged: nothing is uploaded. Changed: one PUT a file, in place of the former.
    stored.capture(BUSY)
    assert len(puts) == 2
    mark(stored, "changed", [BUSY])
    stored.capture(BUSY)
    assert len(puts) == 4
    assert {row["project_id"] for row in stored.parquet(TRAJECTORIES, BUSY)} == {"changed"}
    assert {item["Key"] for item in objects(client, stored)} == before.keys()


def objects(client: Any, stored: Stored) -> list[dict[str, Any]]:
    prefix = stored.storage.removeprefix(f"s3://{BUCKET}/")
    contents: list[dict[str, Any]] = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return contents


def test_a_worker_that_is_killed_in_the_middle_of_an_upload_leaves_the_former_object(
    stored: Stored, client: Any, s3_wire: Wire
) -> None:
    stored.capture(BUSY)
    mark(stored, "changed", [BUSY])
    stored.read(BUSY)
    former = client.get_object(Bucket=BUCKET, Key=key_of_file(stored))["Body"].read()
    with workers(**{name: os.environ[name] for name in os.environ if name.startswith("AWS_")}) as crew:
        uploading: list[int] = []

        def kill(piece: bytes, passed: int) -> bool:
            if piece.startswith(b"PUT ") and uploading:
                crew.kill(uploading[0])
                return True
            return False

        s3_wire.from_client = kill
        uploading.append(crew.start(stored, [BUSY]))
        wait_until(lambda: s3_wire.cuts, "the upload")
    s3_wire.from_client = lambda piece, passed: False
    assert client.get_object(Bucket=BUCKET, Key=key_of_file(stored))["Body"].read() == former
    assert client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    stored.capture(BUSY)
    assert verify_partition(BUSY, stored.store, stored.database).differences == ()
    assert stored.ask("SELECT * FROM trajectory.unsettled") == []


def test_what_others_wrote_is_seen_at_once(stored: Stored, client: Any) -> None:
    assert not stored.store.exists(TERMINAL_RUNS, BUSY)
    assert stored.store.rows(TERMINAL_RUNS, BUSY) is None
    key = stored.store.path_of(TERMINAL_RUNS, BUSY).removeprefix(f"s3://{BUCKET}/")
    client.put_object(Bucket=BUCKET, Key=key, Body=b"PAR1")
    assert stored.store.exists(TERMINAL_RUNS, BUSY)
    client.delete_object(Bucket=BUCKET, Key=key)
    assert not stored.store.exists(TERMINAL_RUNS, BUSY)


def test_two_writers_come_to_one_whole_version(stored: Stored, client: Any) -> None:
    with workers(**{name: os.environ[name] for name in os.environ if name.startswith("AWS_")}) as crew:
        both = [crew.start(stored, [BUSY], rounds=3, marked=name) for name in ("one", "another")]
        for worker in both:
            assert crew.result(worker) == {"pid": worker, "done": True}
    versions = {row["project_id"] for row in stored.parquet(TRAJECTORIES, BUSY)}
    assert versions in [{"one-2"}, {"another-2"}]
    assert versions == {row["project_id"] for row in stored.ask("SELECT project_id FROM trajectory.trajectories")}


def test_a_bucket_that_is_not_there_is_told_without_credentials(stored: Stored) -> None:
    stored.storage = "s3://of-nobody/here"
    with pytest.raises(
        SinkError, match=r" failed: The specified bucket does not exist\. .*TRAJECTORY_STORAGE_URI"
    ) as refusal:
        stored.read(BUSY)
    assert "\n" not in str(refusal.value)
    assert SECRET not in str(refusal.value)


def test_a_server_that_is_not_there_is_told_without_credentials(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, s3_wire: Wire
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(
        SinkError, match=r"^Reading s3://elsewhere/.* failed: .*connect.*TRAJECTORY_STORAGE_URI"
    ) as refusal:
        ParquetStore("s3://elsewhere/here").exists(TRAJECTORIES, BUSY)
    assert SECRET not in str(refusal.value)
