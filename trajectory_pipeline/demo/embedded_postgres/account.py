"""The system user that runs the server's programs, and the environment they get.

Postgres refuses to run as root. Started by root, its programs run as the owner of the existing cluster, or else as
``nobody``. Started by any other user, they run as that user.
"""

import os
import pwd
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajectory_pipeline.errors import EmbeddedPostgresError

_UNPRIVILEGED = "nobody"

# Some systems need these to load shared libraries. Nothing else is passed on: the user's PGDATA, PGPORT or PGOPTIONS
# for another server must not reach this one.
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "TMPDIR")


def environment() -> dict[str, str]:
    """Return the environment of the server's programs, without the user's own settings."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # On macOS a server without a valid LC_ALL becomes multi-threaded at start and exits.
    return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC", **inherited}


@dataclass(frozen=True)
class Account:
    """A system user that can own and run a cluster."""

    uid: int
    gid: int

    @property
    def switched(self) -> bool:
        """Whether it is a different user from the one of this process."""
        return self.uid != os.geteuid()

    @property
    def name(self) -> str:
        """The user's name; its number if it has none."""
        return user_name(self.uid)

    def run(self, *command: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a program as this user and wait for its end; ``options`` are those of ``subprocess.run``."""
        if self.switched:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [str(part) for part in command],
            # The user may be unable to enter the working directory.
            cwd="/",
            env=environment(),
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            **options,
        )

    def reaches(self, folder: Path) -> bool:
        """Whether this user can enter the folder; tried, as modes are not enough (ACLs, mounts, namespaces)."""
        if not self.switched:
            return True
        try:
            return self.run("/bin/sh", "-c", 'cd -- "$1"', "sh", folder, stderr=subprocess.DEVNULL).returncode == 0
        except OSError:
            return False


def account_for(data: Path | None) -> Account:
    """Return the user that runs the server.

    Args:
        data: the existing data folder; None if there is none yet.

    Raises:
        EmbeddedPostgresError: the folder belongs to another user or to root, or there is no user to run as.
    """
    owner = data.stat() if data else None
    if os.geteuid() != 0:
        if owner and owner.st_uid != os.geteuid():
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {data} belongs to the user {user_name(owner.st_uid)}, but the current "
                f"user is {user_name(os.geteuid())}. Run as that user, have that user (or root) delete the folder, or "
                "choose another folder."
            )
        return Account(os.geteuid(), os.getegid())
    if owner:
        if owner.st_uid == 0:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {data} belongs to root, and Postgres refuses to run as root. Give it "
                f"to an ordinary user with: chown -R {_UNPRIVILEGED} {shlex.quote(str(data))}"
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
    """Return a user's name; its number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
