"""The storage layer's contract on four servers: two that speak S3, Google Cloud Storage's emulator, Azure's emulator.

`make storage-check` installs them. Requests are counted on the wire, which is what a provider sends a bill for.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.frames import TRAJECTORY_FRAME
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.cleanup import files_of, hours_with_folders, remove_files
from trajectory_pipeline.storage.parquet.corrupt_files import find_corruption, keep_corrupt_file
from trajectory_pipeline.storage.parquet.filesystem import FETCHED_BYTES
from trajectory_pipeline.storage.parquet.query import query_parquet
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.selection import Selection
from trajectory_pipeline_tests.crashes.worker import Stored, mark
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.object_storage.http_proxy import HalfSent, Proxy
from trajectory_pipeline_tests.object_storage.servers import SERVERS, ObjectServer, reached
from trajectory_pipeline_tests.storage.rows import HOUR, NEXT_HOUR, batch, trajectory

pytestmark = pytest.mark.process
BUSY = max(sample_partitions().items(), key=lambda item: item[1])[0]
_WRITE = """
import sys
import pyarrow as pa
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.schema.frames import TRAJECTORY_FRAME
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore
storage, key, path = sys.argv[1:]
ParquetStore(storage).write(TRAJECTORIES, parse_partition_key(key), pa.ipc.open_stream(path))
"""


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def proxy(server: ObjectServer) -> Iterator[Proxy]:
    """The way to the server, for this process and those that it starts."""
    with closing(Proxy(server.url)) as proxy, reached(server, proxy.url):
        yield proxy


@pytest.fixture
def store(server: ObjectServer, proxy: Proxy, tmp_path: Path) -> ParquetStore:
    store = ParquetStore(f"{server.storage}/{tmp_path.name}")
    proxy.requests.clear()
    return store


def run_ids(store: ParquetStore) -> list[str]:
    return [row["run_id"] for found in store.read(TRAJECTORIES, HOUR) for row in found.to_pylist()]


def test_partition_is_one_object_that_is_replaced_whole(store: ParquetStore, proxy: Proxy) -> None:
    assert not store.exists(TRAJECTORIES, HOUR)
    assert store.rows(TRAJECTORIES, HOUR) is None
    assert run_ids(store) == []
    proxy.requests.clear()
    assert store.write(TRAJECTORIES, HOUR, [batch(trajectory("run-1"))]).replaced
    assert len(proxy.requests) == 2
    assert not store.write(TRAJECTORIES, HOUR, [batch(trajectory("run-1"))]).replaced
    assert len(proxy.requests) == 3
    assert store.exists(TRAJECTORIES, HOUR)
    written = store.write(TRAJECTORIES, HOUR, [batch(trajectory("run-2"), trajectory("run-3"))])
    assert run_ids(store) == ["run-2", "run-3"]
    assert store.rows(TRAJECTORIES, HOUR) == 2
    assert store.find_matching(TRAJECTORIES, HOUR, written.sha256) is not None
    assert store.column_types(TRAJECTORIES, HOUR) is not None
    assert files_of(store, TRAJECTORIES, HOUR).count == 1


def test_partitions_are_listed_queried_and_removed(store: ParquetStore) -> None:
    for hour, run_id in ((HOUR, "run-1"), (NEXT_HOUR, "run-2")):
        store.write(TRAJECTORIES, hour, [batch(trajectory(run_id, partition_key(hour)))])
    assert hours_with_folders(store, TRAJECTORIES) == [HOUR, NEXT_HOUR]
    found = query_parquet(store.uri, TRAJECTORY_FRAME, Selection(), ["run_id"]).fetchall()
    assert sorted(found) == [("run-1",), ("run-2",)]
    assert remove_files(store, TRAJECTORIES, HOUR).count == 1
    assert hours_with_folders(store, TRAJECTORIES) == [NEXT_HOUR]
    store.probe()


def test_corrupt_object_is_reported_and_kept_when_replaced(store: ParquetStore) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("run-1"))])
    filesystem, path = store.filesystem(TRAJECTORIES, HOUR)
    filesystem.pipe_file(path, filesystem.cat_file(path)[:1000])
    assert find_corruption(store, TRAJECTORIES, HOUR) is not None
    keep_corrupt_file(store, TRAJECTORIES, HOUR)
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("run-1"))])
    assert files_of(store, TRAJECTORIES, HOUR).count == 2
    assert hours_with_folders(store, TRAJECTORIES) == [HOUR]
    assert find_corruption(store, TRAJECTORIES, HOUR) is None


def test_large_object_comes_back_whole(store: ParquetStore) -> None:
    large = large_batch(60 * 2**20)
    written = store.write(TRAJECTORIES, HOUR, [large])
    assert written.bytes > 3 * FETCHED_BYTES
    assert pa.Table.from_batches(store.read(TRAJECTORIES, HOUR)).equals(pa.Table.from_batches([large]))
    assert store.find_matching(TRAJECTORIES, HOUR, written.sha256) is not None
    assert not store.write(TRAJECTORIES, HOUR, [large]).replaced


def large_batch(size: int) -> pa.RecordBatch:
    """Two rows with so many bytes of text that cannot be compressed well."""
    texts = [np.random.default_rng(seed).bytes(size // 4).hex() for seed in (1, 2)]
    return batch(*(trajectory(f"run-{number}", agent_name=text) for number, text in enumerate(texts)))


def test_object_of_another_process_is_seen_at_once(store: ParquetStore, server: ObjectServer) -> None:
    assert hours_with_folders(store, TRAJECTORIES) == []
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("run-1"))])
    filesystem, path = store.filesystem(TRAJECTORIES, HOUR)
    other = type(filesystem)(**filesystem.storage_options, skip_instance_cache=True)
    assert hours_with_folders(store, TRAJECTORIES) == [HOUR]
    other.rm_file(path)
    assert hours_with_folders(store, TRAJECTORIES) == []
    assert store.rows(TRAJECTORIES, HOUR) is None


def test_reader_sees_whole_versions_during_replacement(store: ParquetStore) -> None:
    versions = [[f"run-{version}-{number}" for number in range(version + 1)] for version in range(4)]
    store.write(TRAJECTORIES, HOUR, [batch(*map(trajectory, versions[0]))])
    ended = threading.Event()

    def write() -> None:
        for version in versions * 3:
            store.write(TRAJECTORIES, HOUR, [batch(*map(trajectory, version))])
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [run_ids(store)]
    while not ended.is_set():
        seen.append(run_ids(store))
    writer.join()
    assert [found for found in seen if found not in versions] == []


def test_writer_killed_in_the_middle_of_an_upload_leaves_the_former_object(
    store: ParquetStore, proxy: Proxy, tmp_path: Path
) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("run-1"))])
    path = tmp_path / "rows.arrow"
    rows = large_batch(2 * 2**20)
    with pa.ipc.new_stream(path, rows.schema) as file:
        file.write_batch(rows)
    seen: list[list[str]] = []
    process = subprocess.Popen([sys.executable, "-c", _WRITE, store.uri, partition_key(HOUR), str(path)])

    def kill() -> None:
        seen.append(run_ids(store))
        process.kill()
        process.wait()

    proxy.fault = lambda request: HalfSent(kill) if request.method in ("PUT", "POST") else None
    assert process.wait(60) != 0
    proxy.fault = lambda request: None
    assert [*seen, run_ids(store)] == [["run-1"]] * 2
    assert store.write(TRAJECTORIES, HOUR, [rows]).replaced
    assert run_ids(store) == ["run-0", "run-1"]


def test_requests_of_a_partition_are_few(
    server: ObjectServer,
    proxy: Proxy,
    letta_database: str,
    trajectory_database: str,
    judge: SimulatedJudge,
    tmp_path: Path,
) -> None:
    """As docs/deploy.md says."""
    uri = f"{server.storage}/{tmp_path.name}"
    stored = Stored(letta_database, trajectory_database, tmp_path, judge.base_url, uri=uri)

    def requests_of(work: Callable[[datetime], object]) -> tuple[int, int]:
        """Return how many requests were made, and how many of them write."""
        proxy.requests.clear()
        work(BUSY)
        return len(proxy.requests), sum(request.method in ("PUT", "POST") for request in proxy.requests)

    assert requests_of(stored.capture) == (5, 2), proxy.requests
    assert requests_of(stored.capture) == (3, 0), proxy.requests
    mark(stored, "changed", [BUSY])
    assert requests_of(stored.capture) == (5, 2), proxy.requests
    # Asked whether an object is there, gcsfs looks for a folder of that name too, and asks again before it reads it.
    most = 6 if uri.startswith("gs:") else 4
    assert requests_of(stored.refine) <= (most, 1), proxy.requests
    assert reconcile_partition(BUSY, stored.storage).differences == ()
    assert {row["project_id"] for row in stored.parquet(TRAJECTORIES, BUSY)} == {"changed"}
