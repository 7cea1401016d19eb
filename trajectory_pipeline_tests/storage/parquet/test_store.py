"""The contract of the Parquet storage: one file a partition, one version or the other, never a part; readable by all.

And: what cannot be written or read is one sentence, and leaves the former file as it was.
"""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.errors import PipelineError, SinkError
from trajectory_pipeline.schema.enums import FileAccess
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.parquet import io
from trajectory_pipeline.storage.parquet.corrupt_files import keep_corrupt_file
from trajectory_pipeline.storage.parquet.store import ParquetStore, hour_folder
from trajectory_pipeline_tests.storage.rows import HOUR, NEXT_HOUR, batch, trajectory


@pytest.fixture
def store(tmp_path: Path) -> ParquetStore:
    return ParquetStore(str(tmp_path / "storage"))


@pytest.fixture
def remote() -> Iterator[ParquetStore]:
    """A storage that is no local folder."""
    yield ParquetStore("memory://bucket/prefix")
    fsspec.filesystem("memory").store.clear()


def path_in(store: ParquetStore) -> Path:
    return Path(store.path_of(TRAJECTORIES, HOUR))


def run_ids(store: ParquetStore) -> list[str]:
    return [row["run_id"] for found in store.read(TRAJECTORIES, HOUR) for row in found.to_pylist()]


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- one file, replaced whole -------------------------------------------------------------------------------------


def test_partition_is_one_file_in_the_folder_of_its_hour(store: ParquetStore, tmp_path: Path) -> None:
    written = store.write(TRAJECTORIES, HOUR, [batch(trajectory("a")), batch(trajectory("b"), trajectory("c"))])
    assert files_under(tmp_path / "storage") == ["trajectories/hour=2026-11-20T09/part-0.parquet"]
    assert hour_folder(HOUR) == "hour=2026-11-20T09"
    assert (written.rows, written.replaced, written.uri) == (3, True, store.path_of(TRAJECTORIES, HOUR))
    assert written.bytes == path_in(store).stat().st_size
    assert run_ids(store) == ["a", "b", "c"]


def bytes_of(rows: pa.RecordBatch) -> int:
    return io._bytes_of(rows.to_struct_array())


_TEXTS = st.none() | st.text(max_size=3)
_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": _TEXTS,
            "number": st.none() | st.booleans(),
            "all": st.none(),
            "part": st.none() | st.fixed_dictionaries({"text": _TEXTS}),
            "list": st.none() | st.lists(st.none() | st.fixed_dictionaries({"text": _TEXTS, "more": st.lists(_TEXTS)})),
        }
    ),
    max_size=6,
)
_KIND = pa.struct(
    [
        ("text", pa.string()),
        ("number", pa.bool_()),
        ("all", pa.string()),
        ("part", pa.struct([("text", pa.string())])),
        ("list", pa.list_(pa.struct([("text", pa.string()), ("more", pa.list_(pa.string()))]))),
    ]
)


@given(rows=_ROWS, first=st.integers(0, 6), length=st.integers(0, 6))
def test_bytes_of_rows_are_the_sum_of_those_of_each(rows: list[dict[str, Any]], first: int, length: int) -> None:
    column = pa.array(rows, _KIND).slice(first, length)
    before = io._bytes_before(column)
    assert io._bytes_of(column) == before[-1]
    assert [io._bytes_of(column.slice(n, 1)) for n in range(len(column))] == np.diff(before).tolist()


