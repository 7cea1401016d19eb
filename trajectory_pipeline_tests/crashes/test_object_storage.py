"""The contract of object storage, on S3's own wire: the whole pipeline on ``s3://``, one PUT a partition and file.

A ``moto`` server in a process of its own speaks S3 over HTTP. A reader gets one version or the other; a writer that is
killed in the middle of an upload leaves the former object; no listing that a process remembers hides what others wrote.
"""

import os
import socket
import urllib.request
from typing import Any

import pytest

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline_tests.crashes.objects import BUCKET, BUSY, key_of_file
from trajectory_pipeline_tests.crashes.processes import wait_until, workers
from trajectory_pipeline_tests.crashes.wire import Wire
from trajectory_pipeline_tests.crashes.worker import Stored, mark
from trajectory_pipeline_tests.object_store import SECRET

pytestmark = [pytest.mark.process, pytest.mark.heavy]


def test_pipeline_runs_on_object_storage(stored: Stored, client: Any, s3_wire: Wire) -> None:
    puts: list[bytes] = []
    requests: list[bytes] = []

    def notes(piece: bytes, passed: int) -> bool:
        if piece.startswith((b"PUT ", b"POST ")):
            puts.append(piece.split(b" ")[1])
        if piece.startswith((b"PUT ", b"POST ", b"GET ", b"HEAD ", b"DELETE ")):
            requests.append(piece.split(b"\r\n")[0])
        return False

    def requests_of_capture() -> int:
        requests.clear()
        stored.capture(BUSY)
        return len(requests)

    s3_wire.from_client = notes
    assert requests_of_capture() == 5, requests
    assert len(puts) == 2
    assert reconcile_partition(BUSY, stored.storage).differences == ()
    before = {item["Key"]: item["LastModified"] for item in objects(client, stored)}
    assert len(before) == 2
    # Unchanged: nothing is uploaded. Changed: one PUT a file, in place of the former.
    assert requests_of_capture() == 3, requests
    assert len(puts) == 2
    mark(stored, "changed", [BUSY])
    assert requests_of_capture() == 5, requests
    assert len(puts) == 4
    assert {row["project_id"] for row in stored.parquet(TRAJECTORIES, BUSY)} == {"changed"}
    assert {item["Key"] for item in objects(client, stored)} == before.keys()


def objects(client: Any, stored: Stored) -> list[dict[str, Any]]:
    prefix = stored.uri.removeprefix(f"s3://{BUCKET}/")
    contents: list[dict[str, Any]] = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return contents


def test_worker_killed_during_upload_leaves_the_former_object(stored: Stored, client: Any, s3_wire: Wire) -> None:
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
    assert reconcile_partition(BUSY, stored.storage).differences == ()
    assert stored.ask("SELECT * FROM trajectory.invalidations") == []


def test_object_of_another_writer_is_visible_at_once(stored: Stored, client: Any) -> None:
    assert not stored.store.exists(TERMINAL_RUNS, BUSY)
    assert stored.store.rows(TERMINAL_RUNS, BUSY) is None
    key = stored.store.path_of(TERMINAL_RUNS, BUSY).removeprefix(f"s3://{BUCKET}/")
    client.put_object(Bucket=BUCKET, Key=key, Body=b"PAR1")
    assert stored.store.exists(TERMINAL_RUNS, BUSY)
    client.delete_object(Bucket=BUCKET, Key=key)
    assert not stored.store.exists(TERMINAL_RUNS, BUSY)


def test_two_writers_leave_one_whole_object(stored: Stored, client: Any) -> None:
    with workers(**{name: os.environ[name] for name in os.environ if name.startswith("AWS_")}) as crew:
        both = [crew.start(stored, [BUSY], rounds=3, marked=name) for name in ("one", "another")]
        for worker in both:
            assert crew.result(worker) == {"pid": worker, "done": True}
    versions = {row["project_id"] for row in stored.parquet(TRAJECTORIES, BUSY)}
    assert versions in [{"one-2"}, {"another-2"}]
    assert versions == {row["project_id"] for row in stored.ask("SELECT project_id FROM trajectory.trajectories")}


def test_missing_bucket_raises_without_credentials(stored: Stored) -> None:
    stored.uri = "s3://of-nobody/here"
    with pytest.raises(
        SinkError, match=r" failed: The specified bucket does not exist\. .*TRAJECTORY_STORAGE_URI"
    ) as refusal:
        stored.read(BUSY)
    assert "\n" not in str(refusal.value)
    assert SECRET not in str(refusal.value)


def test_unreachable_s3_server_raises_without_credentials(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, s3_wire: Wire
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(
        SinkError, match=r"^Reading s3://elsewhere/.* failed: .*connect.*TRAJECTORY_STORAGE_URI"
    ) as refusal:
        ParquetStore("s3://elsewhere/here").exists(TRAJECTORIES, BUSY)
    assert SECRET not in str(refusal.value)


def test_refused_credentials_raise_and_change_nothing(stored: Stored, client: Any, s3_server: str) -> None:
    stored.capture(BUSY)
    mark(stored, "changed", [BUSY])
    before = {item["Key"]: item["ETag"] for item in objects(client, stored)}
    ledger = stored.ask("SELECT * FROM trajectory.partitions ORDER BY 1, 2")
    # From now on the server knows its users, and "somebody" is none of them.
    count_as_anonymous(s3_server, "0")
    try:
        for work in (stored.read, stored.convert):
            with pytest.raises(SinkError, match=r"^Reading s3://.* failed: .*TRAJECTORY_STORAGE_URI") as refusal:
                work(BUSY)
            assert "credentials" in str(refusal.value)
            assert "\n" not in str(refusal.value)
            assert SECRET not in str(refusal.value)
    finally:
        count_as_anonymous(s3_server, "inf")
    assert {item["Key"]: item["ETag"] for item in objects(client, stored)} == before
    assert stored.ask("SELECT * FROM trajectory.partitions ORDER BY 1, 2") == ledger
    stored.capture(BUSY)
    assert {row["project_id"] for row in stored.parquet(TRAJECTORIES, BUSY)} == {"changed"}


def count_as_anonymous(s3_server: str, number: str) -> None:
    """Let the server take so many more calls without looking at who makes them."""
    text = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{s3_server}/moto-api/reset-auth", number.encode(), text, method="POST")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
