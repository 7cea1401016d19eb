"""The raw rows of a batch as flat columns: a value is turned into a Python object only where it is looked at."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FIRST_MICROSECOND, _LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999
"""Of the years 1 to 9999, which Python's times can hold."""

List = list[Any]


@dataclass(frozen=True)
class RawTable:
    """Rows of one raw table, by column."""

    arrays: dict[str, "pa.Array[Any]"]
    _lists: dict[str, List] = field(default_factory=dict)

    def __getitem__(self, column: str) -> List:
        """Return a column as Python values, times as microseconds."""
        if column not in self._lists:
            array = self.arrays[column]
            if pa.types.is_timestamp(array.type):
                array = array.cast(pa.int64())
            self._lists[column] = array.to_pylist()
        return self._lists[column]

    def utf8(self, column: str) -> List:
        """Return a column of text as UTF-8 bytes."""
        return cast(List, self.arrays[column].cast(pa.binary()).to_pylist())


@dataclass(frozen=True)
class RawColumns:
    """A batch of ``terminal_runs``, flat. Offsets say where each run's rows begin; there is one more than runs.

    ``agents`` and ``run_metrics`` have one row a run, all null where there is none. ``steps`` are the own steps of all
    runs, then the foreign steps of all runs; both offsets are into it.
    """

    batch: pa.RecordBatch
    asked_calls: List
    runs: RawTable
    agents: RawTable
    run_metrics: RawTable
    steps: RawTable
    own_step_offsets: list[int]
    foreign_step_offsets: list[int]
    messages: RawTable
    message_offsets: list[int]
    step_metrics: RawTable
    step_metrics_offsets: list[int]


def raw_columns(batch: pa.RecordBatch) -> RawColumns:
    """Return a batch with the schema of ``terminal_runs`` as flat columns."""
    own, foreign = _flat(batch, "steps"), _flat(batch, "foreign_steps")
    own_offsets, foreign_offsets = _offsets(batch, "steps"), _offsets(batch, "foreign_steps")
    if foreign_offsets[-1]:
        arrays = {name: pa.concat_arrays([array, foreign.arrays[name]]) for name, array in own.arrays.items()}
    else:
        arrays = own.arrays
    return RawColumns(
        batch=batch,
        asked_calls=batch.column("asked_calls").to_pylist(),
        runs=RawTable(_fields(batch.column("run"))),
        agents=RawTable(_fields(batch.column("agent"))),
        run_metrics=RawTable(_fields(batch.column("run_metrics"))),
        steps=RawTable(arrays),
        own_step_offsets=own_offsets,
        foreign_step_offsets=[own_offsets[-1] + offset for offset in foreign_offsets],
        messages=_flat(batch, "messages"),
        message_offsets=_offsets(batch, "messages"),
        step_metrics=_flat(batch, "step_metrics"),
        step_metrics_offsets=_offsets(batch, "step_metrics"),
    )


def holds_unstorable(arrays: "Iterable[pa.Array[Any]]") -> bool:
    """Return whether a column holds a time before the year 1 or after 9999, or text with a NUL or no UTF-8."""
    for array in arrays:
        column: Any = array
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return True
        if pa.types.is_timestamp(column.type):
            found = cast(Any, pc.min_max(column.cast(pa.int64()))).as_py()
            if found["min"] is not None and not _FIRST_MICROSECOND <= found["min"] <= found["max"] <= _LAST_MICROSECOND:
                return True
        elif pa.types.is_string(column.type) and pc.any(pc.match_substring(column, "\0")).as_py():
            return True
    return False


def _flat(batch: pa.RecordBatch, column: str) -> RawTable:
    return RawTable(_fields(cast(Any, batch.column(column)).flatten()))


def _fields(structs: "pa.Array[Any]") -> dict[str, "pa.Array[Any]"]:
    return dict(zip([field.name for field in structs.type], cast(Any, structs).flatten(), strict=True))


def _offsets(batch: pa.RecordBatch, column: str) -> list[int]:
    offsets = np.asarray(cast(Any, batch.column(column)).offsets)
    return cast(list[int], (offsets - offsets[0]).tolist())
