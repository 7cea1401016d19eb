"""Writes the files of a dataset, record by record: nothing but flat rows of a few thousand is held."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from trajectory_pipeline.exports.atif import atif_trajectory
from trajectory_pipeline.exports.flat import SCHEMAS, flat_rows
from trajectory_pipeline.exports.source import ExportRun, JsonObject
from trajectory_pipeline.runtime.private_files import create_file, make_folder

_ROWS_AT_ONCE = 2_000


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON text in UTF-8, the same for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class JsonLines:
    """A file a split, a record a line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}

    def write(self, record: JsonObject, split: str) -> None:
        """Write a record."""
        if split not in self._files:
            self._files[split] = create_file(self._folder / f"{split}.jsonl")
        self._files[split].write(json_bytes(record) + b"\n")

    def close(self) -> None:
        """End the files."""
        for file in self._files.values():
            file.close()


class JsonLinesWriter(JsonLines):
    """A record a run."""

    def __init__(self, folder: Path, record_of: Callable[[ExportRun], JsonObject | None], reason: str) -> None:
        super().__init__(folder)
        self._record_of = record_of
        self._reason = reason

    def add(self, run: ExportRun, split: str) -> str | None:
        """Write a run; returns why it has no place in the form, else None."""
        record = self._record_of(run)
        if record is None:
            return self._reason
        self.write(record, split)
        return None


class AtifWriter:
    """A file a trajectory, in a folder a split."""

    def __init__(self, folder: Path, version: str) -> None:
        self._folder = folder
        self._version = version

    def add(self, run: ExportRun, split: str) -> str | None:
        """Write a run; returns why it has no place in the form, else None."""
        make_folder(self._folder / split)
        with create_file(self._folder / split / f"{run.trajectory['trajectory_id']}.json") as file:
            file.write(json_bytes(atif_trajectory(run, self._version)))
        return None

    def close(self) -> None:
        """End the files: each is ended already."""


class FlatWriter:
    """A file a table, Parquet or CSV."""

    def __init__(self, folder: Path, ending: str) -> None:
        self._folder = folder
        self._ending = ending
        self._rows: dict[str, list[JsonObject]] = defaultdict(list)
        self._writers: dict[str, Any] = {}
        self._files: list[IO[bytes]] = []
        for table, schema in SCHEMAS.items():
            file = create_file(folder / f"{table}.{ending}")
            self._files.append(file)
            open_writer = pq.ParquetWriter if ending == "parquet" else pyarrow.csv.CSVWriter
            self._writers[table] = open_writer(file, schema)

    def add(self, run: ExportRun, split: str) -> str | None:
        """Write a run; returns why it has no place in the form, else None."""
        for table, row in flat_rows(run, split):
            self._rows[table].append(row)
            if len(self._rows[table]) >= _ROWS_AT_ONCE:
                self._flush(table)
        return None

    def _flush(self, table: str) -> None:
        rows = self._rows.pop(table, [])
        if rows:
            self._writers[table].write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[table]))

    def close(self) -> None:
        """End the files."""
        for table, writer in self._writers.items():
            self._flush(table)
            writer.close()
        for file in self._files:
            file.close()
