"""Parquet files: exactly one a partition and asset, replaced whole."""

import contextlib
import hashlib
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.partition_keys import floor_to_hour, source_of, source_suffix
from trajectory_pipeline.runtime import private_files
from trajectory_pipeline.schema.arrow import arrow_schema, leaf_paths, without_fields
from trajectory_pipeline.schema.enums import FileAccess
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet import filesystem as filesystems
from trajectory_pipeline.storage.parquet import io
from trajectory_pipeline.urls import without_credentials

FILE_NAME = "part-0.parquet"
_SMALL_FILE_BYTES = 2**20
HOUR_FOLDER = "hour=%Y-%m-%dT%H"


@dataclass(frozen=True)
class WrittenFile:
    """A partition's file; ``replaced`` is False where the former one was the same already.

    The same rows always make the same ``sha256`` (hex).
    """

    uri: str
    rows: int
    bytes: int
    sha256: str
    replaced: bool


def hour_folder(hour: datetime) -> str:
    """Return the folder of a partition, ``hour=2026-11-21T09``: Hive style, and without the ``:`` of Dagster's key.

    The folder of another source than the Letta database ends in its name: ``hour=2026-11-21T09~letta_code``.
    """
    return f"{floor_to_hour(hour).strftime(HOUR_FOLDER)}{source_suffix(source_of(hour))}"


@dataclass(frozen=True)
class StagedFile:
    """A partition's new file, complete and not yet visible to readers; ``uri`` is where it will be."""

    uri: str
    rows: int
    bytes: int
    sha256: str
    _target: str = field(repr=False)
    _temporary: Path
    _filesystem: fsspec.AbstractFileSystem
    _path: str
    _mode: int
    _fetched: filesystems.Fetched | None

    def publish(self) -> WrittenFile:
        """Put the file in the place of the former one, at once; one that is the same already is left alone.

        Raises:
            SinkError: the storage cannot be written; the former file stays as it was.
        """
        replaced = not self.is_published
        with filesystems.translating_write_errors(self._target):
            if replaced and isinstance(self._filesystem, LocalFileSystem):
                self._temporary.replace(self._path)
                filesystems.sync_folder(Path(self._path).parent)
            elif not replaced and isinstance(self._filesystem, LocalFileSystem):
                Path(self._path).chmod(self._mode)
            elif replaced:
                if self._fetched is not None:
                    self._fetched.pop(self._path, None)
                self._filesystem.put_file(str(self._temporary), self._path)
        return WrittenFile(self.uri, self.rows, self.bytes, self.sha256, replaced)

    @property
    def is_first_and_empty(self) -> bool:
        """Whether the file has no rows, and there is no former one; raises ``SinkError`` as ``is_published`` does."""
        return not self.rows and self._former_digest is None

    @property
    def is_published(self) -> bool:
        """Whether the former file is the same already.

        Raises:
            SinkError: it cannot be read.
        """
        return self._former_digest == self.sha256

    @cached_property
    def _former_digest(self) -> str | None:
        """The digest of the former file, empty where its size tells that it is another; None where there is none."""
        with filesystems.translating_read_errors(self._target):
            former = filesystems.open_existing(self._filesystem, self._path, self._fetched)
            if former is None:
                return None
            with former as file:
                if file.seek(0, os.SEEK_END) != self.bytes:
                    return ""
                file.seek(0)
                # Each of them has `readinto`, which the type does not say.
                return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


