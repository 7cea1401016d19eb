"""Where datasets are written: a folder, or any fsspec URL such as ``s3://bucket/good-runs``.

A new dataset is made in a local folder first. In a local target it appears by one rename; elsewhere its files are
copied, the manifest last, and a failure removes them. So there is no half of a dataset: without a manifest it is none.

A part of a dataset, such as a partition of an asset, is replaced file by file, each by one rename or one PUT. Files
that are the same stay, the manifest follows, and files that are no part of it any more go.
"""

import contextlib
import errno
import hashlib
import json
import posixpath
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.runtime import private_files
from trajectory_pipeline.schema.enums import FileAccess
from trajectory_pipeline.storage.parquet.filesystem import MODES, TEMPORARY, storage_error
from trajectory_pipeline.urls import without_credentials

MANIFEST = "manifest.json"


def location_of(target: str) -> str:
    """Return where a target is, whatever the working directory: an absolute path, or the URL as it is."""
    return target if "://" in target else str(Path(target).absolute())


class NewDataset:
    """A dataset that is made in a folder and put into its place whole.

    Attributes:
        folder: where its files are written first.
    """

    def __init__(self, target: str, filesystem: fsspec.AbstractFileSystem, path: str, folder: Path) -> None:
        self.folder = folder
        self._target, self._filesystem, self._path = target, filesystem, path

    def publish(self) -> None:
        """Put it into its place, which must be vacant.

        Raises:
            PipelineError: it cannot be written; nothing of the dataset is left there.
        """
        with _translating(self._target):
            if not isinstance(self._filesystem, LocalFileSystem):
                _copy(self._filesystem, self._path, self.folder)
                return
            try:
                self.folder.replace(self._path)
            except OSError as error:
                # Only a pipeline with another database can have put something there since it was looked at.
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise self._taken() from None
                raise

    def require_vacant(self) -> None:
        """Check that nothing is there: an empty folder is nothing.

        Raises:
            PipelineError: something is, or it cannot be read.
        """
        with _translating(self._target):
            self._filesystem.invalidate_cache()
            there = self._filesystem.exists(self._path)
            is_folder = there and self._filesystem.isdir(self._path)
            if there and (not is_folder or self._filesystem.ls(self._path)):
                raise self._taken()

    def _taken(self) -> PipelineError:
        shown = without_credentials(self._target)
        return PipelineError(f"{shown} is there already, and nothing in it is replaced: name a new place.")


