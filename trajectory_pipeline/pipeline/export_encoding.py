"""Reads the runs of an export from Parquet, redacts them and encodes each: most of the work, in several processes.

The order is that of partitions, and in each that of its file, however many processes there are.
"""

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pyarrow as pa

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.source import UNREAD
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.pipeline.export_encoder import (
    EncodedRun,
    Encoder,
    Encoding,
    Portion,
    encode_in_worker,
    start_worker,
)
from trajectory_pipeline.runtime.memory import trim_memory
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres.exports import read_verdicts
from trajectory_pipeline.storage.scratch.run_selection import RunSelection
from trajectory_pipeline.storage.storage import Storage

_RUNS_AT_ONCE = 64
"""Runs that are encoded at once: as many more as processes are in memory, as Arrow has them and as they are written."""
WORTH_PROCESSES = 2_000
"""Runs from which on more processes save more than their start costs."""


def encode_runs(
    storage: Storage, encoding: Encoding, selected: RunSelection, missing: Counter[str]
) -> Iterator[EncodedRun]:
    """Yield the selected runs, encoded.

    Args:
        storage: with the trajectories and their verdicts.
        encoding: how.
        selected: which.
        missing: runs by the reason why they could not be read, which are counted here.

    Raises:
        SinkError: a sink cannot be read.
        PipelineError: a process was killed.
    """
    portions = _portions(storage, selected, missing)
    processes = os.cpu_count() or 1
    if len(selected) < WORTH_PROCESSES or processes == 1:
        encoder = Encoder(encoding)
        for portion in portions:
            yield from encoder.encode(portion)
        return
    # Not forked: this process may have threads, of Arrow and of database clients.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=start_worker, initargs=(encoding,)) as pool:
        pending: deque[Future[list[EncodedRun]]] = deque()
        try:
            for portion in portions:
                pending.append(pool.submit(encode_in_worker, portion))
                # No more than are worked on, and one that waits: they are large.
                if len(pending) > processes:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except BrokenProcessPool:
            raise PipelineError(
                "A process that encodes runs was killed, most likely for want of memory. Nothing was written."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _portions(storage: Storage, selected: RunSelection, missing: Counter[str]) -> Iterator[Portion]:
    for key, number in selected.partitions():
        found = 0
        for batch in storage.parquet.read(TRAJECTORIES, parse_partition_key(key), without=UNREAD):
            ids: list[Any] = batch.column("run_id").to_pylist()
            digests = batch.column("content_digest").to_pylist()
            wanted = selected.find(key, ids)
            places = {
                run_id: place
                for place, (run_id, digest) in enumerate(zip(ids, digests, strict=True))
                if run_id in wanted and wanted[run_id].content_digest == digest
            }
            found += len(places)
            run_ids = list(places)
            for start in range(0, len(run_ids), _RUNS_AT_ONCE):
                some = run_ids[start : start + _RUNS_AT_ONCE]
                yield Portion(
                    _rows_at(batch, [places[run_id] for run_id in some]),
                    {run_id: wanted[run_id] for run_id in some},
                    read_verdicts(storage.postgres, some),
                )
            # The allocators would keep what one batch needed for the next: half of this process.
            trim_memory()
        if found < number:
            missing["not in Parquet as Postgres has it: materialize trajectories"] += number - found


def _rows_at(batch: pa.RecordBatch, places: list[int]) -> pa.RecordBatch:
    """Return rows of a batch, by their ascending places; rows in sequence are not copied."""
    first, number = places[0], len(places)
    return batch.slice(first, number) if places[-1] - first + 1 == number else batch.take(places)
