"""The raw rows of a batch as flat columns: a value is turned into a Python object only where it is looked at."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_FIRST_MICROSECOND, _LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999
"""Of the years 1 to 9999, which Python's times can hold."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

List = list[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RawTable:
    """Rows of one raw table, by column."""

    arrays: dict[str, "pa.Array[Any]"]
    _lists: dict[str, List] = field(default_factory=dict)

    def __getitem__(self, column: str) -> List:
        """Return a column as Python values, times as microseconds."""
        if column not in self._lists:
            self._lists[column] = _untimed(self.arrays[column]).to_pylist()
        return self._lists[column]

    def utf8(self, column: str) -> List:
        """Return a column of text as UTF-8 bytes."""
        return cast(List, self.arrays[column].cast(pa.binary()).to_pylist())

    def integers(self, column: str) -> Integers:
        """Return a column of numbers or times (microseconds); 0 where it is null."""
        array: Any = _untimed(self.arrays[column])
        return cast(Integers, (array.fill_null(0) if array.null_count else array).to_numpy(zero_copy_only=False))

    def flags(self, column: str) -> Flags:
        """Return a column of flags; False where it is null."""
        array: Any = self.arrays[column]
        return cast(Flags, array.fill_null(False).to_numpy(zero_copy_only=False))

    def valid(self, column: str) -> Flags:
        """Return where a column is not null."""
        return is_valid(self.arrays[column])


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
    own_step_offsets: Integers
    foreign_step_offsets: Integers
    messages: RawTable
    message_offsets: Integers
    step_metrics: RawTable
    step_metrics_offsets: Integers

    @property
    def run_of_message(self) -> Integers:
        """The index of each message's run."""
        return owners(self.message_offsets)

    @property
    def run_of_step(self) -> Integers:
        """The index of the run that each step is with."""
        return np.concatenate([owners(self.own_step_offsets), owners(self.foreign_step_offsets)])


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
        foreign_step_offsets=own_offsets[-1] + foreign_offsets,
        messages=_flat(batch, "messages"),
        message_offsets=_offsets(batch, "messages"),
        step_metrics=_flat(batch, "step_metrics"),
        step_metrics_offsets=_offsets(batch, "step_metrics"),
    )


def owners(offsets: Integers) -> Integers:
    """Return the index of each item's owner, of offsets that say where each owner's items begin."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def timestamp(microseconds: int | None) -> datetime | None:
    """Return a time in UTC; raises ``OverflowError`` for a year that Python cannot hold."""
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


def is_valid(array: "pa.Array[Any]") -> Flags:
    """Return where an array is not null."""
    if not array.null_count:
        return np.ones(len(array), np.bool_)
    return cast(Flags, array.is_valid().to_numpy(zero_copy_only=False))


def codes_of(array: "pa.Array[Any]") -> tuple[Integers, int]:
    """Return a number for each value of an array, -1 for null, and how many numbers there are."""
    encoded: Any = array.dictionary_encode()
    indices: Integers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return indices, len(encoded.dictionary)


def find_in_run(ids: "pa.Array[Any]", runs: Integers, wanted: "pa.Array[Any]", wanted_runs: Integers) -> Integers:
    """Return for each wanted id its index among the ids of the same run, the last one; -1 where it has none."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    codes, distinct = codes_of(pa.concat_arrays([ids, wanted]))
    keys, wanted_keys = runs * (distinct + 1) + codes[: len(ids)], wanted_runs * (distinct + 1) + codes[len(ids) :]
    by_key = np.argsort(keys, kind="stable")
    at = by_key[np.maximum(np.searchsorted(keys[by_key], wanted_keys, side="right") - 1, 0)]
    return np.where((keys[at] == wanted_keys) & (codes[len(ids) :] >= 0), at, -1)


def sums(values: Integers, offsets: Integers) -> Integers:
    """Return the sum of each consecutive stretch, between two offsets."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    difference: Integers = total[offsets[1:]] - total[offsets[:-1]]
    return difference


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


def _untimed(array: "pa.Array[Any]") -> "pa.Array[Any]":
    return array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array


def _flat(batch: pa.RecordBatch, column: str) -> RawTable:
    return RawTable(_fields(cast(Any, batch.column(column)).flatten()))


def _fields(structs: "pa.Array[Any]") -> dict[str, "pa.Array[Any]"]:
    return dict(zip([field.name for field in structs.type], cast(Any, structs).flatten(), strict=True))


def _offsets(batch: pa.RecordBatch, column: str) -> Integers:
    offsets = np.asarray(cast(Any, batch.column(column)).offsets, np.int64)
    return cast(Integers, offsets - offsets[0])
