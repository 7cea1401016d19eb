"""Everything that `make setup` installs is locked by a hash: the installer, the packages and the build backend."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def locked(name: str) -> set[str]:
    """Return the names of the packages of a lock file, each of which has a version and a hash."""
    entries = re.findall(
        r"^([a-z0-9-]+)(?:\[.*\])?==\S+.*\\\n    --hash=sha256:", (PROJECT / name).read_text(), re.MULTILINE
    )
    lines = [line for line in (PROJECT / name).read_text().splitlines() if re.match(r"[a-z0-9]", line)]
    assert len(entries) == len(lines), "an entry without a hash"
    return set(entries)


def test_makefile_installs_only_what_is_locked() -> None:
    text = (PROJECT / "Makefile").read_text().replace("\\\n", " ")
    commands = re.findall(r"pip install [^|\n]*", text)
    assert len(commands) >= 5
    for command in commands:
        assert "--no-deps" in command
        assert "--require-hashes -r" in command or "--no-build-isolation --editable ." in command


def test_installer_and_build_backend_are_locked() -> None:
    assert locked("installer.lock") == {"uv"}
    needed = tomllib.loads((PROJECT / "pyproject.toml").read_text())["build-system"]["requires"]
    backend = {re.split(r"[<>=~!\[ ]", requirement)[0] for requirement in needed}
    # Hatchling asks for the last two where the installation is editable, and for its own dependencies.
    assert backend | {"editables", "packaging", "pathspec", "pluggy", "trove-classifiers"} <= locked(
        "requirements.lock"
    )
