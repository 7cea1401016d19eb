"""Parquet files: exactly one a partition and asset, replaced whole.

Belongs here: paths, atomic replacement, reading back in batches. Does not belong here: any column.
"""

import contextlib
import hashlib
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.types import Table

FILE_NAME = "part-0.parquet"
HOUR_FOLDER = "hour=%Y-%m-%dT%H"
TEMPORARY = ".writing-"
"""Prefix of files under way: hidden, and not ending in ``.parquet``, so that no reader's glob finds one."""
_LOGIN = re.compile(r"^([a-z0-9+.:-]+://)[^/@]*:[^/]*@", re.IGNORECASE)


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
    return hour.astimezone(UTC).strftime(HOUR_FOLDER)


@dataclass(frozen=True)
class Prepared:
    """A partition's new file, made and not yet seen by anybody.

    Attributes:
        uri: where it will be.
        rows: in it.
        bytes: of it.
        sha256: of it, in hex.
    """

    uri: str
    rows: int
    bytes: int
    sha256: str
    _temporary: Path
    _filesystem: fsspec.AbstractFileSystem
    _path: str

    def publish(self) -> Written:
        """Put the file in the place of the former one, at once; one that is the same already is left alone.

        Raises:
            SinkError: the storage cannot be written; the former file stays as it was.
        """
        replaced = not self.is_published
        with _writing(self.uri):
            if replaced and isinstance(self._filesystem, LocalFileSystem):
                self._temporary.replace(self._path)
                _sync_folder(Path(self._path).parent)
            elif replaced:
                self._filesystem.put_file(str(self._temporary), self._path)
        return Written(self.uri, self.rows, self.bytes, self.sha256, replaced)

    @cached_property
    def is_published(self) -> bool:
        """Whether the former file is the same already.

        Raises:
            SinkError: it cannot be read.
        """
        with _reading(self.uri):
            try:
                if self._filesystem.size(self._path) != self.bytes:
                    return False
                with self._filesystem.open(self._path, "rb") as former:
                    return hashlib.file_digest(former, "sha256").hexdigest() == self.sha256
            except FileNotFoundError:
                return False


