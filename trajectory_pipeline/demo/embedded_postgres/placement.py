"""Where the cluster is stored.

That is the requested folder, with one exception: root runs the server as another user (``account``), and that user may
be unable to enter the folder (a clone below ``/root``, mode 0700). The modes of folders that we did not create are not
changed, so the cluster is then stored in a folder of root's under ``/var``. Lock files and log stay in the requested
folder: root opens them and passes the descriptors on.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from trajectory_pipeline.demo.embedded_postgres.account import Account
from trajectory_pipeline.demo.embedded_postgres.binaries import Binaries, installed_binaries
from trajectory_pipeline.errors import EmbeddedPostgresError
from trajectory_pipeline.runtime import private_files

CLUSTER = "cluster"
NOTE = "the-data-is-elsewhere.txt"

_FALLBACK_BASES = (Path("/var/lib/trajectory-pipeline"), Path("/var/tmp/trajectory-pipeline"))  # noqa: S108 (checked)


def resolve(folder: Path) -> Path:
    """Return the absolute path of a folder, the same for all its users."""
    return folder.expanduser().resolve()


def make_folder(folder: Path) -> None:
    """Create a folder with its parents; for root, one that others may enter but not list."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        folder.chmod(0o711)  # whatever the umask


def existing(folder: Path) -> Path | None:
    """Return the folder that holds the cluster of ``folder``; None if there is none yet."""
    for parent in _candidates(folder):
        if (parent / CLUSTER).is_dir() and (parent == folder or _belongs_to_root(parent)):
            return parent
    return None


def choose(folder: Path, account: Account) -> tuple[Path, Binaries]:
    """Return a parent for the cluster, and programs, that ``account`` can use; an existing cluster stays where it is.

    Raises:
        EmbeddedPostgresError: there is no such parent; the text says why for each candidate.
    """
    found = existing(folder)
    binaries = installed_binaries()
    problems = []
    for parent in [found] if found else _candidates(folder):
        try:
            _prepare(folder, parent)
            if not account.reaches(parent):
                problems.append(f"{parent}: the user {account.name} cannot enter it")
                continue
            error = binaries.run_error(account)
            # initdb puts the path of its own program into a shell's double quotes.
            if error and account.switched and not set('"$`\\') & set(str(parent)):
                copy = binaries.copied_to(parent)
                error = copy.run_error(account)
                if error is None:
                    return parent, copy
            if error is None:
                return parent, binaries
            problems.append(f"{parent}: {binaries.program('postgres')} does not run: {error}")
        except OSError as os_error:
            problems.append(f"{parent}: {os_error}")
    advice = (
        "Postgres refuses to run as root; run as an ordinary user, or choose a folder that the user "
        f"{account.name} can enter."
        if account.switched
        else "Fix what is named there, or use your own Postgres server."
    )
    raise EmbeddedPostgresError(
        f"The embedded Postgres of {folder} cannot run in any of these folders:\n  "
        + "\n  ".join(problems)
        + f"\n{advice}"
    )


def write_note(folder: Path, parent: Path) -> None:
    """Write into ``folder`` where its data is stored, if that is elsewhere."""
    if parent != folder:
        private_files.write_text(
            folder / NOTE,
            f"{parent}\n\nThe embedded Postgres of this folder stores its data in the folder named above: root runs it "
            "as another\nuser, who cannot enter this one. `make clean` deletes both.\n",
        )


def check_note(folder: Path) -> None:
    """Raise ``EmbeddedPostgresError`` if the data is stored in a folder that does not belong to this one any more.

    This happens after root's folder was moved or copied, or if another user than root uses it. Starting would silently
    create empty databases.
    """
    try:
        noted = Path(private_files.read_text(folder / NOTE).partition("\n")[0])
    except FileNotFoundError:
        return
    if noted not in _candidates(folder):
        alternative = "" if os.geteuid() == 0 else ", or run as root"
        raise EmbeddedPostgresError(
            f"The data of the embedded Postgres in {folder} is in {noted}, created by root when the folder had another "
            f"name or for root's own use. To use it, give the folder its former name{alternative}; to start with empty "
            f"databases, delete {folder / NOTE} (and, as root, {noted})."
        )


def parents(folder: Path) -> list[Path]:
    """Return the folders that may hold data of ``folder``, itself first."""
    return [parent for parent in _candidates(folder) if parent == folder or _belongs_to_root(parent)]


def remove_empty_bases() -> None:
    """Delete the folders under ``/var`` if they are empty."""
    if os.geteuid() == 0:
        for base in _FALLBACK_BASES:
            with contextlib.suppress(OSError):  # absent, or used for another folder
                base.rmdir()


def _candidates(folder: Path) -> list[Path]:
    if os.geteuid() != 0:
        return [folder]
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    return [folder, *(base / digest for base in _FALLBACK_BASES)]


def _prepare(folder: Path, parent: Path) -> None:
    if parent == folder:
        return
    for path in (parent.parent, parent):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o711)
            path.chmod(0o711)  # whatever the umask
        # /var/tmp is open to all: another user may have created a folder (or a link) of that name before.
        if not _is_root_folder(path):
            raise PermissionError(f"{path} is not a folder that only root can write")


def _belongs_to_root(parent: Path) -> bool:
    return _is_root_folder(parent.parent) and _is_root_folder(parent)


def _is_root_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not others_write
