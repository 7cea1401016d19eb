"""From a batch of raw runs to trajectories: well-formed runs by the columnar path, all others by the reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from trajectory_pipeline.lossless_json import ConversionError
from trajectory_pipeline.runtime.gc_threshold import raised_gc_threshold
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import ListOf, Struct, Type
from trajectory_pipeline.trajectories.columnar.columns import raw_columns
from trajectory_pipeline.trajectories.columnar.decode import NeedsReferencePath
from trajectory_pipeline.trajectories.columnar.documents import columnar_documents
from trajectory_pipeline.trajectories.columnar.runs import ColumnarRuns
from trajectory_pipeline.trajectories.columnar.to_arrow import trajectories_batch
from trajectory_pipeline.trajectories.document import Document, postgres_document
from trajectory_pipeline.trajectories.reference import QuarantinedRun, convert_run, quarantined_run

CONVERSION_VERSION = 1
"""Raise it by one whenever the same raw rows give other trajectories: in a column, a document or a Parquet file.

Every partition of an older version is stale and is rebuilt when it is materialized again. Leave it alone where only
names, comments or speed change. ``test_recorded_output`` fails where the output changed and this did not.
"""

_NEW_CONTAINERS = 2_000_000
"""Containers made until the garbage collector runs; more than a batch makes."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Conversion:
    """What became of a batch of runs, in their order.

    Attributes:
        trajectories: with the schema of the Parquet files.
        documents: of each trajectory, for Postgres; empty if not wanted.
        reference_path_count: number of runs that the reference converted or quarantined.
    """

    trajectories: pa.RecordBatch
    documents: list[Document]
    quarantined: list[QuarantinedRun]
    reference_path_count: int

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
    rows: list[Row] = []
    indexes: list[int] = []
    quarantined: list[QuarantinedRun] = []
    for index in remaining:
        raw = _with_all_columns(raw_runs.slice(index, 1))
        try:
            rows.append(convert_run(raw, partition_key))
            indexes.append(index)
        except ConversionError as error:
            quarantined.append(quarantined_run(raw, error.json_path, error.problem))
        except Exception as error:  # a defect of ours in one run must not fail the other runs of the partition
            problem = (
                f"cannot be converted, and that is a fault of trajectory-pipeline: {type(error).__name__}: {error}"
            )
            quarantined.append(quarantined_run(raw, f"runs[{raw['run_id']}]", problem))
    by_reference = _Converted(
        indexes,
        pa.RecordBatch.from_pylist(rows, schema=arrow_schema(TRAJECTORIES)),
        [postgres_document(row) for row in rows] if documents else [],
    )
    merged = _merged(columnar, by_reference) if columnar and rows else columnar or by_reference
    return Conversion(merged.trajectories, merged.documents, quarantined, len(remaining))


def _convert_columnar(
    batch: pa.RecordBatch, partition_key: str, *, documents: bool
) -> tuple[_Converted | None, list[int]]:
    if not batch.schema.equals(arrow_schema(TERMINAL_RUNS)):
        return None, list(range(batch.num_rows))
    converter, runs, remaining = ColumnarRuns(raw_columns(batch), partition_key), [], []
    for index in range(batch.num_rows):
        try:
            runs.append(converter.convert(index))
        except (NeedsReferencePath, ConversionError, ArithmeticError):
            remaining.append(index)
    if not runs:
        return None, remaining
    trajectories = trajectories_batch(converter, runs)
    # A long run's texts are held several times over; documents are made of what the source wrote.
    converter.release_texts()
    written = columnar_documents(converter, runs, trajectories) if documents else []
    return _Converted([run.index for run in runs], trajectories, written), remaining


def _merged(one: _Converted, other: _Converted) -> _Converted:
    """Return the trajectories of both, in the order of their runs."""
    indexes = [*one.indexes, *other.indexes]
    order = sorted(range(len(indexes)), key=indexes.__getitem__)
    both = pa.Table.from_batches([one.trajectories, other.trajectories]).combine_chunks().to_batches()[0]
    documents = [*one.documents, *other.documents]
    return _Converted(sorted(indexes), both.take(pa.array(order)), [documents[at] for at in order] if documents else [])


def _with_all_columns(one: pa.RecordBatch) -> Mapping[str, Any]:
    row = one.to_pylist()[0]
    return row if one.schema.equals(arrow_schema(TERMINAL_RUNS)) else _completed(row, Struct(TERMINAL_RUNS.columns))


def _completed(value: Any, kind: Type) -> Any:
    """Return a value with a null for every column that it lacks; a list that is lacking is empty."""
    if isinstance(kind, ListOf):
        return [_completed(item, kind.item) for item in value or ()]
    if isinstance(kind, Struct) and value is not None:
        return {column.name: _completed(value.get(column.name), column.type) for column in kind.fields}
    return value
