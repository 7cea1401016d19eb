"""Digests of the pipeline's output for the sample, compared with a committed record of the code's version."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet.store import ParquetStore


def check_output(record: Path, constant: str, version: int, digests: Mapping[str, str]) -> None:
    """Fail where the output differs from the record and the version does not; say what to do.

    Args:
        record: committed JSON file, ``{"version": …, name: digest, …}``.
        constant: name of the version, with its module.
        version: its value.
        digests: of the output, by name.
    """
    recorded = json.loads(record.read_text(encoding="utf-8"))
    changed = [name for name, digest in digests.items() if recorded.get(name) != digest]
    if changed and recorded["version"] == version:
        raise AssertionError(
            f"The output for the sample changed ({', '.join(changed)}), but {constant} is still {version}: partitions"
            f" made before would not be rebuilt. If you did not mean to change it, undo the change. If you did, raise"
            f" {constant} and write this to {record}: {json.dumps({'version': version + 1, **digests})}"
            f" (if the sample itself changed, leave {version} in both)."
        )
    assert recorded == {"version": version, **digests}, (
        f"{constant} is {version} and the record is of {recorded['version']}:"
        f" write this to {record}: {json.dumps({'version': version, **digests})}"
    )


def json_digest(values: Iterable[Any]) -> str:
    """SHA-256 of values as JSON text, one a line, keys in their order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, default=str).encode() + b"\n")
    return digest.hexdigest()


def parquet_digest(table: Table, batches: Iterable[pa.RecordBatch], folder: Path) -> str:
    """SHA-256 of what a Parquet file is like: its columns' types, encodings and compression, and its row groups.

    Not of its bytes, which change with pyarrow: its version makes a partition stale anyway.
    """
    store = ParquetStore(str(folder))
    hour = datetime(2026, 3, 1, 12, tzinfo=UTC)
    store.write(table, hour, batches)
    (path,) = folder.rglob("*.parquet")
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return json_digest(
        (group.num_rows, column.path_in_schema, column.physical_type, column.compression, sorted(column.encodings))
        for group in groups
        for column in map(group.column, range(group.num_columns))
    )
