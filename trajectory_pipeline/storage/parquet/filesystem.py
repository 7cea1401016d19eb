"""A storage by its URI: its filesystem, what outlasts a crash, and what is said when it fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.urls import storage_without_credentials

TEMPORARY = ".writing-"
"""Prefix of files under way: hidden, and not ending in ``.parquet``, so that no reader's glob finds one."""


def filesystem_of(storage: str, target: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of a URI of a storage, and its path there.

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
            f"TRAJECTORY_STORAGE_URI {storage_without_credentials(storage)!r} cannot be used: {error}. Give a folder or"
            " an fsspec URL, and install the package that its protocol needs (`pip install s3fs` for s3://)."
        ) from error
    return filesystem, str(path)


def storage_error(error: Exception) -> str:
    """Return what an error of a storage says, on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


@contextlib.contextmanager
def translating_write_errors(target: str) -> Iterator[None]:
    """Turn what is raised inside into a ``SinkError`` that says that writing a file failed."""
    try:
        yield
    # Each kind of storage has errors of its own: botocore's are no OSError.
    except Exception as error:
        raise SinkError(
            f"Writing {target} failed: {storage_error(error)}. The former file, if any, is untouched. Check that"
            " there is space"
            " and that this user or these credentials may write there (TRAJECTORY_STORAGE_URI), then materialize again."
        ) from error


@contextlib.contextmanager
def translating_read_errors(target: str) -> Iterator[None]:
    """Turn what is raised inside into a ``SinkError`` that says that reading a file failed."""
    try:
        yield
    except Exception as error:
        raise SinkError(
            f"Reading {target} failed: {storage_error(error)}. Check TRAJECTORY_STORAGE_URI, and that this user or"
            " these"
            " credentials may read there; if the file is damaged, materialize the partition again."
        ) from error


@contextlib.contextmanager
def closing(handle: IO[bytes], target: str) -> Iterator[None]:
    """Close a file at the end; what a full disk keeps it from writing then is told once, and as an error of it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            handle.close()
        raise
    with translating_write_errors(target):
        handle.close()


def sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temp_files(folder: Path) -> None:
    """Remove what a killed process left; a partition's lock is held, so nobody else is writing in its folder."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
