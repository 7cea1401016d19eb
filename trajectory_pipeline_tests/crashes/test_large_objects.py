"""The contract of a partition that is too large for one PUT: its upload in parts is seen whole or not at all."""

import base64
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.crashes.objects import BUCKET, BUSY, key_of_file
from trajectory_pipeline_tests.crashes.processes import wait_until
from trajectory_pipeline_tests.crashes.wire import Wire
from trajectory_pipeline_tests.crashes.worker import Stored

pytestmark = [pytest.mark.process, pytest.mark.heavy]

_BYTES = 160 * 2**20
"""Of text at random, of which a quarter can be compressed away: more than two of the 50 MiB that a part has."""

_WRITE = """
import sys
import pyarrow as pa
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore
storage, key, path = sys.argv[1:]
ParquetStore(storage).write(TRAJECTORIES, parse_partition_key(key), pa.ipc.open_stream(path))
"""


@pytest.fixture
def large(stored: Stored, tmp_path: Path) -> Path:
    """A partition as it was captured, with names so long that its file takes several parts."""
    stored.capture(BUSY)
    (batch,) = stored.store.read(TRAJECTORIES, BUSY)
    place = batch.schema.get_field_index("agent_name")
    names = [base64.b64encode(os.urandom(_BYTES // batch.num_rows * 3 // 4)).decode() for _ in range(batch.num_rows)]
    batch = batch.set_column(place, batch.schema.field(place), pa.array(names, batch.schema.field(place).type))
    path = tmp_path / "large.arrow"
    with pa.ipc.new_stream(path, batch.schema) as file:
        file.write_batch(batch)
    return path


def version(client: Any, stored: Stored) -> Any:
    return client.head_object(Bucket=BUCKET, Key=key_of_file(stored))["ETag"]


def uploads(client: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return found


def test_multipart_object_is_unchanged_until_its_last_part(
    stored: Stored, client: Any, s3_wire: Wire, large: Path
) -> None:
    former = version(client, stored)
    seen: list[Any] = []

    def look(piece: bytes, passed: int) -> bool:
        if piece.startswith(b"PUT ") and b"partNumber=" in piece:
            seen.append(version(client, stored))
        return False

    s3_wire.from_client = look
    written = stored.store.write(TRAJECTORIES, BUSY, pa.ipc.open_stream(large))
    assert len(seen) > 1
    assert set(seen) == {former}
    assert written.bytes == client.head_object(Bucket=BUCKET, Key=key_of_file(stored))["ContentLength"] > 100 * 2**20
    assert stored.store.find_matching(TRAJECTORIES, BUSY, written.sha256) is not None
    assert uploads(client) == []


def test_writer_killed_between_parts_leaves_the_former_object(
    stored: Stored, client: Any, s3_wire: Wire, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts that it uploaded are invisible."""
    former = version(client, stored)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITE, stored.uri, partition_key(BUSY), str(large)],
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    parts: list[bytes] = []

    def kill(piece: bytes, passed: int) -> bool:
        if piece.startswith(b"PUT ") and b"partNumber=" in piece:
            parts.append(piece)
        if len(parts) < 2:
            return False
        process.kill()
        return True

    s3_wire.from_client = kill
    wait_until(lambda: s3_wire.cuts, "the second part")
    process.wait()
    s3_wire.from_client = lambda piece, passed: False
    assert version(client, stored) == former
    assert [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]].count(key_of_file(stored)) == 1
    # As docs/deploy.md says: a lifecycle rule of the bucket ends the upload, and the next worker removes the file.
    (upload,) = uploads(client)
    client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    (folder,) = temporary.iterdir()
    assert (stat.S_IMODE(folder.stat().st_mode), len(list(folder.iterdir()))) == (0o700, 1)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    written = stored.store.write(TRAJECTORIES, BUSY, pa.ipc.open_stream(large))
    assert stored.store.find_matching(TRAJECTORIES, BUSY, written.sha256) is not None
    # The next worker has removed what the killed one left.
    assert list(folder.iterdir()) == []
