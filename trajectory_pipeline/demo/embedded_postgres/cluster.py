"""The cluster: the data folder and its password.

It is created under another name and renamed when complete, so a cluster that exists is complete, even if the process
that created it was killed.
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
from trajectory_pipeline.runtime import private_files

USER = "postgres"
UNFINISHED = "making-*"


@dataclass(frozen=True)
class Cluster:
    """A complete cluster, running or not."""

    root: Path

    @property
    def data(self) -> Path:
        """Postgres' data folder."""
        return self.root / "data"

    @property
    def password(self) -> str:
        """The superuser's password."""
        return private_files.read_text(self.root / "password")

    def check_version(self) -> None:
        """Raise ``EmbeddedPostgresError`` if another major version of Postgres created it."""
        major = private_files.read_text(self.data / "PG_VERSION").strip()
        if major != binaries.MAJOR:
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {self.root} was created by Postgres {major}, and the installed programs "
                f"are Postgres {binaries.MAJOR}. Delete the folder to start with empty databases, or install the "
                "previous release of this project to dump its databases first."
            )


def find(folder: Path) -> Cluster | None:
    """Return the cluster of ``folder``, wherever it is stored; None if there is none yet."""
    parent = placement.existing(folder)
    return Cluster(parent / placement.CLUSTER) if parent else None


def create(
    parent: Path, programs: binaries.Binaries, account: Account, *, sync: bool, report: Callable[[str], None]
) -> Cluster:
    """Create a cluster in ``parent``; the caller holds ``start.lock``.

    Args:
        parent: folder to create it in.
        programs: that create it.
        account: user that will run it.
        sync: whether to flush everything to disk.
        report: called with a sentence about what takes long.

    Raises:
        EmbeddedPostgresError: ``initdb`` failed; the text holds its last lines.
    """
    for abandoned in parent.glob(UNFINISHED):
        shutil.rmtree(abandoned, ignore_errors=True)
    report("Creating the embedded Postgres (first time only) ...")
    root = Path(tempfile.mkdtemp(prefix=UNFINISHED.rstrip("*"), dir=parent))
    try:
        unfinished = Cluster(root)
        password = secrets.token_urlsafe(24)
        _write_private(root / "password", password)
        # initdb runs as the account, which may read only its own two files.
        for_initdb = root / "password-for-initdb"
        _write_private(for_initdb, password)
        unfinished.data.mkdir(mode=0o700)
        root.chmod(0o711)
        if account.switched:
            for path in (for_initdb, unfinished.data):
                os.chown(path, account.uid, account.gid)
        result = account.run(
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
            # More rounds slow down guessing a password; this one is random, and every connection would pay for them.
            "--set=scram_iterations=1",
            "--no-instructions",
            *([] if sync else ["--no-sync"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if result.returncode != 0:
            raise EmbeddedPostgresError(_failure(parent, result.stdout))
        for_initdb.unlink()
        root.rename(parent / placement.CLUSTER)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return Cluster(parent / placement.CLUSTER)


def _failure(parent: Path, output: str) -> str:
    free = shutil.disk_usage(parent).free
    last_lines = "\n".join(f"  {line}" for line in output.strip().splitlines()[-12:])
    return (
        f"initdb could not create the embedded Postgres in {parent} ({free / 1e6:,.0f} MB are free; it needs 60 MB). "
        f"Its last lines:\n{last_lines}\nFix what they name (a full disk, a file system without Unix modes), "
        "or choose another folder."
    )


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