def test_small_batches_are_joined_into_row_groups(store: ParquetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [batch(trajectory(f"run-{number:04}")) for number in range(7)]
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 3 * bytes_of(batches[0]))
    store.write(TRAJECTORIES, HOUR, batches)
    file = pq.ParquetFile(path_in(store)).metadata
    assert [file.row_group(number).num_rows for number in range(file.num_row_groups)] == [3, 3, 1]
    assert run_ids(store) == [f"run-{number:04}" for number in range(7)]


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_same_rows_make_the_same_file_however_they_are_divided(
    store: ParquetStore, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Rows that are merged, or read back from a file, come in other batches, and with other null bitmaps."""
    rows = batch(*[trajectory(f"run-{number:04}") for number in range(50)])
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 7 * bytes_of(rows.slice(0, 1)))
    written = store.write(TRAJECTORIES, HOUR, [rows])
    monkeypatch.setattr(io, "_ROWS_AT_ONCE", at_once)
    read = list(store.read(TRAJECTORIES, HOUR))
    assert max(each.num_rows for each in read) <= at_once
    assert store.write(TRAJECTORIES, HOUR + timedelta(hours=1), read).sha256 == written.sha256
    parts = [rows.slice(first, at_once) for first in range(0, 50, at_once)]
    assert store.write(TRAJECTORIES, HOUR + timedelta(hours=2), parts).sha256 == written.sha256


@pytest.mark.parametrize("wanted", [[], [0], [3, 4, 49], range(50)])
def test_wanted_rows_alone_are_read(
    store: ParquetStore, monkeypatch: pytest.MonkeyPatch, wanted: Sequence[int]
) -> None:
    rows = batch(*[trajectory(f"run-{number:04}") for number in range(50)])
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 7 * bytes_of(rows.slice(0, 1)))
    monkeypatch.setattr(io, "_ROWS_AT_ONCE", 2)
    store.write(TRAJECTORIES, HOUR, [rows])
    read = list(store.read(TRAJECTORIES, HOUR, ["run_id"], rows=np.isin(np.arange(50), wanted)))
    assert [run_id for each in read for run_id in each.column(0).to_pylist()] == [
        f"run-{number:04}" for number in wanted
    ]


def test_empty_batch_makes_no_row_group(store: ParquetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 1)
    nothing = batch(trajectory("a")).slice(0, 0)
    assert store.write(TRAJECTORIES, HOUR, [nothing]).rows == 0
    assert run_ids(store) == []
    assert store.write(TRAJECTORIES, HOUR, [nothing, batch(trajectory("a")), nothing, batch(trajectory("b"))]).rows == 2
    assert run_ids(store) == ["a", "b"]


def test_row_group_has_statistics_of_top_level_columns_only(store: ParquetStore) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"), trajectory("b"))])
    group = pq.ParquetFile(path_in(store)).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    told = {column.path_in_schema: column.statistics for column in columns if column.is_stats_set}
    assert (told["run_id"].min, told["run_id"].max) == ("a", "b")
    assert "end_time" in told
    assert not [path for path in told if "." in path]


def test_second_write_replaces_the_whole_file(store: ParquetStore) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"), trajectory("b"))])
    assert store.write(TRAJECTORIES, HOUR, [batch(trajectory("c"))]).replaced
    assert run_ids(store) == ["c"]


def test_write_without_rows_makes_an_empty_file(store: ParquetStore) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    assert store.write(TRAJECTORIES, HOUR, []).rows == 0
    assert run_ids(store) == []
    assert store.exists(TRAJECTORIES, HOUR)
    assert "run_id" in pq.read_schema(path_in(store)).names


def test_read_without_a_file_yields_no_rows(store: ParquetStore) -> None:
    assert not store.exists(TRAJECTORIES, HOUR)
    assert list(store.read(TRAJECTORIES, HOUR)) == []


def test_write_of_the_same_rows_leaves_the_file_alone(store: ParquetStore) -> None:
    first = store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    before = path_in(store).stat()
    again = store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    after = path_in(store).stat()
    assert (again.sha256, again.replaced) == (first.sha256, False)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    other = store.write(TRAJECTORIES, HOUR, [batch(trajectory("a", status="failed"))])
    assert (other.sha256 != first.sha256, other.replaced) == (True, True)


def test_failing_rows_leave_the_former_file_unchanged(store: ParquetStore, tmp_path: Path) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    before = path_in(store).read_bytes()

    def failing() -> Iterator[pa.RecordBatch]:
        yield batch(trajectory("b"))
        raise PipelineError("the source is gone")

    # What the rows' origin says is passed on: it is not the storage that failed.
    with pytest.raises(PipelineError, match=r"^the source is gone$"):
        store.write(TRAJECTORIES, HOUR, failing())
    assert path_in(store).read_bytes() == before
    assert files_under(tmp_path / "storage") == ["trajectories/hour=2026-11-20T09/part-0.parquet"]


def test_os_error_of_the_rows_is_not_a_storage_error(store: ParquetStore) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield batch(trajectory("b"))
        raise ConnectionResetError("by the source")

    with pytest.raises(ConnectionResetError):
        store.write(TRAJECTORIES, HOUR, failing())


def test_staged_file_is_invisible_until_published(store: ParquetStore, tmp_path: Path) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    with store.stage(TRAJECTORIES, HOUR, [batch(trajectory("b"))]) as prepared:
        assert run_ids(store) == ["a"]
        written = prepared.publish()
        assert run_ids(store) == ["b"]
    assert (written.sha256, written.rows) == (prepared.sha256, 1)
    with store.stage(TRAJECTORIES, HOUR, [batch(trajectory("c"))]):
        pass
    assert run_ids(store) == ["b"]
    assert len(files_under(tmp_path / "storage")) == 1


def test_reader_sees_whole_versions_during_replacement(store: ParquetStore) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("v0-0"), trajectory("v0-1"))])
    seen: list[list[str]] = []
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            seen.append(run_ids(store))
            # Who opens the file more than once, as pandas does, may meet two versions: that is an error, no mixture.
            with contextlib.suppress(OSError):
                seen.append(pd.read_parquet(path_in(store), columns=["run_id"])["run_id"].tolist())

    reader = threading.Thread(target=poll)
    reader.start()
    for version in range(1, 51):
        rows = [trajectory(f"v{version}-{place}") for place in range(2)]
        store.write(TRAJECTORIES, HOUR, [batch(rows[0]), batch(rows[1])])
    done.set()
    reader.join()
    versions = {tuple(found) for found in seen}
    assert len(versions) > 1
    assert versions <= {(f"v{version}-0", f"v{version}-1") for version in range(51)}


@pytest.mark.process
def test_leftover_of_a_killed_writer_is_removed_and_not_read(store: ParquetStore, tmp_path: Path) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    program = f"""
        import time
        from trajectory_pipeline.schema.trajectories import TRAJECTORIES
        from trajectory_pipeline.storage.parquet.store import ParquetStore
        from trajectory_pipeline_tests.storage.rows import HOUR, batch, trajectory

        def endless():
            yield batch(trajectory("b"))
            print("under way", flush=True)
            time.sleep(600)

        ParquetStore({store.uri!r}).write(TRAJECTORIES, HOUR, endless())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"under way\n"
        os.kill(writer.pid, signal.SIGKILL)
    folder = path_in(store).parent
    left = [path.name for path in folder.iterdir() if path.name != "part-0.parquet"]
    assert len(left) == 1
    assert not left[0].endswith(".parquet")
    assert run_ids(store) == ["a"]
    assert duckdb.sql(f"SELECT run_id FROM '{folder}/*.parquet'").fetchall() == [("a",)]
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("c"))])
    assert [path.name for path in folder.iterdir()] == ["part-0.parquet"]


