"""Files whose bytes can be read and make no Parquet: told from a storage that fails, and kept aside."""

import hashlib
import posixpath
import shutil
import tempfile
from datetime import datetime
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet import filesystem as filesystems
from trajectory_pipeline.storage.parquet.store import ParquetStore

CORRUPT_SUFFIX = ".damaged-"
"""Prefix of files kept aside: hidden, and not ending in ``.parquet``, so that no reader's glob finds one."""


def find_corruption(store: ParquetStore, table: Table, hour: datetime) -> str | None:
    """Return what is wrong with a partition's file, on one line; None where it is whole, or there is none.

    Reads all of it. A storage that cannot be read says nothing about the file, and is an error.

    Raises:
        SinkError: the storage cannot be read.
    """
    if not store.exists(table, hour):
        return None
    with tempfile.TemporaryFile() as copy:
        with filesystems.translating_read_errors(store.path_of(table, hour)):
            _fetch(store, table, hour, copy)
        try:
            with pq.ParquetFile(copy) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group)
        # Of a page that does not decompress, Arrow tells as of the system.
        except (pa.ArrowException, OSError) as error:
            return filesystems.storage_error(error)
    return None


def keep_corrupt_file(store: ParquetStore, table: Table, hour: datetime) -> str:
    """Copy a partition's file to where no reader looks, once; returns the copy's URI. Its lock must be held.

    Raises:
        SinkError: the storage cannot be read or written.
    """
    target = store.path_of(table, hour)
    filesystem, path = store.filesystem(table, hour)
    with filesystems.translating_read_errors(target), filesystem.open(path, "rb") as file:
        # By its content: asked again after a crash, it is the same copy.
        name = CORRUPT_SUFFIX + hashlib.file_digest(file, "sha256").hexdigest()[:16]
    with filesystems.translating_write_errors(posixpath.join(posixpath.dirname(target), name)):
        filesystem.copy(path, posixpath.join(posixpath.dirname(path), name))
    return posixpath.join(posixpath.dirname(target), name)


def _fetch(store: ParquetStore, table: Table, hour: datetime, copy: IO[bytes]) -> None:
    filesystem, path = store.filesystem(table, hour)
    with filesystem.open(path, "rb") as file:
        shutil.copyfileobj(cast(Any, file), copy)
    copy.seek(0)
