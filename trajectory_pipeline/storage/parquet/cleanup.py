"""Which Parquet files there are, and removing those of a partition."""

import contextlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet.corrupt_files import CORRUPT_SUFFIX
from trajectory_pipeline.storage.parquet.filesystem import TEMPORARY, filesystem_of, storage_error
from trajectory_pipeline.storage.parquet.store import FILE_NAME, HOUR_FOLDER, ParquetStore, hour_folder
from trajectory_pipeline.urls import storage_without_credentials


@dataclass(frozen=True)
class FileTotals:
    """Files of a partition of an asset.

    Attributes:
        count: the partition's file, and what a killed process left beside it, or was damaged and kept aside.
        bytes: of all of them.
    """

    count: int = 0
    bytes: int = 0

    def __add__(self, other: "FileTotals") -> "FileTotals":
        return FileTotals(self.count + other.count, self.bytes + other.bytes)


def hours_with_folders(store: ParquetStore, table: Table) -> list[datetime]:
    """Return the hours that an asset has a folder of, sorted; what is called otherwise is not ours.

    Raises:
        SinkError: the storage cannot be read.
    """
    with _looking_after("Listing", storage_without_credentials(store.uri)):
        filesystem, path = filesystem_of(store.uri, posixpath.join(store.uri.rstrip("/"), table.name))
        try:
            names = [posixpath.basename(str(place).rstrip("/")) for place in filesystem.ls(path, detail=False)]
        except FileNotFoundError:
            return []
    return sorted(hour for name in names if (hour := _hour_of(name)) is not None)


def files_of(store: ParquetStore, table: Table, hour: datetime) -> FileTotals:
    """Return what a partition of an asset has in the storage.

    Raises:
        SinkError: the storage cannot be read.
    """
    with _looking_after("Reading", store.path_of(table, hour)):
        _, _, found = _ours(store, table, hour)
    return FileTotals(len(found), sum(int(each["size"] or 0) for each in found))


def remove_files(store: ParquetStore, table: Table, hour: datetime) -> FileTotals:
    """Remove a partition's file, and what a killed process left beside it; the partition's lock must be held.

    Raises:
        SinkError: the storage cannot be written; asking again finishes it.
    """
    with _looking_after("Removing", store.path_of(table, hour)):
        filesystem, folder, found = _ours(store, table, hour)
        for each in found:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(each["name"])
        if isinstance(filesystem, LocalFileSystem):
            # Where somebody put files of their own there, it stays, and so do these.
            with contextlib.suppress(OSError):
                filesystem.rmdir(folder)
    return FileTotals(len(found), sum(int(each["size"] or 0) for each in found))


def _ours(
    store: ParquetStore, table: Table, hour: datetime
) -> tuple[fsspec.AbstractFileSystem, str, list[dict[str, Any]]]:
    filesystem, folder = filesystem_of(store.uri, posixpath.join(store.uri.rstrip("/"), table.name, hour_folder(hour)))
    try:
        listed = filesystem.ls(folder, detail=True)
    except FileNotFoundError:
        return filesystem, folder, []
    ours = [each for each in listed if each["type"] == "file" and _is_ours(posixpath.basename(each["name"]))]
    return filesystem, folder, ours


def _is_ours(name: str) -> bool:
    return name == FILE_NAME or name.startswith((TEMPORARY, CORRUPT_SUFFIX))


def _hour_of(name: str) -> datetime | None:
    try:
        hour = datetime.strptime(name, HOUR_FOLDER).replace(tzinfo=UTC)
    except ValueError:
        return None
    return hour if hour_folder(hour) == name else None


@contextlib.contextmanager
def _looking_after(doing: str, target: str) -> Iterator[None]:
    try:
        yield
    except SinkError:
        raise
    # Each kind of storage has errors of its own: botocore's are no OSError.
    except Exception as error:
        raise SinkError(
            f"{doing} {target} failed: {storage_error(error)}. Check TRAJECTORY_STORAGE_URI, and that this user may"
            " list and"
            " remove files there, then prune again."
        ) from error
