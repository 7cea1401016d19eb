"""Writes the files of a dataset, record by record: nothing but flat rows of a few thousand is held."""

from collections import defaultdict
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from trajectory_pipeline.exports.flat import SCHEMAS
from trajectory_pipeline.exports.source import JsonObject
from trajectory_pipeline.runtime.private_files import create_file, make_folder

_ROWS_AT_ONCE = 2_000


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


class JsonFiles:
    """A file a run, in a folder a split; a run is encoded as the file's name and its content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: set[str] = set()

    def write(self, encoded: tuple[str, bytes], split: str) -> None:
        """Write a run's file."""
        name, content = encoded
        if split not in self._made:
            make_folder(self._folder / split)
            self._made.add(split)
        with create_file(self._folder / split / name) as file:
            file.write(content)

    def close(self) -> None:
        """End the files: each is ended already."""


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
            if len(self._rows[table]) >= _ROWS_AT_ONCE:
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
