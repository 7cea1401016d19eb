"""Files that can be read and are not valid Parquet: found, and copied aside before they are replaced."""

import hashlib
import posixpath
import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.runtime import private_files
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet import filesystem as filesystems
from trajectory_pipeline.storage.parquet.store import ParquetStore

CORRUPT_SUFFIX = ".damaged-"
"""Prefix of copies of damaged files: hidden, and not ending in ``.parquet``, so that no reader's glob finds one."""


def find_corruption(store: ParquetStore, table: Table, hour: datetime) -> str | None:
    """Return what is wrong with a partition's file, on one line; None where it is valid, or there is none.

    Reads the whole file.

    Raises:
        SinkError: the storage cannot be read, which says nothing about the file.
    """
    if not store.exists(table, hour):
        return None
    with tempfile.TemporaryFile() as copy:
        with store.reading(table, hour) as (filesystem, path), filesystem.open(path, "rb") as file:
            shutil.copyfileobj(cast(Any, file), copy)
        copy.seek(0)
        try:
            with pq.ParquetFile(copy) as parquet:
                for group in range(parquet.num_row_groups):
                    parquet.read_row_group(group)
        # A page that does not decompress is an OSError in Arrow.
        except (pa.ArrowException, OSError) as error:
            return filesystems.storage_error(error, store.uri)
    return None


def keep_corrupt_file(store: ParquetStore, table: Table, hour: datetime) -> str:
    """Copy a partition's file to where no reader looks, once; returns the copy's URI. Its lock must be held.

    Raises:
        SinkError: the storage cannot be read or written.
    """
    with store.reading(table, hour) as (filesystem, path), filesystem.open(path, "rb") as file:
        # Named by its content: after a crash, the same copy is made again.
        name = CORRUPT_SUFFIX + hashlib.file_digest(file, "sha256").hexdigest()[:16]
    with filesystems.translating_write_errors(store.target(table, hour)):
        copy = posixpath.join(posixpath.dirname(path), name)
        if isinstance(filesystem, LocalFileSystem):
            # Copying into a file that exists leaves its mode.
            Path(copy).unlink(missing_ok=True)
            private_files.create_file(Path(copy), filesystems.MODES[store.access][0]).close()
        filesystem.copy(path, copy)
    return posixpath.join(posixpath.dirname(store.path_of(table, hour)), name)
