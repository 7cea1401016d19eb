"""A stage that fails raises one sentence and leaves both sinks as they were."""

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trajectory_pipeline.conversion.convert import Conversion, convert_batch
from trajectory_pipeline.errors import PipelineError, SinkError, SourceError
from trajectory_pipeline.letta import snapshot
from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.pipeline import convert as stage
from trajectory_pipeline.storage.parquet import io
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row

HOUR = min(sample_partitions(), key=lambda hour: (abs(sample_partitions()[hour] - 6), hour))


def state(pipeline: Pipeline) -> tuple[dict[str, bytes], list[Row], list[Row], list[Row]]:
    tables = [pipeline.ask(f"SELECT * FROM trajectory.{t} ORDER BY 1, 2") for t in ("trajectories", "partitions")]
    return pipeline.files(), tables[0], tables[1], pipeline.ask("SELECT run_id FROM trajectory.quarantine ORDER BY 1")


def test_convert_without_raw_rows_raises(pipeline: Pipeline) -> None:
    with pytest.raises(
        PipelineError, match=r"^There are no raw rows of .*: materialize terminal_runs of that partition"
    ):
        pipeline.convert(HOUR)
    assert pipeline.files() == {}


def test_judge_without_trajectories_raises(pipeline: Pipeline) -> None:
    with pytest.raises(PipelineError, match=r"^There are no trajectories of .*: materialize trajectories of that"):
        pipeline.refine(HOUR)


def test_capture_unreachable_source_changes_no_sink(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    before = state(pipeline)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gone = Pipeline(f"postgresql://x:y@127.0.0.1:{port}/letta", pipeline.database_url, pipeline.folder)
    with pytest.raises(SourceError, match="Check the host and port in LETTA_PG_URI"):
        gone.read(HOUR)
    assert state(pipeline) == before


def test_convert_database_error_leaves_parquet_unchanged(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    before = pipeline.files()
    pipeline.change_source("UPDATE runs SET stop_reason = 'cancelled'")
    pipeline.read(HOUR)
    read = {path: content for path, content in pipeline.files().items() if path.startswith("trajectories")}
    # The last statement of the transaction, after all rows are written.
    pipeline.do("ALTER TABLE trajectory.partitions ADD CHECK (asset <> 'trajectories') NOT VALID")
    with pytest.raises(SinkError, match=r"^Writing the ledger of .* failed in the database"):
        pipeline.convert(HOUR)
    after = {path: content for path, content in pipeline.files().items() if path.startswith("trajectories")}
    assert after == read == {path: content for path, content in before.items() if path.startswith("trajectories")}
    assert len(after) == 1


def test_convert_unwritable_folder_leaves_postgres_unchanged(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.capture(HOUR)
    pipeline.change_source("UPDATE runs SET stop_reason = 'cancelled'")
    pipeline.read(HOUR)
    before = state(pipeline)

    def refuse(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(SinkError, match=r"^Writing .*trajectories.* failed: .*Permission denied"):
        pipeline.convert(HOUR)
    assert state(pipeline) == before


def test_convert_unbalanced_rows_raises_and_writes_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.capture(HOUR)
    # Otherwise nothing would be converted: nothing changed.
    pipeline.do("UPDATE trajectory.partitions SET inputs_digest = NULL")
    before = state(pipeline)

    def losing(raw: pa.RecordBatch, key: str, *, documents: bool) -> Conversion:
        whole = convert_batch(raw, key, documents=documents)
        return replace(whole, trajectories=whole.trajectories.slice(1), documents=whole.documents[1:])

    monkeypatch.setattr(stage, "convert_batch", losing)
    with pytest.raises(PipelineError, match=r"would be lost: .*Nothing was written; this is a defect, report it\."):
        pipeline.convert(HOUR)
    assert state(pipeline) == before


class DiskFullAmidReading:
    """The disk is full just while a later batch is being read in another thread.

    Attributes:
        under_way: how many reads are, now.
        when_closed: how many were, at each closing of a connection.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.under_way = 0
        self.when_closed: list[int] = []
        self._patch = patch
        self._calls = 0
        self._begun, self._full = threading.Event(), threading.Event()
        patch.setattr(pq.ParquetWriter, "write_table", self._refuse)

    def reads(self, owner: type, method: str, *, first: str = "") -> None:
        """Say which calls read: all of a method, or those whose first argument is this."""
        original = getattr(owner, method)

        def read(this: Any, *arguments: Any) -> Any:
            if first and arguments[0] != first:
                return original(this, *arguments)
            self._calls += 1
            if self._calls == 1:
                return original(this, *arguments)
            self.under_way += 1
            self._begun.set()
            self._full.wait()
            # As a query that goes on for a while.
            time.sleep(0.1)
            value = original(this, *arguments)
            self.under_way -= 1
            return value

        self._patch.setattr(owner, method, read)

    def closes(self, connection: Any) -> None:
        """Say what is used for reading, and closed in the end."""
        close = connection.close

        def closing(this: Any) -> None:
            self.when_closed.append(self.under_way)
            close(this)

        self._patch.setattr(connection, "close", closing)

    def _refuse(self, *_: object) -> None:
        self._begun.wait()
        self._full.set()
        raise OSError(28, "No space left on device")


def test_read_ahead_ends_before_its_connection_is_closed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "RUNS_PER_BATCH", 1)
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 1)
    with monkeypatch.context() as patch:
        disk = DiskFullAmidReading(patch)
        disk.reads(Snapshot, "read", first="Reading messages")
        disk.closes(adbc.Connection)
        with pytest.raises(SinkError, match="No space left on device"):
            pipeline.read(HOUR)
        assert disk.when_closed == [0]
    assert pipeline.files() == {}
    pipeline.read(HOUR)
    with monkeypatch.context() as patch:
        disk = DiskFullAmidReading(patch)
        disk.reads(TrajectoryDatabase, "runs_moved_away")
        disk.closes(psycopg.Connection)
        with pytest.raises(SinkError, match="No space left on device"):
            pipeline.convert(HOUR)
        assert set(disk.when_closed) == {0}
    pipeline.convert(HOUR)
    assert pipeline.run_ids(HOUR)
