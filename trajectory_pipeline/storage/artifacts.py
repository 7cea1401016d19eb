"""Files beside the partitions, such as the report: written whole, readable by their owner alone."""

import os
import posixpath
import uuid
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.runtime import private_files
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
    private_files.make_folder(path.parent)
    temporary = path.parent / f"{filesystems.TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
    try:
        with private_files.create_file(temporary) as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
