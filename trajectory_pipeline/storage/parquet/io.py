"""One Parquet file: written row group by row group, read back in the columns that are asked for."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet import filesystem as filesystems

# With dictionaries, prompts and tools that many runs share are compressed once: a fifth smaller, and no slower.
_OF_LARGE_ONES: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
# Of a file with few rows most is what is written for each of 150 columns: half the time so, and no larger.
_OF_SMALL_ONES: dict[str, Any] = {"compression": "snappy", "use_dictionary": False}
_SMALL_BYTES = 2**20
_ROW_GROUP_BYTES = 32 * 2**20
"""In memory, of a row group at least; the last of a file may be smaller."""
_ROWS_AT_ONCE = 250
"""Rows that are read, and converted, together; fewer at the end of a row group."""


def translating_parquet_errors(target: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches; an error of their origin is told as one of reading the file."""
    while True:
        # What the caller does with a batch is no affair of ours: only the reading is told as such.
        with filesystems.translating_read_errors(target):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def read_batches(filesystem: fsspec.AbstractFileSystem, path: str, wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in these columns, a few at a time; nothing where there is no file."""
    if not filesystem.exists(path):
        return
    with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
        there = set(file.schema_arrow.names)
        present = [name for name in wanted.names if name in there]
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=present):
                yield _with_schema(batch, wanted)


def read_leaves(filesystem: fsspec.AbstractFileSystem, path: str, leaves: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows with these leaves alone, by their paths in the file; nothing where there is no file.

    Raises:
        ValueError: the file lacks one of them.
    """
    if not filesystem.exists(path):
        return
    with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
        missing = set(leaves) - {file.schema.column(number).path for number in range(len(file.schema))}
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=leaves).to_batches()


def write_rows(handle: IO[bytes], target: str, table: Table, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a file; errors of the storage are told as such, those of the rows' origin are passed on."""
    rows = 0
    remaining = _row_groups(batches)
    first = next(remaining, None)
    small = first is None or first.nbytes < _SMALL_BYTES
    schema = arrow_schema(table)
    with filesystems.translating_write_errors(target):
        writer = pq.ParquetWriter(
            handle,
            schema,
            # Of columns that row groups are chosen by. Those of texts in lists would be half of the footer,
            # which whoever writes or reads the file holds whole.
            write_statistics=[field.name for field in schema if not pa.types.is_nested(field.type)],
            **(_OF_SMALL_ONES if small else _OF_LARGE_ONES),
        )
    try:
        for group in chain(() if first is None else (first,), remaining):
            with filesystems.translating_write_errors(target):
                writer.write_table(group)
            rows += group.num_rows
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        raise
    with filesystems.translating_write_errors(target):
        writer.close()
        handle.flush()
        os.fsync(handle.fileno())
    return rows


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Put batches together until they are worth a row group.

    What a file says of a row group, 150 kB in memory, is held by whoever writes or reads it until the end of the file.
    """
    together: list[pa.RecordBatch] = []
    filled = 0
    # Of a batch whose runs are all in quarantine nothing is left.
    for batch in filter(len, batches):
        together.append(batch)
        filled += batch.nbytes
        if filled >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(together)
            together, filled = [], 0
    if together:
        yield pa.Table.from_batches(together)


def _with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else _nothing(field.type, len(batch))
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _nothing(kind: pa.DataType, rows: int) -> "pa.Array[Any]":
    nothing: list[Any] = [[] if pa.types.is_list(kind) else None] * rows
    return pa.array(nothing, kind)
