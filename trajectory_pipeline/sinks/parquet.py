"""Parquet files: exactly one a partition and asset, replaced whole.

Belongs here: paths, atomic replacement, reading back in batches. Does not belong here: any column.
"""

import contextlib
import hashlib
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.types import Table

FILE_NAME = "part-0.parquet"
_TEMPORARY = ".writing-"
"""Prefix of files under way: hidden, and not ending in ``.parquet``, so that no reader's glob finds one."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        uri: of the file.
        rows: in it.
        bytes: of it.
        sha256: of it, in hex: the same rows always make the same file.
        replaced: whether it took the place of the former file; False where that one was the same already.
    """

    uri: str
    rows: int
    bytes: int
    sha256: str
    replaced: bool


def hour_folder(hour: datetime) -> str:
    """Return the folder of a partition, ``hour=2026-11-21T09``: Hive style, and without the ``:`` of Dagster's key."""
    return f"hour={hour.astimezone(UTC):%Y-%m-%dT%H}"


@dataclass(frozen=True)
class ParquetStore:
    """A storage for Parquet files.

    Attributes:
        uri: a folder, or an fsspec URL such as ``s3://bucket/prefix``.

    Files stand at ``<asset>/hour=YYYY-MM-DDTHH/part-0.parquet``. A file is made elsewhere first and then moved over
    the old one (one rename, or one PUT): a reader gets one version or the other, never a part.
    """

    uri: str

    def path_of(self, table: Table, hour: datetime) -> str:
        """Return the URI of a partition's file."""
        return posixpath.join(self.uri.rstrip("/"), table.name, hour_folder(hour), FILE_NAME)

    def write(self, table: Table, hour: datetime, batches: Iterable[pa.RecordBatch]) -> Written:
        """Replace a partition's file by these rows, one row group a batch; without any rows, by an empty file.

        Raises:
            SinkError: the storage cannot be written; the old file stays as it was.
        """
        target = self.path_of(table, hour)
        filesystem, path = self._filesystem(target)
        with self._writing(target):
            local = isinstance(filesystem, LocalFileSystem)
            folder = posixpath.dirname(path) if local else tempfile.gettempdir()
            if local:
                filesystem.makedirs(folder, exist_ok=True)
                _remove_leftovers(Path(folder))
            temporary = Path(folder) / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
            try:
                rows = _write_file(temporary, table, batches)
                size, digest = temporary.stat().st_size, _sha256(temporary)
                replaced = not (local and Path(path).is_file() and _sha256(Path(path)) == digest)
                if not local:
                    filesystem.put_file(str(temporary), path)
                elif replaced:
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return Written(target, rows, size, digest, replaced)

    def read(self, table: Table, hour: datetime, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield a partition's rows, one batch a row group; nothing where there is no file.

        Columns that an older file lacks are null.

        Raises:
            SinkError: the file cannot be read.
        """
        target = self.path_of(table, hour)
        filesystem, path = self._filesystem(target)
        wanted = arrow_schema(table)
        if columns is not None:
            wanted = pa.schema([wanted.field(name) for name in columns])
        with self._reading(target):
            if not filesystem.exists(path):
                return
            with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
                present = [name for name in wanted.names if name in file.schema_arrow.names]
                for group in range(file.num_row_groups):
                    for batch in file.read_row_group(group, columns=present).to_batches():
                        yield _with_schema(batch, wanted)

    def exists(self, table: Table, hour: datetime) -> bool:
        """Whether a partition has a file."""
        filesystem, path = self._filesystem(self.path_of(table, hour))
        with self._reading(path):
            return bool(filesystem.exists(path))

    def _filesystem(self, target: str) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            filesystem, path = fsspec.core.url_to_fs(target)
        except (ValueError, ImportError) as error:
            raise SinkError(
                f"TRAJECTORY_STORAGE_URI {self.uri!r} cannot be used: {error}. Give a folder or an fsspec URL, and"
                " install the package that its protocol needs (`pip install s3fs` for s3://)."
            ) from error
        return filesystem, str(path)

    @contextlib.contextmanager
    def _writing(self, target: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid, pa.ArrowIOError) as error:
            raise SinkError(
                f"Writing {target} failed: {error}. The former file, if any, is untouched. Check that there is space"
                " and that this user may write there (TRAJECTORY_STORAGE_URI), then materialise again."
            ) from error

    @contextlib.contextmanager
    def _reading(self, target: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            raise SinkError(
                f"Reading {target} failed: {error}. Check TRAJECTORY_STORAGE_URI; if the file is damaged, materialise"
                " the partition again."
            ) from error


def _write_file(temporary: Path, table: Table, batches: Iterable[pa.RecordBatch]) -> int:
    rows = 0
    schema = arrow_schema(table)
    with temporary.open("wb") as handle:
        # zstd level 1 without dictionaries on large text wrote fastest and no larger; small columns keep them.
        with pq.ParquetWriter(handle, schema, compression="zstd", compression_level=1) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        handle.flush()
        os.fsync(handle.fileno())
    return rows


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left; a partition's lock is held, so nobody else is writing in its folder."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
