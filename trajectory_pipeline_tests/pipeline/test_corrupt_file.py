"""Corrupt raw rows are read again from the source, a copy is kept, and what is lost with them is reported.

A storage that fails is another matter: a file that cannot be fetched is left unchanged.
"""

from pathlib import Path

import pyarrow.dataset as ds
import pytest

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.parquet.cleanup import remove_files
from trajectory_pipeline.storage.parquet.corrupt_files import CORRUPT_SUFFIX
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.pipeline.test_source_changes import HOUR, delete_run, some_run


def file_of(pipeline: Pipeline) -> Path:
    return Path(pipeline.store.path_of(TERMINAL_RUNS, HOUR))


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwritten_amid(content: bytes) -> bytes:
    """The end, which says where everything is, is whole; the rows are not."""
    return content[:4] + bytes(4096) + content[4100:]


@pytest.mark.parametrize("corrupt", [truncated, overwritten_amid, lambda _: b""])
def test_capture_corrupt_file_reads_source_and_keeps_copy(pipeline: Pipeline, corrupt: object) -> None:
    pipeline.capture(HOUR)
    whole = pipeline.parquet(TERMINAL_RUNS, HOUR)
    assert callable(corrupt)
    broken = corrupt(file_of(pipeline).read_bytes())
    file_of(pipeline).write_bytes(broken)
    result = pipeline.read(HOUR)
    assert result.corrupt_file is not None
    assert result.corrupt_file.lost == []
    assert "the source still has every run" in result.corrupt_file.sentence(partition_key(HOUR))
    assert Path(result.corrupt_file.copy_uri).read_bytes() == broken
    assert pipeline.parquet(TERMINAL_RUNS, HOUR) == whole
    # Neither a glob nor a reader of the whole folder finds the copy.
    assert list(pipeline.folder.glob("terminal_runs/**/*.parquet")) == [file_of(pipeline)]
    assert ds.dataset(pipeline.folder / "terminal_runs", partitioning="hive").count_rows() == len(whole)
    pipeline.convert(HOUR)
    assert reconcile_partition(HOUR, pipeline.storage).differences == ()
    assert pipeline.read(HOUR).corrupt_file is None


def test_capture_run_only_in_corrupt_file_stays_counted_as_lost(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    run_id = some_run(pipeline)
    delete_run(pipeline, run_id)
    pipeline.capture(HOUR)
    file_of(pipeline).write_bytes(truncated(file_of(pipeline).read_bytes()))
    result = pipeline.read(HOUR)
    assert result.corrupt_file is not None
    assert result.corrupt_file.lost == [run_id]
    assert "1 of its runs are gone from the source: they are lost" in result.corrupt_file.sentence(partition_key(HOUR))
    assert len(pipeline.parquet(TERMINAL_RUNS, HOUR)) == sample_partitions()[HOUR] - 1
    pipeline.convert(HOUR)
    assert run_id not in pipeline.run_ids(HOUR)
    # The ledger still has it, whether the partition is up to date later or rewritten.
    for statement in ("SELECT 1", "UPDATE steps SET feedback = 'positive'"):
        pipeline.change_source(statement)
        again = pipeline.read(HOUR)
        assert again.counts.by_name()["lost_runs"] == 1
        entry = pipeline.database.ledger(TERMINAL_RUNS.name)[partition_key(HOUR)]
        assert entry.counts["lost_runs"] == 1


def test_prune_removes_copies_of_corrupt_files(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    file_of(pipeline).write_bytes(b"PAR1")
    pipeline.read(HOUR)
    assert remove_files(pipeline.store, TERMINAL_RUNS, HOUR).count == 2
    assert not file_of(pipeline).parent.exists()


def test_capture_unreachable_file_is_not_treated_as_corrupt(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.capture(HOUR)
    pipeline.change_source("UPDATE steps SET feedback = 'positive'")
    content = file_of(pipeline).read_bytes()
    file_of(pipeline).unlink()
    # A link that leads to itself: it is there, and opening it is an error of the system, for root too.
    file_of(pipeline).symlink_to(file_of(pipeline))
    with pytest.raises(SinkError, match=r"^Reading .* failed: "):
        pipeline.read(HOUR)
    file_of(pipeline).unlink()
    file_of(pipeline).write_bytes(content)
    assert not list(file_of(pipeline).parent.glob(f"{CORRUPT_SUFFIX}*"))
    assert pipeline.read(HOUR).corrupt_file is None