# ---- older files --------------------------------------------------------------------------------------------------


def test_column_missing_in_an_older_file_is_null_or_empty(store: ParquetStore) -> None:
    table = pa.Table.from_batches([batch(trajectory("a", turns=[turn()], error=None))])
    path_in(store).parent.mkdir(parents=True)
    older = table.drop_columns(["ttft_ns", "tools_used", "signals"])
    kind = pa.list_(pa.struct([("step_id", pa.string()), ("input_tokens", pa.int64())]))
    older = older.set_column(
        older.schema.get_field_index("turns"), "turns", pa.array([[{"step_id": "s", "input_tokens": 3}]], kind)
    )
    older = older.append_column("of_long_ago", pa.array(["x"]))
    pq.write_table(older, path_in(store))
    (row,) = [row for found in store.read(TRAJECTORIES, HOUR) for row in found.to_pylist()]
    assert (row["run_id"], row["ttft_ns"], row["tools_used"], row["signals"]) == ("a", None, [], None)
    assert row["turns"][0] == dict.fromkeys(turn()) | {"step_id": "s", "input_tokens": 3}
    assert "of_long_ago" not in row


def turn() -> dict[str, Any]:
    from trajectory_pipeline.schema.trajectories import TURN
    from trajectory_pipeline_tests.storage.rows import plain

    return {column.name: plain(column) for column in TURN}


# ---- readable by others -------------------------------------------------------------------------------------------


