"""Which Parquet files there are, and removing those of a partition.

Every function raises ``SinkError`` if the storage cannot be read or written; calling it again finishes the work.
"""

import contextlib
import posixpath
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.partition_keys import AT, LETTA, at_source
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet.corrupt_files import CORRUPT_SUFFIX
from trajectory_pipeline.storage.parquet.filesystem import (
    TEMPORARY,
    filesystem_of,
    folders_with_files,
    translating_errors,
)
from trajectory_pipeline.storage.parquet.store import FILE_NAME, HOUR_FOLDER, ParquetStore, hour_folder

_ADVICE = "Check TRAJECTORY_STORAGE_URI, and that this user may list and remove files there, then prune again."


@dataclass(frozen=True)
class FileTotals:
    """Number and bytes of a partition's files: its own, leftovers of a killed process, and copies of damaged ones."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: "FileTotals") -> "FileTotals":
        return FileTotals(self.count + other.count, self.bytes + other.bytes)


def hours_with_folders(store: ParquetStore, table: Table) -> list[datetime]:
    """Return the hours that an asset has a folder of, sorted; folders with other names are not ours."""
    with translating_errors("Listing", store.uri, _ADVICE):
        filesystem, path = filesystem_of(store.uri, posixpath.join(store.uri.rstrip("/"), table.name))
        names = folders_with_files(filesystem, path)
    return sorted(hour for name in names if (hour := _hour_of(name)) is not None)


def files_of(store: ParquetStore, table: Table, hour: datetime) -> FileTotals:
    """Return what a partition of an asset has in the storage."""
    with translating_errors("Reading", store.target(table, hour), _ADVICE):
        _, _, found = _find_files(store, table, hour)
    return _totals(found)


def remove_files(store: ParquetStore, table: Table, hour: datetime) -> FileTotals:
    """Remove a partition's files, and return what was removed; the partition's lock must be held."""
    with translating_errors("Removing", store.target(table, hour), _ADVICE):
        filesystem, folder, found = _find_files(store, table, hour)
        for file in found:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(file["name"])
        if isinstance(filesystem, LocalFileSystem):
            # A folder with files of somebody else stays.
            with contextlib.suppress(OSError):
                filesystem.rmdir(folder)
    return _totals(found)


def _find_files(
    store: ParquetStore, table: Table, hour: datetime
) -> tuple[fsspec.AbstractFileSystem, str, list[dict[str, Any]]]:
    filesystem, folder = filesystem_of(store.uri, posixpath.join(store.uri.rstrip("/"), table.name, hour_folder(hour)))
    try:
        listed = filesystem.ls(folder, detail=True)
    except FileNotFoundError:
        return filesystem, folder, []
    return filesystem, folder, [f for f in listed if f["type"] == "file" and _is_ours(posixpath.basename(f["name"]))]


def _is_ours(name: str) -> bool:
    return name == FILE_NAME or name.startswith((TEMPORARY, CORRUPT_SUFFIX))


def _totals(files: list[dict[str, Any]]) -> FileTotals:
    return FileTotals(len(files), sum(int(file["size"] or 0) for file in files))


def _hour_of(folder: str) -> datetime | None:
    written, _, source = folder.partition(AT)
    try:
        hour = at_source(datetime.strptime(written, HOUR_FOLDER).replace(tzinfo=UTC), source or LETTA)
    except ValueError:
        return None
    return hour if hour_folder(hour) == folder else None
