"""A storage by its URI: its filesystem, durable renames, and the text of its errors."""

import contextlib
import io
import os
import posixpath
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.schema.enums import FileAccess
from trajectory_pipeline.urls import hide_credentials, without_credentials

TEMPORARY = ".writing-"
"""Prefix of unfinished files: hidden, and not ending in ``.parquet``, so that no reader's glob finds one."""

FETCHED_BYTES = 8 * 2**20
"""An object that is smaller is fetched whole: so little takes no longer than asking for its parts."""

Fetched = dict[str, bytes | None]
"""Starts of objects by path, as they were fetched; None where there is no object."""

MODES = {FileAccess.PRIVATE: (0o600, 0o700), FileAccess.GROUP: (0o640, 0o750), FileAccess.ALL: (0o644, 0o755)}
"""Of files, and of folders."""


def filesystem_of(storage: str, target: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of a URI of a storage, and its path there.

    Raises:
        SinkError: there is no such filesystem, or the package that it needs is not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(target)
        if not isinstance(filesystem, LocalFileSystem):
            # A cached listing does not show what other processes have written since.
            filesystem.invalidate_cache()
    except Exception as error:
        raise SinkError(
            f"TRAJECTORY_STORAGE_URI {without_credentials(storage)!r} cannot be used: {storage_error(error, storage)}."
            " Give a folder or an fsspec URL, and install the package that its protocol needs (`pip install s3fs` for"
            " s3://)."
        ) from _shown_cause(error, storage)
    return filesystem, str(path)


def open_existing(filesystem: fsspec.AbstractFileSystem, path: str, fetched: Fetched | None = None) -> IO[bytes] | None:
    """Open a file to read it; None where there is none. A small one of an object storage is fetched by one request.

    What is in ``fetched`` is not asked for again, and what is asked for is put there.
    """
    if not isinstance(filesystem, LocalFileSystem):
        fetched = {} if fetched is None else fetched
        if path not in fetched:
            fetched[path] = _fetch_start(filesystem, path)
        start = fetched[path]
        if start is None or len(start) < FETCHED_BYTES:
            return None if start is None else io.BytesIO(start)
    try:
        file: IO[bytes] = filesystem.open(path, "rb")
    except FileNotFoundError:
        return None
    return file


def _fetch_start(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    """Return the start of an object, or all of a small one, by one request; None where there is none.

    Asking first whether it is there costs two to three requests more.
    """
    try:
        start: bytes = filesystem.cat_file(path, start=0, end=FETCHED_BYTES)
    except FileNotFoundError as error:
        if _code(error) == "NoSuchBucket":
            raise
        return None
    except OSError as error:
        # No range of an empty object can be had.
        if _code(error) != "InvalidRange":
            raise
        return b""
    return start


def folders_with_files(filesystem: fsspec.AbstractFileSystem, path: str, name: str | None = None) -> list[str]:
    """Return the names of the folders in a folder; of an object storage, only those with an object (of that name)."""
    try:
        if isinstance(filesystem, LocalFileSystem):
            return [posixpath.basename(str(entry).rstrip("/")) for entry in filesystem.ls(path, detail=False)]
        # By their objects: some storages go on listing a folder for a while after its last object.
        found = [posixpath.relpath(file, path) for file in filesystem.find(path)]
    except FileNotFoundError:
        return []
    return sorted({file.split("/")[0] for file in found if "/" in file and name in (None, posixpath.basename(file))})


def _code(error: OSError) -> str | None:
    """Return the code of S3's error that an error was made of."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def storage_error(error: Exception, uri: str) -> str:
    """Return the text of a storage's error on one line, without the credentials of its URI."""
    return hide_credentials(" ".join(str(error).split()).rstrip(".") or type(error).__name__, uri)


def _shown_cause(error: Exception, uri: str) -> Exception | None:
    """Return an error, unless its traceback, which Dagster stores, would show a credential of the URI."""
    text = "".join(traceback.format_exception(error))
    return error if hide_credentials(text, uri) == text else None


@contextlib.contextmanager
def translating_errors(action: str, target: str, advice: str) -> Iterator[None]:
    """Turn any error inside into a ``SinkError`` that names the action, the target's URI, and what to do."""
    try:
        yield
    except SinkError:
        raise
    # Each kind of storage has errors of its own: botocore's are no OSError.
    except Exception as error:
        raise SinkError(
            f"{action} {without_credentials(target)} failed: {storage_error(error, target)}. {advice}"
        ) from _shown_cause(error, target)


def translating_write_errors(target: str) -> contextlib.AbstractContextManager[None]:
    """Turn any error inside into a ``SinkError`` that says that writing a file failed."""
    advice = (
        "The former file, if any, is untouched. Check that there is space and that this user or these credentials may"
        " write there (TRAJECTORY_STORAGE_URI), then materialize again."
    )
    return translating_errors("Writing", target, advice)


def translating_read_errors(target: str) -> contextlib.AbstractContextManager[None]:
    """Turn any error inside into a ``SinkError`` that says that reading a file failed."""
    advice = (
        "Check TRAJECTORY_STORAGE_URI, and that this user or these credentials may read there; if the file is damaged,"
        " materialize the partition again."
    )
    return translating_errors("Reading", target, advice)


@contextlib.contextmanager
def closing(handle: IO[bytes], target: str) -> Iterator[None]:
    """Close a file at the end; a full disk that shows only then is one error, as of writing the file."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            handle.close()
        raise
    with translating_write_errors(target):
        handle.close()


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temp_files(folder: Path) -> None:
    """Remove what a killed process left; the partition's lock is held, so no other process writes in its folder."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