def test_pandas_duckdb_and_pyarrow_read_the_files(store: ParquetStore, tmp_path: Path) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a", tools_used=["search"]))])
    store.write(TRAJECTORIES, NEXT_HOUR, [batch(trajectory("b"), trajectory("c"))])
    folder = tmp_path / "storage" / "trajectories"
    frame = pd.read_parquet(folder)
    assert frame[["run_id", "hour"]].astype(str).to_numpy().tolist() == [
        ["a", "2026-11-20T09"],
        ["b", "2026-11-20T10"],
        ["c", "2026-11-20T10"],
    ]
    assert pd.read_parquet(path_in(store))["tools_used"].iloc[0].tolist() == ["search"]
    query = f"SELECT hour, count(*) FROM read_parquet('{folder}/*/part-0.parquet', hive_partitioning=true) GROUP BY 1"
    assert sorted((str(hour), number) for hour, number in duckdb.sql(query).fetchall()) == [
        ("2026-11-20T09", 1),
        ("2026-11-20T10", 2),
    ]
    dataset = ds.dataset(folder, partitioning="hive")
    assert dataset.to_table(filter=ds.field("hour") == "2026-11-20T10").column("run_id").to_pylist() == ["b", "c"]


# ---- other storages -----------------------------------------------------------------------------------------------


def test_object_store_gets_one_object_a_partition(remote: ParquetStore) -> None:
    assert not remote.exists(TRAJECTORIES, HOUR)
    first = remote.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    assert (first.replaced, remote.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))]).replaced) == (True, False)
    assert remote.write(TRAJECTORIES, HOUR, [batch(trajectory("b"))]).replaced
    assert run_ids(remote) == ["b"]
    assert list(fsspec.filesystem("memory").store) == ["/bucket/prefix/trajectories/hour=2026-11-20T09/part-0.parquet"]


def test_failing_rows_leave_the_former_object_unchanged(remote: ParquetStore) -> None:
    remote.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])

    def failing() -> Iterator[pa.RecordBatch]:
        yield batch(trajectory("b"))
        raise PipelineError("no more")

    with pytest.raises(PipelineError, match="no more"):
        remote.write(TRAJECTORIES, HOUR, failing())
    assert run_ids(remote) == ["a"]


def test_failed_put_raises_one_sentence(remote: ParquetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):  # as botocore's: no OSError
        pass

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    remote.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
    with pytest.raises(SinkError, match=r"^Writing memory://bucket/prefix/.* failed: Unable to locate credentials\. "):
        remote.write(TRAJECTORIES, HOUR, [batch(trajectory("b"))])
    assert run_ids(remote) == ["a"]


# ---- bad input ----------------------------------------------------------------------------------------------------


def sentence(caught: pytest.ExceptionInfo[SinkError]) -> str:
    text = str(caught.value)
    assert "TRAJECTORY_STORAGE_URI" in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_uncreatable_folder_raises_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ParquetStore(str(tmp_path / "file"))
    with pytest.raises(SinkError) as caught:
        store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    assert sentence(caught).startswith(f"Writing {tmp_path}/file/trajectories/hour=2026-11-20T09/part-0.parquet failed")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_raises_one_sentence(store: ParquetStore, tmp_path: Path) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    path_in(store).parent.chmod(0o500)
    try:
        with pytest.raises(SinkError) as caught:
            store.write(TRAJECTORIES, HOUR, [batch(trajectory("b"))])
    finally:
        path_in(store).parent.chmod(0o700)
    assert "Permission denied" in sentence(caught)
    assert run_ids(store) == ["a"]


def test_full_disk_raises_and_leaves_the_former_file(store: ParquetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SinkError) as caught:
        store.write(TRAJECTORIES, HOUR, [batch(trajectory("b"))])
    assert "No space left on device" in sentence(caught)
    assert "The former file, if any, is untouched" in sentence(caught)
    assert run_ids(store) == ["a"]
    assert [path.name for path in path_in(store).parent.iterdir()] == ["part-0.parquet"]


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "s4://bucket"])
def test_unknown_protocol_raises_one_sentence(uri: str) -> None:
    with pytest.raises(SinkError) as caught:
        ParquetStore(uri).exists(TRAJECTORIES, HOUR)
    assert sentence(caught).startswith(f"TRAJECTORY_STORAGE_URI {uri!r} cannot be used: ")