@contextlib.contextmanager
def new_dataset(target: str) -> Iterator[NewDataset]:
    """Yield a dataset to write, which is nowhere until it is published.

    Raises:
        PipelineError: the target is there already, or cannot be written.
    """
    if not target.strip():
        raise PipelineError("The target is empty: name a new folder, or an fsspec URL such as s3://bucket/name.")
    filesystem, path = _filesystem(target)
    if isinstance(filesystem, LocalFileSystem):
        # On the target's own disk, so that one rename puts it there.
        prefix = f".{Path(path).name}.partial-"
        try:
            with private_files.temp_folder_in(Path(path).parent, prefix) as folder:
                dataset = NewDataset(target, filesystem, path, folder)
                dataset.require_vacant()
                yield dataset
        except OSError as error:
            raise PipelineError(
                f"{target} cannot be written: {error.strerror or error}. Nothing of it is left."
            ) from error
        return
    with temporary_folder() as folder:
        dataset = NewDataset(target, filesystem, path, folder)
        dataset.require_vacant()
        with _translating(target):
            _try_to_write(filesystem, path)
        yield dataset


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a local folder that goes at the end.

    Raises:
        PipelineError: it cannot be written: its disk is full, or read-only.
    """
    parent = Path(tempfile.gettempdir())
    try:
        with private_files.temp_folder_in(parent, "trajectory-export-") as folder:
            yield folder
    except OSError as error:
        raise PipelineError(
            f"The folder for temporary files, {parent}, cannot be written: {error.strerror or error}."
            " Free some space, or name another folder in TMPDIR."
        ) from error


@contextlib.contextmanager
def staging(target: str) -> Iterator[Path]:
    """Yield a local folder to make a part of a dataset in, on the target's own disk where that is local; it goes.

    Raises:
        PipelineError: the target cannot be written.
    """
    filesystem, path = _filesystem(target)
    if not isinstance(filesystem, LocalFileSystem):
        with temporary_folder() as temporary:
            yield temporary
        return
    with contextlib.ExitStack() as stack:
        with _translating(target):
            folder = stack.enter_context(private_files.temp_folder_in(Path(path), TEMPORARY))
        yield folder


def replace_part(target: str, name: str, folder: Path, files: Mapping[str, int], access: FileAccess) -> bool:
    """Make the part ``name`` of a dataset hold the files of a local folder; whether anything had to be changed.

    Args:
        target: the dataset.
        name: of the part's folder in it.
        folder: the part as it shall be, with its manifest.
        files: size of each of its files but the manifest, by name.
        access: who may read local files.

    Raises:
        PipelineError: the target cannot be read or written. Files that were replaced stay replaced, and the part's
            former manifest shows that they differ.
    """
    filesystem, path = _filesystem(target)
    part = posixpath.join(path, name)
    with _translating(target):
        there = _sizes(filesystem, part)
        manifest = (folder / MANIFEST).read_bytes()
        former = filesystem.cat_file(posixpath.join(part, MANIFEST)) if MANIFEST in there else b"{}"
        kept = _same_files(former, manifest) & {file for file, size in there.items() if files.get(file) == size}
        if former == manifest and kept == set(files) == set(there) - {MANIFEST}:
            return False
        for file in (*sorted(set(files) - kept), MANIFEST):
            _put(filesystem, folder / file, posixpath.join(part, file), access)
        for file in sorted(set(there) - set(files) - {MANIFEST}):
            filesystem.rm_file(posixpath.join(part, file))
    return True


def write_small(target: str, name: str, content: bytes, access: FileAccess) -> None:
    """Write a file of a dataset, unless it holds this already.

    Raises:
        PipelineError: the target cannot be written.
    """
    filesystem, path = _filesystem(target)
    where = posixpath.join(path, name)
    with _translating(target):
        with contextlib.suppress(FileNotFoundError):
            if filesystem.cat_file(where) == content:
                return
        with staging(target) as folder:
            (folder / "file").write_bytes(content)
            _put(filesystem, folder / "file", where, access)


def read_manifest(target: str, name: str) -> dict[str, Any] | None:
    """Return the manifest of a part of a dataset; None where there is none.

    Raises:
        PipelineError: the target cannot be read.
    """
    filesystem, path = _filesystem(target)
    with _translating(target):
        try:
            manifest: dict[str, Any] = json.loads(filesystem.cat_file(posixpath.join(path, name, MANIFEST)))
        except FileNotFoundError:
            return None
        return manifest


def differences(target: str, name: str, manifest: Mapping[str, Any]) -> list[str]:
    """Return what the files of a part have that its manifest does not say, as sentences; reads every file.

    Raises:
        PipelineError: the target cannot be read.
    """
    filesystem, path = _filesystem(target)
    part = posixpath.join(path, name)
    found = []
    with _translating(target):
        there = _sizes(filesystem, part)
        for file, expected in manifest["files"].items():
            if file not in there:
                found.append(f"{name}/{file} is not there")
                continue
            with filesystem.open(posixpath.join(part, file), "rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != expected["sha256"]:
                    found.append(f"{name}/{file} is not what was written")
        unknown = sorted(set(there) - set(manifest["files"]) - {MANIFEST})
        found += [f"{name}/{file} is no part of it" for file in unknown]
    return found


def _same_files(former: bytes, manifest: bytes) -> set[str]:
    """Return the files that have the same digest in both manifests."""
    before, now = (json.loads(text).get("files", {}) for text in (former, manifest))
    return {name for name, entry in now.items() if before.get(name) == entry}


def _sizes(filesystem: fsspec.AbstractFileSystem, part: str) -> dict[str, int]:
    filesystem.invalidate_cache()
    found = filesystem.find(part, detail=True) if filesystem.exists(part) else {}
    return {posixpath.relpath(file, part): entry["size"] for file, entry in found.items()}


def _put(filesystem: fsspec.AbstractFileSystem, file: Path, target: str, access: FileAccess) -> None:
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.put_file(str(file), target)
        return
    file_mode, folder_mode = MODES[access]
    private_files.make_folder(Path(target).parent, folder_mode)
    file.chmod(file_mode)
    file.replace(target)


def _copy(filesystem: fsspec.AbstractFileSystem, path: str, folder: Path) -> None:
    """Copy all files, the manifest last; where that fails, remove what was copied."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    targets = [posixpath.join(path, file.relative_to(folder).as_posix()) for file in files]
    try:
        filesystem.put([str(file) for file in files], targets)
        filesystem.put_file(str(folder / MANIFEST), posixpath.join(path, MANIFEST))
    except BaseException:
        for each in (posixpath.join(path, MANIFEST), *targets):
            with contextlib.suppress(Exception):
                filesystem.rm_file(each)
        raise


def _try_to_write(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """Write and remove a small file, so that a target that is read-only is refused before the work is done."""
    probe = posixpath.join(path, f"{TEMPORARY}{uuid.uuid4().hex}")
    filesystem.pipe_file(probe, b"probe")
    filesystem.rm_file(probe)


def _filesystem(target: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(location_of(target))
    except Exception as error:
        raise PipelineError(
            f"{without_credentials(target)} cannot be used: {storage_error(error, target)}. Give a folder or an fsspec"
            " URL, and install the package that its protocol needs (`pip install s3fs` for s3://)."
        ) from None
    return filesystem, str(path)


@contextlib.contextmanager
def _translating(target: str) -> Iterator[None]:
    try:
        yield
    except PipelineError:
        raise
    # Each kind of storage has errors of its own: botocore's are no OSError.
    except Exception as error:
        raise PipelineError(
            f"{without_credentials(target)} cannot be written: {storage_error(error, target)}. Nothing of it is left."
        ) from None
