"""From a batch of raw runs to trajectories: ordinary runs the short way, all others as the specification says.

Belongs here: which way a run takes, and what happens to one that cannot be converted. Does not belong here: the two
ways (``ordinary``, ``plain``).
"""

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
from trajectory_pipeline.trajectories.columnar.runs import ColumnarRun, ColumnarRuns
from trajectory_pipeline.trajectories.columnar.to_arrow import trajectories_batch
from trajectory_pipeline.trajectories.document import Document, postgres_document
from trajectory_pipeline.trajectories.reference import QuarantinedRun, convert_run, quarantined_run

CONVERSION_VERSION = 1
"""Raise it by one whenever the same raw rows give other trajectories: in a column, a document or a Parquet file.

Every partition of an older version is stale and is rebuilt when it is materialized again. Leave it alone where only
names, comments or speed change. ``test_recorded_output`` fails where the output changed and this did not.
"""

_CONTAINERS = 2_000_000
"""New ones until the garbage collector looks at them; more than a batch makes."""

Row = dict[str, Any]
ConvertedRun = tuple[pa.RecordBatch, list[Document]]


@dataclass(frozen=True)
class Conversion:
    """What became of a batch of runs.

    Attributes:
        trajectories: with the schema of the Parquet files; ordered as the runs were.
        documents: of each trajectory, for Postgres; empty if not wanted.
        quarantined: the runs that could not be converted.
        plainly: how many runs were converted, or found to be wrong, as the specification does it.
    """

    trajectories: pa.RecordBatch
    documents: list[Document]
    quarantined: list[QuarantinedRun]
    reference_path_count: int

    @property
    def rows(self) -> list[Row]:
        """The trajectories as dicts."""
        return self.trajectories.to_pylist()


@raised_gc_threshold(_CONTAINERS)
def convert_batch(raw_runs: pa.RecordBatch, partition_key: str, *, documents: bool = False) -> Conversion:
    """Convert the rows of ``terminal_runs``; one that cannot be converted is quarantined, the others go on.

    Args:
        raw_runs: with the schema of ``terminal_runs`` (older versions of it too: what they lack is null).
        partition_key: Dagster's key of the partition that they belong to.
        documents: whether the documents for Postgres are wanted.
    """
    ordinary, others = _ordinary_runs(raw_runs, partition_key)
    rows: list[Row] = []
    quarantined: list[QuarantinedRun] = []
    places: list[int] = []
    for place in others:
        raw = _with_all_columns(raw_runs.slice(place, 1))
        try:
            rows.append(convert_run(raw, partition_key))
            places.append(place)
        except ConversionError as error:
            quarantined.append(quarantined_run(raw, error.place, error.problem))
        except Exception as error:  # a fault of ours in one run must not take the other runs of the partition along
            problem = (
                f"cannot be converted, and that is a fault of trajectory-pipeline: {type(error).__name__}: {error}"
            )
            quarantined.append(quarantined_run(raw, f"runs[{raw['run_id']}]", problem))
    made = [] if ordinary is None else [_made(*ordinary, documents=documents)]
    places = [*(run.place for run in ordinary[1]), *places] if ordinary else places
    if rows:
        batch = pa.RecordBatch.from_pylist(rows, schema=arrow_schema(TRAJECTORIES))
        made.append((batch, [postgres_document(row) for row in rows] if documents else []))
    return Conversion(*_merged(made, places), quarantined, len(others))


def _ordinary_runs(
    batch: pa.RecordBatch, partition_key: str
) -> tuple[tuple[ColumnarRuns, list[ColumnarRun]] | None, list[int]]:
    """Return the ordinary runs, converted, and where the others stand."""
    if not batch.schema.equals(arrow_schema(TERMINAL_RUNS)):
        return None, list(range(batch.num_rows))
    converted, runs, others = ColumnarRuns(raw_columns(batch), partition_key), [], []
    for place in range(batch.num_rows):
        try:
            runs.append(converted.run(place))
        except (NeedsReferencePath, ConversionError, ArithmeticError):
            others.append(place)
    return (converted, runs) if runs else None, others


def _made(converted: ColumnarRuns, runs: list[ColumnarRun], *, documents: bool) -> ConvertedRun:
    batch = trajectories_batch(converted, runs)
    # A long run's texts are there several times over; documents are made of what the source wrote.
    converted.forget_texts()
    return batch, columnar_documents(converted, runs, batch) if documents else []


def _merged(made: list[ConvertedRun], places: list[int]) -> ConvertedRun:
    """Return the trajectories of both ways in the order of their runs."""
    if not made:
        return pa.RecordBatch.from_pylist([], schema=arrow_schema(TRAJECTORIES)), []
    if len(made) == 1:
        return made[0]
    order = sorted(range(len(places)), key=places.__getitem__)
    documents = [document for _, of_batch in made for document in of_batch]
    batch = pa.Table.from_batches([batch for batch, _ in made]).combine_chunks().to_batches()[0].take(pa.array(order))
    return batch, [documents[index] for index in order] if documents else []


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