@pytest.mark.parametrize("damage", ["emptied", "cut", "overwritten", "changed within"])
def test_corrupt_file_raises_saying_how_to_repair_it(store: ParquetStore, damage: str) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(*(trajectory(f"run-{n}", status=f"s{n}") for n in range(50)))])
    path, content = path_in(store), path_in(store).read_bytes()
    path.write_bytes(
        {
            "emptied": b"",
            "cut": content[: len(content) // 2],
            "overwritten": b"this is no Parquet file at all",
            "changed within": content[:4] + b"\xff" * 200 + content[204:],
        }[damage]
    )
    with pytest.raises(SinkError) as caught:
        run_ids(store)
    assert sentence(caught).startswith(f"Reading {path} failed: ")
    assert sentence(caught).endswith("if the file is damaged, materialize the partition again.")


def test_error_of_the_reader_is_not_an_error_of_the_file(store: ParquetStore) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])

    def use() -> None:
        for _ in store.read(TRAJECTORIES, HOUR):
            raise OSError("mine")

    with pytest.raises(OSError, match=r"^mine$"):
        use()


@pytest.mark.parametrize(
    ("access", "file_mode", "folder_mode"),
    [(FileAccess.PRIVATE, 0o600, 0o700), (FileAccess.GROUP, 0o640, 0o750), (FileAccess.ALL, 0o644, 0o755)],
)
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_have_the_modes_of_the_setting_whatever_the_umask(
    tmp_path: Path, access: FileAccess, file_mode: int, folder_mode: int, umask: int
) -> None:
    store = ParquetStore(str(tmp_path / "storage"), access)
    former = os.umask(umask)
    try:
        with store.stage(TRAJECTORIES, HOUR, [batch(trajectory("a"))]) as staged:
            assert stat.S_IMODE(staged._temporary.stat().st_mode) == file_mode
            staged.publish()
        path_in(store).write_bytes(b"no parquet")
        copy = Path(keep_corrupt_file(store, TRAJECTORIES, HOUR))
        store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
        path_in(store).chmod(0o666)
        assert not store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))]).replaced
    finally:
        os.umask(former)
    folders = [path_in(store).parent, path_in(store).parents[1], tmp_path / "storage"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (path_in(store), copy)] == [file_mode] * 2
    assert [stat.S_IMODE(path.stat().st_mode) for path in folders] == [folder_mode] * 3


def test_file_for_an_object_store_waits_in_a_private_folder(remote: ParquetStore) -> None:
    with remote.stage(TRAJECTORIES, HOUR, [batch(trajectory("a"))]) as staged:
        assert stat.S_IMODE(staged._temporary.stat().st_mode) == 0o600
        assert stat.S_IMODE(staged._temporary.parent.stat().st_mode) == 0o700
        staged.publish()
    assert not staged._temporary.exists()
    assert run_ids(remote) == ["a"]


def test_credentials_in_the_uri_are_not_shown() -> None:
    store = ParquetStore("sftp://me:geheim@host/folder")
    assert store.path_of(TRAJECTORIES, HOUR).startswith("sftp://host/folder/trajectories/")
    assert "geheim" not in repr(store)


@pytest.mark.parametrize(
    "uri",
    [
        "nosuch://me:geheim@host/folder",
        "s3://key:geheim@bucket/prefix",
        "s3://geheim:ab/cd@bucket/prefix",
        "s3://key:ab/geheim@bucket/prefix",
        "ftp://me:geheim@127.0.0.1:1/folder",
        "http://geheim@127.0.0.1:1/folder?sig=geheim",
        "simplecache::nosuch://me:geheim@host/folder",
        "memory::geheim@host",
        "/proc/geheim:x@y",
    ],
)
def test_error_of_a_library_shows_no_credential(uri: str) -> None:
    with pytest.raises(SinkError) as caught:
        ParquetStore(uri).write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    # As Dagster stores it: the causes too.
    shown = "".join(traceback.format_exception(caught.value))
    assert "geheim" not in shown or uri.startswith("/")
    assert str(caught.value).endswith((".", ")"))


def test_assets_have_folders_side_by_side(store: ParquetStore) -> None:
    store.write(TRAJECTORIES, HOUR, [batch(trajectory("a"))])
    store.write(REFINED_OUTCOMES, HOUR, [])
    assert run_ids(store) == ["a"]
    assert store.exists(REFINED_OUTCOMES, HOUR)
    assert not store.exists(REFINED_OUTCOMES, NEXT_HOUR)
