"""The connections that a partition opens do not grow with its batches; counted, not timed."""

from typing import Any

import psycopg
import pytest

from trajectory_pipeline.letta import snapshot
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.parquet import io
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

HOUR = max(sample_partitions(), key=lambda hour: (sample_partitions()[hour], hour))


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each connection to a database."""
    opened: list[str] = []
    real = psycopg.connect

    def counting(url: str, *rest: Any, **more: Any) -> psycopg.Connection:
        opened.append(url)
        return real(url, *rest, **more)

    monkeypatch.setattr(psycopg, "connect", counting)
    return opened


@pytest.mark.parametrize("runs_per_batch", [1, 500])
def test_partition_connections_do_not_grow_with_batches(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, connections: list[str], runs_per_batch: int
) -> None:
    monkeypatch.setattr(snapshot, "RUNS_PER_BATCH", runs_per_batch)
    monkeypatch.setattr(io, "_ROW_GROUP_BYTES", 1 if runs_per_batch == 1 else 2**20)
    pipeline.read(HOUR)
    batches = sum(1 for _ in pipeline.store.read(TERMINAL_RUNS, HOUR))
    assert batches == (sample_partitions()[HOUR] if runs_per_batch == 1 else 1)
    connections.clear()
    pipeline.convert(HOUR)
    # The ledger, the partition's transaction, what moved, the note of a file that is replaced; what was erased.
    assert len(connections) <= 6
    connections.clear()
    assert reconcile_partition(HOUR, pipeline.storage).differences == ()
    assert len(connections) == 1
