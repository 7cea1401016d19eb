"""From a batch of raw runs to trajectories: well-formed runs by the columnar path, all others by the reference."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from trajectory_pipeline.conversion.columnar.columns import raw_columns
from trajectory_pipeline.conversion.columnar.documents import columnar_documents
from trajectory_pipeline.conversion.columnar.runs import ColumnarRuns
from trajectory_pipeline.conversion.columnar.to_arrow import trajectories_batch
from trajectory_pipeline.conversion.document import Document, postgres_document
from trajectory_pipeline.conversion.reference import QuarantinedRun, convert_run, quarantined_run
from trajectory_pipeline.lossless_json import ConversionError
from trajectory_pipeline.runtime.gc_threshold import raised_gc_threshold
from trajectory_pipeline.schema.arrow import arrow_schema, rows_of
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import ListOf, Struct, Type

_LOG = logging.getLogger(__name__)

_NEW_CONTAINERS = 2_000_000
"""Containers made until the garbage collector runs; more than a batch makes."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Conversion:
    """What became of a batch of runs, in their order.

    Attributes:
        trajectories: with the schema of the Parquet files.
        documents: of each trajectory, for Postgres; empty if not wanted.
        reference_run_ids: runs that the reference converted or quarantined.
    """

    trajectories: pa.RecordBatch
    documents: list[Document]
    quarantined: list[QuarantinedRun]
    reference_run_ids: list[str]

    @property
    def reference_path_count(self) -> int:
        """How many runs the reference converted or quarantined."""
        return len(self.reference_run_ids)

    @property
    def rows(self) -> list[Row]:
        """The trajectories as dicts."""
        return self.trajectories.to_pylist()


@dataclass
class _Converted:
    """Trajectories of some of the runs, with their indexes in the batch."""

    indexes: list[int]
    trajectories: pa.RecordBatch
    documents: list[Document]


@raised_gc_threshold(_NEW_CONTAINERS)
def convert_batch(raw_runs: pa.RecordBatch, partition_key: str, *, documents: bool = False) -> Conversion:
    """Convert the rows of ``terminal_runs``, by any version of its schema; quarantine those that cannot be converted.

    ``documents`` is whether the documents for Postgres are wanted.
    """
    columnar, remaining = _convert_columnar(raw_runs, partition_key, documents=documents)
    converted = [] if columnar is None else [columnar]
    quarantined: list[QuarantinedRun] = []
    for index in remaining:
        one = _convert_by_reference(raw_runs, index, partition_key, documents=documents)
        if isinstance(one, QuarantinedRun):
            quarantined.append(one)
        else:
            converted.append(one)
    merged = _merged(converted)
    by_reference = [str(raw_runs.column("run_id")[index]) for index in remaining]
    return Conversion(merged.trajectories, merged.documents, quarantined, by_reference)


def _convert_by_reference(
    batch: pa.RecordBatch, index: int, partition_key: str, *, documents: bool
) -> _Converted | QuarantinedRun:
    """Convert one run of a batch, or quarantine it, whatever is raised: it must not fail the other runs."""
    raw = _raw_row(batch, index)
    try:
        row = convert_run(raw, partition_key)
        trajectory = pa.RecordBatch.from_pylist([row], schema=arrow_schema(TRAJECTORIES))
        return _Converted([index], trajectory, [postgres_document(row)] if documents else [])
    except ConversionError as error:
        return quarantined_run(raw, error.json_path, error.problem)
    except Exception as error:
        problem = f"cannot be converted, and that is a fault of trajectory-pipeline: {type(error).__name__}: {error}"
        return quarantined_run(raw, f"runs[{raw['run_id']}]", problem)


def _convert_columnar(
    batch: pa.RecordBatch, partition_key: str, *, documents: bool
) -> tuple[_Converted | None, list[int]]:
    """Convert the well-formed runs of a batch; returns them, and the indexes of the others."""
    every_index = list(range(batch.num_rows))
    if not batch.schema.equals(arrow_schema(TERMINAL_RUNS)):
        return None, every_index
    try:
        converted = ColumnarRuns(raw_columns(batch), partition_key)
        if converted.rejected.all():
            return None, every_index
        trajectories = trajectories_batch(converted)
        # A long run's texts are held several times over; documents are made of what the source wrote.
        converted.release_texts()
        written = columnar_documents(converted, trajectories) if documents else []
        remaining = np.flatnonzero(converted.rejected).tolist()
        if not remaining:
            return _Converted(every_index, trajectories, written), []
        accepted = np.flatnonzero(~converted.rejected).tolist()
        written = [written[index] for index in accepted] if documents else []
        return _Converted(accepted, trajectories.take(pa.array(accepted, pa.int64())), written), remaining
    except Exception:
        _LOG.exception("A batch is converted run by run, which is slower: a fault of trajectory-pipeline")
        return None, every_index


def _merged(converted: Sequence[_Converted]) -> _Converted:
    """Return the trajectories of all, in the order of their runs."""
    if len(converted) == 1:
        return converted[0]
    indexes = [index for each in converted for index in each.indexes]
    order = sorted(range(len(indexes)), key=indexes.__getitem__)
    empty = pa.RecordBatch.from_pylist([], schema=arrow_schema(TRAJECTORIES))
    batches = [empty, *(each.trajectories for each in converted)]
    (trajectories,) = pa.Table.from_batches(batches).combine_chunks().to_batches() or [empty]
    documents = [document for each in converted for document in each.documents]
    return _Converted(
        sorted(indexes),
        trajectories.take(pa.array(order, pa.int64())),
        [documents[at] for at in order] if documents else [],
    )


def _raw_row(batch: pa.RecordBatch, index: int) -> Row:
    """Return the raw rows of one run, with all columns."""
    (row,) = rows_of(batch.slice(index, 1))
    return row if batch.schema.equals(arrow_schema(TERMINAL_RUNS)) else _completed(row, Struct(TERMINAL_RUNS.columns))


def _completed(value: Any, kind: Type) -> Any:
    """Return a value with a null for every column that it lacks; a list that is lacking is empty."""
    if isinstance(kind, ListOf):
        return [_completed(item, kind.item) for item in value or ()]
    if isinstance(kind, Struct) and value is not None:
        return {column.name: _completed(value.get(column.name), column.type) for column in kind.fields}
    return value
