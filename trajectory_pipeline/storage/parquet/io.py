"""One Parquet file: written row group by row group, read back in the columns that are asked for."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajectory_pipeline.schema.arrow import arrow_schema, leaf_paths
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet import filesystem as filesystems

OpenFile = Callable[[], IO[bytes] | None]
"""Opens a file to read it; None where there is none."""

# With dictionaries, prompts and tools that many runs share are compressed once: a fifth smaller, and no slower.
_LARGE_FILE_OPTIONS: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
# Most of a file with few rows is the overhead of 150 columns: half the time so, and no larger.
_SMALL_FILE_OPTIONS: dict[str, Any] = {"compression": "snappy", "use_dictionary": False}
_SMALL_BYTES = 2**20
# Of values; the last row group of a file may be smaller.
_ROW_GROUP_BYTES = 32 * 2**20
# Rows of a batch that is read; fewer at the end of a row group.
_ROWS_AT_ONCE = 250


def translating_parquet_errors(target: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches; an error of their origin becomes one of reading the file."""
    while True:
        # Only around the reading: an error of the caller, while it has a batch, passes through.
        with filesystems.translating_read_errors(target):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def read_batches(
    open_file: OpenFile, wanted: pa.Schema, rows: "np.ndarray[Any, np.dtype[np.bool_]] | None" = None
) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in these columns, a few at a time; nothing where there is no file.

    ``rows`` says which are wanted; row groups without any are not read.
    """
    found = open_file()
    if found is None:
        return
    with found as handle, pq.ParquetFile(handle) as file:
        there = _leaves_of(file)
        present = [leaf for leaf in leaf_paths(wanted) if leaf in there]
        first = 0
        for group in range(file.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            if rows is not None and not rows[first : first + length].any():
                first += length
                continue
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=present, use_threads=False):
                is_wanted = None if rows is None else rows[first : first + batch.num_rows]
                first += batch.num_rows
                if is_wanted is None or is_wanted.all():
                    yield _with_schema(batch, wanted)
                elif is_wanted.any():
                    yield _with_schema(batch.filter(pa.array(is_wanted)), wanted)


def read_small(content: bytes, wanted: pa.Schema, most_rows: int) -> pa.RecordBatch | None:
    """Return all rows of a file as one batch, or None where it has more, several row groups, or other columns."""
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        if file.metadata.num_rows > most_rows or file.num_row_groups > 1:
            return None
        batches = list(file.iter_batches(_ROWS_AT_ONCE))
        if not batches:
            return pa.RecordBatch.from_pylist([], schema=wanted)
        return _with_schema(batches[0], wanted) if len(batches) == 1 else None


def read_leaves(open_file: OpenFile, leaves: list[str], *, skip_absent: bool) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows with these leaves alone, by their paths in the file; nothing where there is no file.

    Raises:
        ValueError: the file lacks one of them, and absent ones are not to be skipped.
    """
    found = open_file()
    if found is None:
        return
    with found as handle, pq.ParquetFile(handle) as file:
        there = _leaves_of(file)
        missing = set(leaves) - there
        if skip_absent:
            leaves = [leaf for leaf in leaves if leaf in there]
        elif missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=leaves).to_batches()


def _leaves_of(file: pq.ParquetFile) -> set[str]:
    return {file.schema.column(number).path for number in range(len(file.schema))}


def write_rows(handle: IO[bytes], target: str, table: Table, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a file, and return its rows; errors of the storage become ``SinkError``, those of the origin pass."""
    rows = 0
    groups = _row_groups(batches)
    size, first = next(groups, (0, None))
    small = size < _SMALL_BYTES
    schema = arrow_schema(table)
    with filesystems.translating_write_errors(target):
        writer = pq.ParquetWriter(
            handle,
            schema,
            # Statistics of texts in lists would be half of the footer, which writers and readers hold whole.
            write_statistics=[field.name for field in schema if not pa.types.is_nested(field.type)],
            **(_SMALL_FILE_OPTIONS if small else _LARGE_FILE_OPTIONS),
        )
    try:
        for group in chain(() if first is None else (first,), (group for _, group in groups)):
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


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """Yield row groups with their bytes, cut and laid out by what the rows hold, however they came in batches.

    So rows that were read again, or merged with others, give the same bytes.
    """
    # Few large ones: writers and readers hold 150 kB of metadata for each until the end of the file.
    group: list[pa.RecordBatch] = []
    size = 0
    # A batch whose runs are all in quarantine is empty.
    for batch in filter(len, batches):
        rows = batch.to_struct_array()
        if size + (more := _bytes_of(rows)) < _ROW_GROUP_BYTES:
            group.append(batch)
            size += more
            continue
        ends = size + _bytes_before(rows)[1:]
        first = 0
        while first < batch.num_rows:
            last = int(np.searchsorted(ends, _ROW_GROUP_BYTES)) + 1
            group.append(batch.slice(first, last - first))
            size = int(ends[min(last, batch.num_rows) - 1])
            if size < _ROW_GROUP_BYTES:
                break
            yield size, pa.Table.from_batches(group).combine_chunks()
            group, first, ends, size = [], last, ends - size, 0
    if group:
        yield size, pa.Table.from_batches(group).combine_chunks()


def _bytes_of(column: Any) -> int:
    """Return the last of ``_bytes_before``, in a fifth of its time: most batches need not be cut."""
    kind = column.type
    if pa.types.is_struct(kind):
        fields = column.flatten() if column.null_count else map(column.field, range(kind.num_fields))
        return sum(map(_bytes_of, fields))
    if pa.types.is_list(kind):
        return _bytes_of(column.flatten())
    if not pa.types.is_string(kind):
        return 8 * len(column)
    if column.null_count == len(column):
        return 0
    if column.null_count:
        return int(pc.sum(pc.binary_length(column)).as_py())
    first, last = column.offset, column.offset + len(column)
    offsets = np.frombuffer(column.buffers()[1], np.int32, last + 1)
    return int(offsets[last] - offsets[first])


def _bytes_before(column: Any) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return how many bytes the values before each row have, and of all rows at the end, whatever memory they are in.

    A number counts as eight, and so does a null of one; a string has none for its length. What memory holds below a
    null is no value: ``flatten`` leaves it out.
    """
    kind, before = column.type, np.zeros(len(column) + 1, np.int64)
    if pa.types.is_struct(kind):
        fields = column.flatten() if column.null_count else map(column.field, range(kind.num_fields))
        for values in fields:
            before += _bytes_before(values)
    elif pa.types.is_list(kind):
        np.cumsum(pc.list_value_length(column).fill_null(0), out=before[1:])
        before = _bytes_before(column.flatten())[before]
    elif pa.types.is_string(kind):
        if column.null_count < len(column):
            np.cumsum(pc.binary_length(column).fill_null(0), out=before[1:])
    else:
        before += np.arange(len(before)) * 8
    return before


def _with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.array([[] if pa.types.is_list(field.type) else None] * len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
