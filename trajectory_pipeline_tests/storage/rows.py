"""Small rows of the sinks' tables, enough of them to be true, with what a test says of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Column, ListOf, Scalar, Sink, Struct, Type
from trajectory_pipeline.storage.postgres.copy_writer import CopyWriter

HOUR = datetime(2026, 11, 20, 9, tzinfo=UTC)
NEXT_HOUR = HOUR + timedelta(hours=1)
KEY = partition_key(HOUR)
NEXT_KEY = partition_key(NEXT_HOUR)

Row = dict[str, Any]

_PLAIN = {
    Scalar.STRING: "text",
    Scalar.JSON: "{}",
    Scalar.INT: 1,
    Scalar.FLOAT: 0.5,
    Scalar.BOOL: False,
    Scalar.TIMESTAMP: HOUR,
}


def value_of(kind: Type) -> Any:
    if isinstance(kind, ListOf):
        return []
    if isinstance(kind, Struct):
        return {column.name: plain(column) for column in kind.fields}
    return _PLAIN[kind]


def plain(column: Column) -> Any:
    return None if column.nullable else value_of(column.type)


def trajectory(run_id: str, key: str = KEY, **values: Any) -> Row:
    """A row of ``trajectories`` as the converter gives it, null where that may be."""
    row = {column.name: plain(column) for column in TRAJECTORIES.in_sink(Sink.PARQUET)}
    return {**row, "run_id": run_id, "trajectory_id": f"t-{run_id}", "partition_key": key, **values}


def batch(*rows: Row) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=arrow_schema(TRAJECTORIES))


def stage(staging: CopyWriter, row: Row, data: bytes | None, data_omitted_reason: str | None = None) -> None:
    """Stage one trajectory with its document as JSON text, or the reason that there is none."""
    staging.add_batch(batch(row), [(data, data_omitted_reason)])


def quarantined(run_id: str, **values: Any) -> Row:
    return {
        "run_id": run_id,
        "json_path": f"messages[m].content of {run_id}",
        "error": "is not valid JSON",
        "raw": "{}",
        "steps": 1,
        "messages": 2,
        **values,
    }
