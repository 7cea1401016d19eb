"""Merging rows that stay as they are with those that were made again, in the order of the file, a batch at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

Positions = np.ndarray[Any, np.dtype[np.int64]]
Placed = tuple[Positions, pa.RecordBatch]
"""Rows and where each belongs in the new file, in ascending order."""


def merge_rows(kept: Iterable[Placed], made: Iterable[Placed]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of both, in order; each of them is in order already."""
    remaining = iter(made)
    upcoming = next(remaining, None)
    for positions, batch in kept:
        parts = [(positions, batch)]
        while upcoming is not None and upcoming[0][0] < positions[-1]:
            before = int(np.searchsorted(upcoming[0], positions[-1]))
            parts.append((upcoming[0][:before], upcoming[1].slice(0, before)))
            rest = upcoming[0][before:], upcoming[1].slice(before)
            upcoming = rest if len(rest[0]) else next(remaining, None)
        yield _joined(parts)
    if upcoming is not None:
        yield upcoming[1]
        yield from (batch for _, batch in remaining)


def place_rows(batches: Iterable[pa.RecordBatch], positions: Positions) -> Iterator[Placed]:
    """Yield the rows with their positions, which are given in the order of the rows."""
    first = 0
    for batch in batches:
        yield positions[first : first + batch.num_rows], batch
        first += batch.num_rows


def _joined(parts: list[Placed]) -> pa.RecordBatch:
    if len(parts) == 1:
        return parts[0][1]
    order: Any = np.argsort(np.concatenate([positions for positions, _ in parts]))
    (batch,) = pa.Table.from_batches([batch for _, batch in parts]).combine_chunks().to_batches()
    return batch.take(pa.array(order, pa.int64()))
