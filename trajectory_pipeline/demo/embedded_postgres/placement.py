"""Where the cluster really lies.

Belongs here: the choice of the place, and the note in the folder that says it. Does not belong here: making the
cluster there (``cluster``).

That is the folder asked for, but for one case: root runs the server as another user (``account``), and that user may
be unable to enter the folder (a clone below ``/root``, mode 0700). The modes of folders that we did not make are not
ours to change, so the cluster then lies in a folder of root's under ``/var``. The lock files and the log stay in the
folder asked for: they are opened by root and handed on open.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from trajectory_pipeline.demo.embedded_postgres.account import Account
from trajectory_pipeline.demo.embedded_postgres.binaries import Binaries, carried
from trajectory_pipeline.errors import EmbeddedPostgresError

CLUSTER = "cluster"
NOTE = "the-data-is-elsewhere.txt"

_FALLBACK_BASES = (Path("/var/lib/trajectory-pipeline"), Path("/var/tmp/trajectory-pipeline"))  # noqa: S108 (checked)


def resolve(folder: Path) -> Path:
    """Return the one absolute name of a folder, under which all its users meet."""
    return folder.expanduser().resolve()


def make_folder(folder: Path) -> None:
    """Make a folder with its parents; for root, one that others may enter but not list."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        folder.chmod(0o711)  # whatever the umask


def existing(folder: Path) -> Path | None:
    """Return the place where the cluster of ``folder`` lies, or ``None`` if it was not made yet."""
    for place in _candidates(folder):
        if (place / CLUSTER).is_dir() and (place == folder or _is_roots_own(place)):
            return place
    return None


def choose(folder: Path, account: Account) -> tuple[Path, Binaries]:
    """Return a place and programs that ``account`` can use; an existing cluster stays where it is."""
    found = existing(folder)
    binaries = carried()
    refusals = []
    for place in [found] if found else _candidates(folder):
        try:
            _prepare(folder, place)
            if not account.reaches(place):
                refusals.append(f"{place}: the user {account.name} cannot enter it")
                continue
            refusal = binaries.why_not(account)
            # initdb puts the path of its own program into a shell's double quotes.
            if refusal and account.switched and not set('"$`\\') & set(str(place)):
                copy = binaries.copied_to(place)
                refusal = copy.why_not(account)
                if refusal is None:
                    return place, copy
            if refusal is None:
                return place, binaries
            refusals.append(f"{place}: {binaries.program('postgres')} does not run: {refusal}")
        except OSError as error:
            refusals.append(f"{place}: {error}")
    advice = (
        "Postgres refuses to run as root; run as an ordinary user, or choose a folder which the user "
        f"{account.name} can enter."
        if account.switched
        else "Mend what is named there, or use a Postgres server of your own."
    )
    raise EmbeddedPostgresError(
        f"The embedded Postgres of {folder} finds no place to run:\n  " + "\n  ".join(refusals) + f"\n{advice}"
    )


def leave_note(folder: Path, place: Path) -> None:
    """Say in ``folder`` where the data really is."""
    if place != folder:
        (folder / NOTE).write_text(
            f"{place}\n\nThe embedded Postgres of this folder keeps its data in the folder named above, because root "
            "runs it as another\nuser, who cannot enter this one. `make clean` deletes both.\n",
            encoding="utf-8",
        )


def check_note(folder: Path) -> None:
    """Raise ``EmbeddedPostgresError`` if the data lies in a place that is not this folder's (any more).

    So it is after root's folder was moved or copied, or when somebody else than root now uses it. To start would
    mean to begin with empty databases, silently.
    """
    try:
        noted = Path((folder / NOTE).read_text(encoding="utf-8").partition("\n")[0])
    except FileNotFoundError:
        return
    if noted not in _candidates(folder):
        here = "" if os.geteuid() == 0 else ", or run as root"
        raise EmbeddedPostgresError(
            f"The data of the embedded Postgres in {folder} lies in {noted}, made by root when the folder had another "
            f"name or for root's own use. To use it, give the folder its former name{here}; to begin anew, delete "
            f"{folder / NOTE} (and, as root, {noted})."
        )


def places(folder: Path) -> list[Path]:
    """List the places that may hold something of ``folder``, itself first, for removal."""
    return [place for place in _candidates(folder) if place == folder or _is_roots_own(place)]


def tidy_bases() -> None:
    """Delete the folders under ``/var`` if nothing is left in them."""
    if os.geteuid() == 0:
        for base in _FALLBACK_BASES:
            with contextlib.suppress(OSError):  # absent, or still used for another folder
                base.rmdir()


def _candidates(folder: Path) -> list[Path]:
    if os.geteuid() != 0:
        return [folder]
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    return [folder, *(base / digest for base in _FALLBACK_BASES)]


def _prepare(folder: Path, place: Path) -> None:
    if place == folder:
        return
    for path in (place.parent, place):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o711)
            path.chmod(0o711)  # whatever the umask
        # /var/tmp is open to all: somebody may have put a folder (or a link) of that name there first.
        if not _is_folder_of_root(path):
            raise PermissionError(f"{path} is not a folder of root's alone")


def _is_roots_own(place: Path) -> bool:
    return _is_folder_of_root(place.parent) and _is_folder_of_root(place)


def _is_folder_of_root(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not others_write
