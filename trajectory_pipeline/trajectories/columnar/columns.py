"""The raw rows of a batch as plain lists, column by column: what a look at single values needs, and no more.

Belongs here: from nested Arrow to flat lists. Does not belong here: what a value means.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa

List = list[Any]


@dataclass(frozen=True)
class ListColumn:
    """Rows of one raw table.

    Attributes:
        arrays: by column.
    """

    arrays: dict[str, "pa.Array[Any]"]

    @cached_property
    def _lists(self) -> dict[str, List]:
        return {}

    def __getitem__(self, column: str) -> List:
        """Return a column as Python values; times as microseconds, JSON text as bytes (see ``encoded``)."""
        if column not in self._lists:
            array = self.arrays[column]
            if pa.types.is_timestamp(array.type):
                array = array.cast(pa.int64())
            self._lists[column] = array.to_pylist()
        return self._lists[column]

    def encoded(self, column: str) -> List:
        """Return a column of text as UTF-8 bytes."""
        return cast(List, self.arrays[column].cast(pa.binary()).to_pylist())


@dataclass(frozen=True)
class RawColumns:
    """A batch of ``terminal_runs``, flat.

    Attributes:
        batch: the batch itself.
        runs: the runs' own rows.
        agents: one row a run; all null where there is none.
        run_metrics: the same.
        steps: own steps of all runs, then other runs' steps that messages of all runs name.
        own_steps: where each run's own steps begin in ``steps``; one more than there are runs.
        other_steps: the same of the other steps.
        messages: messages of all runs.
        messages_of: where each run's messages begin.
        step_metrics: of all runs.
        step_metrics_of: where each run's begin.
    """

    batch: pa.RecordBatch
    runs: ListColumn
    agents: ListColumn
    run_metrics: ListColumn
    steps: ListColumn
    own_steps: list[int]
    other_steps: list[int]
    messages: ListColumn
    messages_of: list[int]
    step_metrics: ListColumn
    step_metrics_of: list[int]


def raw_columns(batch: pa.RecordBatch) -> RawColumns:
    """Return a batch with the schema of ``terminal_runs`` as flat columns."""
    own, others = _flat(batch, "steps"), _flat(batch, "foreign_steps")
    own_steps, other_steps = _offsets(batch, "steps"), _offsets(batch, "foreign_steps")
    count = own_steps[-1]
    steps = ListColumn(
        {
            name: pa.concat_arrays([array, others.arrays[name]]) if other_steps[-1] else array
            for name, array in own.arrays.items()
        }
    )
    return RawColumns(
        batch=batch,
        runs=ListColumn(_fields(batch.column("run"))),
        agents=ListColumn(_fields(batch.column("agent"))),
        run_metrics=ListColumn(_fields(batch.column("run_metrics"))),
        steps=steps,
        own_steps=own_steps,
        other_steps=[count + offset for offset in other_steps],
        messages=_flat(batch, "messages"),
        messages_of=_offsets(batch, "messages"),
        step_metrics=_flat(batch, "step_metrics"),
        step_metrics_of=_offsets(batch, "step_metrics"),
    )


def _flat(batch: pa.RecordBatch, column: str) -> ListColumn:
    return ListColumn(_fields(cast(Any, batch.column(column)).flatten()))


def _fields(structs: "pa.Array[Any]") -> dict[str, "pa.Array[Any]"]:
    return dict(zip([field.name for field in structs.type], cast(Any, structs).flatten(), strict=True))


def _offsets(batch: pa.RecordBatch, column: str) -> list[int]:
    offsets = np.asarray(cast(Any, batch.column(column)).offsets)
    return cast(list[int], (offsets - offsets[0]).tolist())
