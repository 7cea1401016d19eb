"""Files beside the partitions, such as the report: written whole, readable by their owner alone."""

import os
import posixpath
import uuid
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.storage.parquet import filesystem as filesystems


def write_artifact(storage_uri: str, name: str, content: bytes) -> None:
    """Replace ``<storage>/<name>`` by this content, in one rename or one PUT.

    Raises:
        SinkError: the storage cannot be written; the former file stays as it was.
    """
    target = posixpath.join(storage_uri.rstrip("/"), name)
    filesystem, path = filesystems.filesystem_of(storage_uri, target)
    with filesystems.translating_write_errors(target):
        if not isinstance(filesystem, LocalFileSystem):
            filesystem.pipe_file(path, content)
            return
        write_file(Path(path), content)


def write_file(path: Path, content: bytes) -> None:
    """Replace a local file by this content, in one rename; makes its folder.

    Raises:
        OSError: it cannot be written; the former file stays as it was.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.parent / f"{filesystems.TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
