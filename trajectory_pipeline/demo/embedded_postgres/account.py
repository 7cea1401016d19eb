"""The system user under which the server's programs run, and the environment they see.

Belongs here: choosing that user, and starting a program as it. Does not belong here: which program, and on which
folder (``cluster``, ``server``).

Postgres refuses to run as root. Started by root, its programs run as the owner of the cluster if there is one already,
or else as ``nobody``; started by anybody else, they run as that user.
"""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajectory_pipeline.errors import EmbeddedPostgresError

_UNPRIVILEGED = "nobody"

# Passed on because some systems need them to load a shared library at all. Nothing else is: a PGDATA, PGPORT or
# PGOPTIONS that the user has set for a server of their own must not reach this one.
_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "TMPDIR")


def environment() -> dict[str, str]:
    """Return the whole environment of the server's programs: small, in English, free of the user's settings."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # On macOS a server without a valid LC_ALL turns multi-threaded at start and gives up.
    return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC", **kept}


@dataclass(frozen=True)
class Account:
    """A system user who can own and run a cluster."""

    uid: int
    gid: int

    @property
    def switched(self) -> bool:
        """Whether it is another user than the one who runs this process."""
        return self.uid != os.geteuid()

    @property
    def name(self) -> str:
        """The user's name, or its number if it has none."""
        return user_name(self.uid)

    def run(self, *command: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end as this user; ``options`` are those of ``subprocess.run``."""
        if self.switched:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [str(part) for part in command],
            # The current folder may be one that this user cannot enter.
            cwd="/",
            env=environment(),
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            **options,
        )

    def reaches(self, folder: Path) -> bool:
        """Whether this user can enter the folder; tried, since modes alone do not tell (ACLs, mounts, namespaces)."""
        if not self.switched:
            return True
        try:
            return self.run("/bin/sh", "-c", 'cd -- "$1"', "sh", folder, stderr=subprocess.DEVNULL).returncode == 0
        except OSError:
            return False


def account_for(data: Path | None) -> Account:
    """Choose who runs the server whose existing data folder is ``data`` (``None``: there is none yet)."""
    owner = data.stat() if data else None
    if os.geteuid() != 0:
        if owner and owner.st_uid != os.geteuid():
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {data} belongs to the user {user_name(owner.st_uid)}, but this is the "
                f"user {user_name(os.geteuid())}. Run as that user, or have that user (or root) delete the folder, or "
                "choose another folder."
            )
        return Account(os.geteuid(), os.getegid())
    if owner:
        if owner.st_uid == 0:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {data} belongs to root, and Postgres refuses to run as root. Give it back "
                f"to an ordinary user with: chown -R {_UNPRIVILEGED} '{data}'"
            )
        return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root, and this system has no user {_UNPRIVILEGED!r} to run it as. Run as an "
            "ordinary user."
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


def user_name(uid: int) -> str:
    """Return a user's name, or its number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
