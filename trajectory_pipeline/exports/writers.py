"""Writes the files of a dataset, record by record: nothing but rows of a few megabytes is held."""

from collections import defaultdict
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from trajectory_pipeline.exports import scout
from trajectory_pipeline.exports.flat import SCHEMAS
from trajectory_pipeline.exports.otel import Telemetry, request_of
from trajectory_pipeline.exports.source import JsonObject, json_bytes
from trajectory_pipeline.runtime.private_files import create_file, make_folder

ROWS_AT_ONCE = 2_000
"""Rows of a table that are written together, at the most."""
_BYTES_AT_ONCE = 4_000_000
GROUPS_IN_A_FILE = 500
"""Row groups of a file of Inspect Scout: what describes each stays in memory until the file ends."""


class JsonLines:
    """A file a split, a record a line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}

    def write(self, encoded: bytes, split: str) -> None:
        """Write a record."""
        if split not in self._files:
            self._files[split] = create_file(self._folder / f"{split}.jsonl")
        self._files[split].write(encoded + b"\n")

    def close(self) -> None:
        """End the files."""
        for file in self._files.values():
            file.close()


class OtlpLines:
    """An export request of OTLP a line, in a file of traces and one of logs a split; a run is encoded as telemetry."""

    def __init__(self, folder: Path) -> None:
        self._lines = JsonLines(folder)

    def write(self, encoded: Telemetry, split: str) -> None:
        """Write a run's spans and events."""
        self._lines.write(json_bytes(request_of("spans", encoded.spans, split)), f"{split}-traces")
        if encoded.events:
            self._lines.write(json_bytes(request_of("events", encoded.events, split)), f"{split}-logs")

    def close(self) -> None:
        """End the files."""
        self._lines.close()


class JsonFiles:
    """A file a run, in a folder a split; a run is encoded as its file and those beside it, by their names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shared: set[str] = set()
        self._folders: set[str] = set()

    def write(self, encoded: dict[str, bytes], split: str) -> None:
        """Write a run's files; one that other runs have too, which its name tells, is written once."""
        for name, content in encoded.items():
            path = f"{split}/{name}"
            folder, _, _ = path.rpartition("/")
            if folder != split:
                if path in self._shared:
                    continue
                self._shared.add(path)
            if folder not in self._folders:
                make_folder(self._folder / folder)
                self._folders.add(folder)
            with create_file(f"{self._folder}/{path}") as file:
                file.write(content)

    def close(self) -> None:
        """End the files: each is ended already."""


class ScoutTables:
    """Parquet files, one or more a split; a run is encoded as its row."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._splits: dict[str, _ScoutSplit] = {}

    def write(self, encoded: JsonObject, split: str) -> None:
        """Write a run's row."""
        if split not in self._splits:
            self._splits[split] = _ScoutSplit(self._folder, split)
        self._splits[split].write({**encoded, "split": split})

    def close(self) -> None:
        """End the files."""
        for split in self._splits.values():
            split.close()


class _ScoutSplit:
    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._rows: list[JsonObject] = []
        self._bytes = self._files = self._groups = 0
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def write(self, row: JsonObject) -> None:
        self._rows.append(row)
        self._bytes += len(row["messages"])
        if self._bytes >= _BYTES_AT_ONCE or len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._end_file()

    def _flush(self) -> None:
        if self._groups == GROUPS_IN_A_FILE:
            self._end_file()
        if self._file is None:
            self._open_file()
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=scout.SCHEMA))
        self._groups += 1
        self._rows, self._bytes = [], 0
        pa.default_memory_pool().release_unused()

    def _open_file(self) -> None:
        self._files += 1
        name = self._name if self._files == 1 else f"{self._name}-{self._files}"
        self._file = create_file(self._folder / f"{name}.parquet")
        # Two runs seldom say the same: a dictionary of their messages would be memory without use.
        alike: Any = [name for name in scout.SCHEMA.names if name != "messages"]
        self._writer = pq.ParquetWriter(self._file, scout.SCHEMA, compression="zstd", use_dictionary=alike)

    def _end_file(self) -> None:
        if self._file is not None:
            self._writer.close()
            self._file.close()
            self._file, self._groups = None, 0


class FlatTables:
    """A file a table, Parquet or CSV; a run is encoded as its rows, each with the name of its table."""

    def __init__(self, folder: Path, ending: str) -> None:
        self._rows: dict[str, list[JsonObject]] = defaultdict(list)
        self._writers: dict[str, Any] = {}
        self._files: list[IO[bytes]] = []
        for table, schema in SCHEMAS.items():
            file = create_file(folder / f"{table}.{ending}")
            self._files.append(file)
            open_writer = pq.ParquetWriter if ending == "parquet" else pyarrow.csv.CSVWriter
            self._writers[table] = open_writer(file, schema)

    def write(self, encoded: list[tuple[str, JsonObject]], split: str) -> None:
        """Write the rows of a run."""
        for table, row in encoded:
            self._rows[table].append({**row, "split": split} if table == "runs" else row)
            if len(self._rows[table]) >= ROWS_AT_ONCE:
                self._flush(table)

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
