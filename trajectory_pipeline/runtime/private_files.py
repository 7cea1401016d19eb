"""Files and folders that only this user can read or change, whatever the umask, and opened without following links."""

import contextlib
import fcntl
import glob
import hashlib
import os
import platform
import pwd
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def open_without_following(path: Path | str, flags: int, mode: int = FILE_MODE) -> int:
    """Return a descriptor of a file; a link in the place of the file is an error (``ELOOP``)."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def create_file(path: Path | str, mode: int = FILE_MODE) -> IO[bytes]:
    """Create a file to write, with exactly this mode; one that exists is an error."""
    descriptor = open_without_following(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    os.fchmod(descriptor, mode)
    return os.fdopen(descriptor, "w+b")


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to it."""
    return os.fdopen(open_without_following(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def write_text(path: Path, text: str) -> None:
    """Replace the text of a small file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(open_without_following(path, flags), "w", encoding="utf-8") as file:
        file.write(text)


def read_text(path: Path) -> str:
    """Return the text of a small file."""
    with os.fdopen(open_without_following(path, os.O_RDONLY), encoding="utf-8") as file:
        return file.read()


def make_folder(folder: Path, mode: int = FOLDER_MODE) -> None:
    """Create a folder with its missing parents, each with exactly this mode; those that exist are left as they are."""
    for path in reversed((folder, *folder.parents)):
        if not path.is_dir():
            # Another process may create it at the same time.
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode)
                path.chmod(mode)


def other_writer(folder: Path) -> str | None:
    """Return who else could change a folder's files, or the way to it, in words; None if only this user and root can.

    Asked by root, no part of the way may belong to another user, who could put a link there.
    """
    is_root = os.geteuid() == 0
    absolute = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow the links that are looked for
    for path in (absolute, *absolute.parents):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if is_root and found.st_uid != 0:
            return f"{path} belongs to the user {_user_name(found.st_uid)}"
        if stat.S_ISLNK(found.st_mode):
            if problem := other_writer(path.resolve()):
                return problem
            continue
        others = stat.S_IWOTH | (stat.S_IWGRP if is_root and found.st_gid != 0 else 0)
        if found.st_mode & others and not (path != absolute and found.st_mode & stat.S_ISVTX):
            return f"{path} can be written by other users (its mode is {stat.S_IMODE(found.st_mode):o})"
    return None


def temp_folder() -> Path:
    """Return this user's own folder for temporary files.

    Raises:
        PermissionError: another user has taken its name.
    """
    folder = Path(tempfile.gettempdir(), f"trajectory-pipeline-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(FOLDER_MODE)
        folder.chmod(FOLDER_MODE)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone: remove it, or set TMPDIR")
    return folder


@contextlib.contextmanager
def temp_file() -> Iterator[Path]:
    """Make an empty temporary file, and remove it at the end; files whose process has ended are removed first.

    The process holds a lock on its file, which the kernel releases however it ends.
    """
    folder = temp_folder()
    for leftover in folder.iterdir():
        with contextlib.suppress(OSError), _open_existing(leftover) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
    while True:
        path = folder / uuid.uuid4().hex
        with create_file(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Another process may have taken it for a leftover just before it was locked.
            if os.fstat(file.fileno()).st_nlink:
                try:
                    yield path
                finally:
                    path.unlink(missing_ok=True)
                return


@contextlib.contextmanager
def temp_folder_in(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder there, and remove it at the end, unless it was renamed meanwhile.

    Folders with the same prefix whose process has ended on this machine are removed first: the kernel releases their
    lock however it ends. Those of other machines stay, since a lock on a network file system need not be seen here.
    """
    own = f"{prefix}{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"
    make_folder(parent)
    for leftover in parent.glob(f"{glob.escape(own)}*"):
        with contextlib.suppress(OSError), _opened_folder(leftover) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover)
    while True:
        path = parent / f"{own}{uuid.uuid4().hex}"
        path.mkdir(FOLDER_MODE)
        path.chmod(FOLDER_MODE)
        with _opened_folder(path) as descriptor:
            # A file system without locks: there, nobody takes it for a leftover either.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another process may have taken it for one just before it was locked.
            if path.is_dir():
                try:
                    yield path
                finally:
                    shutil.rmtree(path, ignore_errors=True)
                return


@contextlib.contextmanager
def _opened_folder(path: Path) -> Iterator[int]:
    """Yield a descriptor of a folder, to lock it."""
    descriptor = open_without_following(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_existing(path: Path) -> IO[bytes]:
    """Open a file that exists, to lock it."""
    return os.fdopen(open_without_following(path, os.O_RDWR), "r+b")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
