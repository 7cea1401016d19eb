"""The cluster: the data folder and the password that opens it.

Belongs here: making it with ``initdb``, and reading what lies in it. Does not belong here: running a server on it.

It is made under another name and renamed when whole, so a cluster that exists is a whole one, however the process that
made it ended.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trajectory_pipeline.demo.embedded_postgres import binaries, placement
from trajectory_pipeline.demo.embedded_postgres.account import Account
from trajectory_pipeline.errors import EmbeddedPostgresError

USER = "postgres"
HALF_MADE = "making-*"


@dataclass(frozen=True)
class Cluster:
    """A whole cluster, running or not."""

    root: Path

    @property
    def data(self) -> Path:
        """Postgres' data folder."""
        return self.root / "data"

    @property
    def password(self) -> str:
        """The superuser's password."""
        return (self.root / "password").read_text(encoding="ascii")

    def check_version(self) -> None:
        """Raise ``EmbeddedPostgresError`` if another major version of Postgres made it."""
        made_by = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        if made_by != binaries.MAJOR:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {self.root} was made by Postgres {made_by}, and the installed programs are "
                f"Postgres {binaries.MAJOR}. Delete the folder to begin anew, or install the former release of this "
                "project to dump its databases first."
            )


def find(folder: Path) -> Cluster | None:
    """Return the cluster of ``folder``, wherever it lies, or ``None`` if there is none yet."""
    place = placement.existing(folder)
    return Cluster(place / placement.CLUSTER) if place else None


def make(
    place: Path, programs: binaries.Binaries, account: Account, *, sync: bool, report: Callable[[str], None]
) -> Cluster:
    """Make a cluster in ``place``; the caller holds ``start.lock``.

    ``sync`` writes all through to the disk before the cluster counts as made.
    """
    for abandoned in place.glob(HALF_MADE):
        shutil.rmtree(abandoned, ignore_errors=True)
    report("Making the embedded Postgres (first time only) ...")
    making = Path(tempfile.mkdtemp(prefix=HALF_MADE.rstrip("*"), dir=place))
    try:
        unfinished = Cluster(making)
        password = secrets.token_urlsafe(24)
        _write_private(making / "password", password)
        # initdb runs as the account, which is to see its own two files and nothing of ours.
        for_initdb = making / "password-for-initdb"
        _write_private(for_initdb, password)
        unfinished.data.mkdir(mode=0o700)
        making.chmod(0o711)
        if account.switched:
            for path in (for_initdb, unfinished.data):
                os.chown(path, account.uid, account.gid)
        done = account.run(
            programs.program("initdb"),
            f"--pgdata={unfinished.data}",
            f"--username={USER}",
            f"--pwfile={for_initdb}",
            "--auth-host=scram-sha-256",
            "--auth-local=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            # Against guessing a password; this one is random, and every connection would pay for the rounds.
            "--set=scram_iterations=1",
            "--no-instructions",
            *([] if sync else ["--no-sync"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode != 0:
            raise EmbeddedPostgresError(_failure(place, done.stdout))
        for_initdb.unlink()
        making.rename(place / placement.CLUSTER)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return Cluster(place / placement.CLUSTER)


def _failure(place: Path, output: str) -> str:
    free = shutil.disk_usage(place).free
    last = "\n".join(f"  {line}" for line in output.strip().splitlines()[-12:])
    return (
        f"initdb could not make the embedded Postgres in {place} ({free / 1e6:,.0f} MB free there; it needs 60 MB to "
        f"begin with). Its last lines:\n{last}\nMend what they name (a full disk, a file system without Unix modes), "
        "or choose another folder."
    )


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