@dataclass(frozen=True)
class ParquetStore:
    """A storage for Parquet files.

    Attributes:
        uri: a folder, or an fsspec URL such as ``s3://bucket/prefix``.

    Files stand at ``<asset>/hour=YYYY-MM-DDTHH/part-0.parquet``. A file is made elsewhere first and then put over the
    old one (one rename, or one PUT): a reader gets one version or the other, never a part. That holds for local
    folders and object stores; a remote filesystem that writes in place (SFTP, SMB) promises less.
    """

    uri: str = field(repr=False)

    def path_of(self, table: Table, hour: datetime) -> str:
        """Return the URI of a partition's file, as it may be shown: without a password."""
        return shown(self._target(table, hour))

    def write(self, table: Table, hour: datetime, batches: Iterable[pa.RecordBatch]) -> Written:
        """Replace a partition's file by these rows, one row group a batch; without any rows, by an empty file.

        Raises:
            SinkError: the storage cannot be written; the old file stays as it was.
        """
        with self.prepare(table, hour, batches) as prepared:
            return prepared.publish()

    def standing(self, table: Table, hour: datetime, sha256: str) -> Written | None:
        """Return a partition's file where it is there and has this digest; None where it is another or none.

        Raises:
            SinkError: the storage cannot be read.
        """
        target = self.path_of(table, hour)
        filesystem, path = self.filesystem(self._target(table, hour))
        with _reading(target):
            try:
                with filesystem.open(path, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                        return None
                    size = file.tell()
                    rows = pq.ParquetFile(file).metadata.num_rows
                    return Written(target, rows, size, sha256, replaced=False)
            except FileNotFoundError:
                return None

    def tidy(self, table: Table, hour: datetime) -> None:
        """Remove what a killed process left of a file of the partition, whose lock must be held, as ``prepare`` does.

        Raises:
            SinkError: the storage cannot be written.
        """
        filesystem, path = self.filesystem(self._target(table, hour))
        if isinstance(filesystem, LocalFileSystem):
            with _writing(self.path_of(table, hour)):
                _remove_leftovers(Path(path).parent)

    @contextlib.contextmanager
    def prepare(self, table: Table, hour: datetime, batches: Iterable[pa.RecordBatch]) -> Iterator[Prepared]:
        """Make a partition's new file; nobody sees it before ``publish``, and without that it is gone in the end.

        So a file can be ready before a database transaction ends, and be published just before its commit.

        Raises:
            SinkError: the storage cannot be written; the old file stays as it was.
        """
        target = self.path_of(table, hour)
        filesystem, path = self.filesystem(self._target(table, hour))
        folder = (
            Path(posixpath.dirname(path)) if isinstance(filesystem, LocalFileSystem) else Path(tempfile.gettempdir())
        )
        temporary = folder / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        with _writing(target):
            if isinstance(filesystem, LocalFileSystem):
                filesystem.makedirs(str(folder), exist_ok=True)
                _remove_leftovers(folder)
            handle = temporary.open("wb")
        try:
            with _closing(handle, target):
                rows = _write_file(handle, target, table, batches)
            with _writing(target):
                size, digest = temporary.stat().st_size, _sha256(temporary)
            yield Prepared(target, rows, size, digest, temporary, filesystem, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def read(self, table: Table, hour: datetime, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield a partition's rows, one row group after the other; nothing where there is no file.

        Columns and fields that an older file lacks are null, lists empty.

        Raises:
            SinkError: the file cannot be read.
        """
        target = self.path_of(table, hour)
        filesystem, path = self.filesystem(self._target(table, hour))
        wanted = arrow_schema(table)
        if columns is not None:
            wanted = pa.schema([wanted.field(name) for name in columns])
        yield from _told_as_reading(target, _batches(filesystem, path, wanted))

    def read_fields(self, table: Table, hour: datetime, fields: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield a partition's rows with these fields alone, whatever else stands beside them; nothing without a file.

        Args:
            table: of the rows.
            hour: start of the partition, UTC.
            fields: columns without fields, and fields of lists: ``turns.messages.message_id``.

        Raises:
            SinkError: the file cannot be read, or lacks one of them.
        """
        target = self.path_of(table, hour)
        filesystem, path = self.filesystem(self._target(table, hour))
        leaves = [field.replace(".", ".list.element.") for field in fields]
        yield from _told_as_reading(target, _leaves(filesystem, path, leaves))

    def exists(self, table: Table, hour: datetime) -> bool:
        """Whether a partition has a file."""
        filesystem, path = self.filesystem(self._target(table, hour))
        with _reading(self.path_of(table, hour)):
            return bool(filesystem.exists(path))

    def probe(self) -> None:
        """Check that the storage can be reached, and, for a folder, that it can be written; writes nothing.

        Raises:
            SinkError: it cannot.
        """
        filesystem, path = self.filesystem(self.uri)
        with _writing(shown(self.uri)):
            if not isinstance(filesystem, LocalFileSystem):
                filesystem.exists(path)
                return
            folder = next(place for place in (Path(path), *Path(path).parents) if place.exists())
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f"{folder} is no folder that this user may write")

    def rows(self, table: Table, hour: datetime) -> int | None:
        """Return the number of rows in a partition's file, from its footer; None where there is no file.

        Raises:
            SinkError: the file cannot be read.
        """
        filesystem, path = self.filesystem(self._target(table, hour))
        with _reading(self.path_of(table, hour)):
            if not filesystem.exists(path):
                return None
            with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
                return int(file.metadata.num_rows)

    def _target(self, table: Table, hour: datetime) -> str:
        return posixpath.join(self.uri.rstrip("/"), table.name, hour_folder(hour), FILE_NAME)

    def filesystem(self, target: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the filesystem of a URI of this storage, and its path there.

        Raises:
            SinkError: there is no such filesystem, or the package that it needs is not installed.
        """
        try:
            filesystem, path = fsspec.core.url_to_fs(target)
            if not isinstance(filesystem, LocalFileSystem):
                # A listing that this process remembers does not know what others have written since.
                filesystem.invalidate_cache()
        except Exception as error:
            raise SinkError(
                f"TRAJECTORY_STORAGE_URI {shown(self.uri)!r} cannot be used: {error}. Give a folder or an"
                " fsspec URL, and install the package that its protocol needs (`pip install s3fs` for s3://)."
            ) from error
        return filesystem, str(path)


def shown(uri: str) -> str:
    """Return a URI as it may be shown: ``sftp://host/path``, no user and no password."""
    return _LOGIN.sub(r"\1", uri)


@contextlib.contextmanager
def _writing(target: str) -> Iterator[None]:
    try:
        yield
    # Each kind of storage has errors of its own: botocore's are no OSError.
    except Exception as error:
        raise SinkError(
            f"Writing {target} failed: {told(error)}. The former file, if any, is untouched. Check that there is space"
            " and that this user may write there (TRAJECTORY_STORAGE_URI), then materialise again."
        ) from error


@contextlib.contextmanager
def _reading(target: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise SinkError(
            f"Reading {target} failed: {told(error)}. Check TRAJECTORY_STORAGE_URI; if the file is damaged,"
            " materialise the partition again."
        ) from error


def _told_as_reading(target: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    while True:
        # What the caller does with a batch is no affair of ours: only the reading is told as such.
        with _reading(target):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def told(error: Exception) -> str:
    """Return what an error of a storage says, on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _batches(filesystem: fsspec.AbstractFileSystem, path: str, wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
    if not filesystem.exists(path):
        return
    with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
        there = set(file.schema_arrow.names)
        present = [name for name in wanted.names if name in there]
        for group in range(file.num_row_groups):
            for batch in file.read_row_group(group, columns=present).to_batches():
                yield _with_schema(batch, wanted)


def _leaves(filesystem: fsspec.AbstractFileSystem, path: str, leaves: list[str]) -> Iterator[pa.RecordBatch]:
    if not filesystem.exists(path):
        return
    with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
        missing = set(leaves) - {file.schema.column(number).path for number in range(len(file.schema))}
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=leaves).to_batches()


def _write_file(handle: IO[bytes], target: str, table: Table, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a file; errors of the storage are told as such, those of the rows' origin are passed on."""
    rows = 0
    with _writing(target):
        # With dictionaries, prompts and tools that many runs share are compressed once: a fifth smaller, and no slower.
        writer = pq.ParquetWriter(handle, arrow_schema(table), compression="zstd", compression_level=1)
    try:
        for batch in batches:
            with _writing(target):
                writer.write_batch(batch)
            rows += batch.num_rows
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        raise
    with _writing(target):
        writer.close()
        handle.flush()
        os.fsync(handle.fileno())
    return rows


@contextlib.contextmanager
def _closing(handle: IO[bytes], target: str) -> Iterator[None]:
    """Close a file at the end; what a full disk keeps it from writing then is told once, and as an error of it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            handle.close()
        raise
    with _writing(target):
        handle.close()


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else _nothing(field.type, len(batch))
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _nothing(kind: pa.DataType, rows: int) -> "pa.Array[Any]":
    nothing: list[Any] = [[] if pa.types.is_list(kind) else None] * rows
    return pa.array(nothing, kind)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left; a partition's lock is held, so nobody else is writing in its folder."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
