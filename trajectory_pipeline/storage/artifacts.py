"""Files beside the partitions, such as the report: written whole, with the modes of the partitions' files."""

import io
import os
import posixpath
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.runtime import private_files
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet import filesystem as filesystems
from trajectory_pipeline.storage.parquet.store import ParquetStore


def write_artifact(store: ParquetStore, name: str, content: bytes) -> None:
    """Replace ``<storage>/<name>`` by this content, in one rename or one PUT, readable as the partitions' files are.

    Raises:
        SinkError: the storage cannot be written; the former file stays as it was.
    """
    target = posixpath.join(store.uri.rstrip("/"), name)
    filesystem, path = filesystems.filesystem_of(store.uri, target)
    with filesystems.translating_write_errors(target):
        if not isinstance(filesystem, LocalFileSystem):
            filesystem.pipe_file(path, content)
            return
        write_file(Path(path), content, *filesystems.MODES[store.access])


def write_rows(store: ParquetStore, name: str, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace ``<storage>/<name>`` by a Parquet file of these rows of a declared table.

    Raises:
        SinkError: the storage cannot be written; the former file stays as it was.
    """
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema(table)), buffer)
    write_artifact(store, name, buffer.getvalue())


def write_file(
    path: Path,
    content: bytes,
    file_mode: int = private_files.FILE_MODE,
    folder_mode: int = private_files.FOLDER_MODE,
) -> None:
    """Replace a local file by this content, in one rename; makes its folder.

    Raises:
        OSError: it cannot be written; the former file stays as it was.
    """
    private_files.make_folder(path.parent, folder_mode)
    temporary = path.parent / f"{filesystems.TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
    try:
        with private_files.create_file(temporary, file_mode) as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