@contextlib.contextmanager
def _removing(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class ParquetStore:
    """Parquet files under ``uri``: a folder, or an fsspec URL such as ``s3://bucket/prefix``.

    A file is at ``<asset>/hour=YYYY-MM-DDTHH/part-0.parquet``. It is made elsewhere first and then put over the old
    one (one rename, or one PUT): a reader gets one version or the other, never a part. That holds for local folders
    and object stores; a remote filesystem that writes in place (SFTP, SMB) promises less.

    Methods raise ``SinkError`` if the storage cannot be read or written; the old file then stays as it was.
    """

    uri: str = field(repr=False)
    access: FileAccess = FileAccess.PRIVATE
    _fetched: filesystems.Fetched | None = field(default=None, repr=False, compare=False)

    def fetching_once(self) -> Self:
        """Return the same storage, which fetches a small object once and remembers it: each request costs money.

        Only for files that no other process writes meanwhile, because the caller holds the locks of their partitions.
        """
        return replace(self, _fetched={})

    def path_of(self, table: Table, hour: datetime) -> str:
        """Return the URI of a partition's file, as it may be shown: without a password."""
        return posixpath.join(self.shown_uri.rstrip("/"), table.name, hour_folder(hour), FILE_NAME)

    @property
    def shown_uri(self) -> str:
        """The storage's URI, as it may be shown: without a password."""
        return without_credentials(self.uri)

    def target(self, table: Table, hour: datetime) -> str:
        """Return the URI of a partition's file as fsspec needs it, which may hold a password."""
        return posixpath.join(self.uri.rstrip("/"), table.name, hour_folder(hour), FILE_NAME)

    def write(self, table: Table, hour: datetime, batches: Iterable[pa.RecordBatch]) -> WrittenFile:
        """Replace a partition's file by these rows; without any rows, by an empty file."""
        with self.stage(table, hour, batches) as staged:
            return staged.publish()

    def find_matching(self, table: Table, hour: datetime, sha256: str) -> WrittenFile | None:
        """Return a partition's file if it has this digest; None where there is another or none."""
        with self.reading(table, hour) as (filesystem, path):
            found = filesystems.open_existing(filesystem, path, self._fetched)
            if found is None:
                return None
            with found as file:
                # Each of them has `readinto`, which the type does not say.
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:  # type: ignore[arg-type]
                    return None
                size = file.tell()
                rows = pq.ParquetFile(file).metadata.num_rows
                return WrittenFile(self.path_of(table, hour), rows, size, sha256, replaced=False)

    def remove_temp_files(self, table: Table, hour: datetime) -> None:
        """Remove what a killed process left in a partition's folder, as ``stage`` does; its lock must be held."""
        filesystem, path = self.filesystem(table, hour)
        if isinstance(filesystem, LocalFileSystem):
            with filesystems.translating_write_errors(self.target(table, hour)):
                filesystems.remove_temp_files(Path(path).parent)

    @contextlib.contextmanager
    def stage(self, table: Table, hour: datetime, batches: Iterable[pa.RecordBatch]) -> Iterator[StagedFile]:
        """Make a partition's new file; it is invisible until ``publish``, and without that it is removed at the end.

        So a file can be ready before a database transaction ends, and be published just before its commit.
        """
        target = self.target(table, hour)
        filesystem, path = self.filesystem(table, hour)
        local = isinstance(filesystem, LocalFileSystem)
        file_mode, folder_mode = filesystems.MODES[self.access]
        folder = Path(posixpath.dirname(path))
        with contextlib.ExitStack() as until_published:
            with filesystems.translating_write_errors(target):
                if local:
                    private_files.make_folder(folder, folder_mode)
                    filesystems.remove_temp_files(folder)
                    temporary = folder / f"{filesystems.TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
                    handle: IO[bytes] = private_files.create_file(temporary, file_mode)
                    until_published.enter_context(_removing(temporary))
                else:
                    temporary = until_published.enter_context(private_files.temp_file())
                    handle = temporary.open("wb")
            with filesystems.closing(handle, target):
                rows = io.write_rows(handle, target, table, batches)
            with filesystems.translating_write_errors(target), temporary.open("rb") as written:
                digest, size = hashlib.file_digest(written, "sha256").hexdigest(), temporary.stat().st_size
            where = self.path_of(table, hour)
            yield StagedFile(where, rows, size, digest, target, temporary, filesystem, path, file_mode, self._fetched)

    def read(
        self,
        table: Table,
        hour: datetime,
        columns: list[str] | None = None,
        *,
        rows: "np.ndarray[Any, np.dtype[np.bool_]] | None" = None,
        without: frozenset[str] = frozenset(),
    ) -> Iterator[pa.RecordBatch]:
        """Yield a partition's rows in batches, in the order of the file; nothing where there is no file.

        Columns and fields that an older file lacks are null, lists empty.

        Args:
            table: whose.
            hour: the partition.
            columns: names of columns; None for all.
            rows: of each row of the file, whether it is wanted; None: all are.
            without: names of columns, and of fields at any depth, that are left out.
        """
        wanted = without_fields(arrow_schema(table), without)
        if columns is not None:
            wanted = pa.schema([wanted.field(name) for name in columns])
        yield from io.translating_parquet_errors(
            self.target(table, hour), io.read_batches(self._opener(table, hour), wanted, rows)
        )

    def read_small(self, table: Table, hour: datetime, most_rows: int) -> tuple[str, pa.RecordBatch] | None:
        """Return the SHA-256 of a partition's file with its rows; None where there is no file, or a large one."""
        with self.reading(table, hour) as (filesystem, path):
            found = filesystems.open_existing(filesystem, path)
            if found is None:
                return None
            with found as handle:
                content = handle.read(_SMALL_FILE_BYTES + 1)
            if len(content) > _SMALL_FILE_BYTES:
                return None
            rows = io.read_small(content, arrow_schema(table), most_rows)
            return None if rows is None else (hashlib.sha256(content).hexdigest(), rows)

    def read_fields(
        self, table: Table, hour: datetime, fields: Sequence[str], *, skip_absent: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Yield a partition's rows with these fields alone; nothing without a file, ``SinkError`` if one lacks a field.

        With ``skip_absent``, a field that an older file lacks is left out.

        A field is a column without fields, or a field of lists or structs: ``turns.messages.message_id``.
        """
        paths = {path.replace(".list.element", ""): path for path in leaf_paths(arrow_schema(table))}
        leaves = [paths[field] for field in fields]
        batches = io.read_leaves(self._opener(table, hour), leaves, skip_absent=skip_absent)
        yield from io.translating_parquet_errors(self.target(table, hour), batches)

    def exists(self, table: Table, hour: datetime) -> bool:
        """Whether a partition has a file."""
        with self.reading(table, hour) as (filesystem, path):
            return bool(filesystem.exists(path))

    def probe(self) -> None:
        """Write a small file as a partition's file is written, read it, and remove it with the folders made for it.

        Raises:
            SinkError: the storage refuses one of these; the text says which.
        """
        filesystem, path = filesystems.filesystem_of(self.uri, self.uri)
        local = isinstance(filesystem, LocalFileSystem)
        name = f"{filesystems.TEMPORARY}probe-{uuid.uuid4().hex}"
        target = posixpath.join(path, name)
        folders = [folder for folder in (Path(path), *Path(path).parents) if local and not folder.exists()]
        advice = "Check that this user or these credentials may do that there (TRAJECTORY_STORAGE_URI)."

        def remove() -> None:
            for file in (target, f"{target}-new"):
                with contextlib.suppress(FileNotFoundError):
                    filesystem.rm_file(file)
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.rmdir()

        try:
            with filesystems.translating_errors("Writing and renaming a file in", self.uri, advice):
                if local:
                    private_files.make_folder(Path(path), filesystems.MODES[self.access][1])
                    written = Path(f"{target}-new")
                    with private_files.create_file(written) as file:
                        file.write(b"probe")
                    written.replace(target)
                else:
                    filesystem.pipe_file(target, b"probe")
            with filesystems.translating_errors("Reading a file in", self.uri, advice):
                if filesystem.cat_file(target) != b"probe":
                    raise OSError("another content came back")
                filesystem.ls(path)
        except SinkError:
            with contextlib.suppress(Exception):
                remove()
            raise
        with filesystems.translating_errors("Removing a file in", self.uri, advice):
            remove()

    def rows(self, table: Table, hour: datetime) -> int | None:
        """Return the number of rows in a partition's file, from its footer; None where there is no file."""
        with self.reading(table, hour) as (filesystem, path):
            found = filesystems.open_existing(filesystem, path, self._fetched)
            if found is None:
                return None
            with found as handle:
                return int(pq.read_metadata(handle).num_rows)

    def column_types(self, table: Table, hour: datetime) -> dict[str, str] | None:
        """Return the columns of a partition's file with their Arrow types, from its footer; None without a file."""
        with self.reading(table, hour) as (filesystem, path):
            found = filesystems.open_existing(filesystem, path, self._fetched)
            if found is None:
                return None
            with found as handle:
                # Parquet names the items of a list otherwise than Arrow.
                return {
                    field.name: str(field.type).replace("list<element: ", "list<item: ")
                    for field in pq.read_schema(handle)
                }

    def _opener(self, table: Table, hour: datetime) -> io.OpenFile:
        filesystem, path = self.filesystem(table, hour)
        return lambda: filesystems.open_existing(filesystem, path, self._fetched)

    def filesystem(self, table: Table, hour: datetime) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the filesystem of a partition's file, and its path there."""
        return filesystems.filesystem_of(self.uri, self.target(table, hour))

    @contextlib.contextmanager
    def reading(self, table: Table, hour: datetime) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """Give the filesystem and path of a partition's file; errors inside are those of reading it."""
        filesystem, path = self.filesystem(table, hour)
        with filesystems.translating_read_errors(self.target(table, hour)):
            yield filesystem, path
