"""Environments of tools whose pins clash with ours, made once and kept in ``data/environments``."""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(name: str, *requirements: str) -> Path:
    """Return the ``bin`` folder of an environment with these packages; it is made where it is not there."""
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    folder = ROOT / "data" / "environments" / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready"
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            uv = str(Path(sys.executable).with_name("uv"))
            subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
            subprocess.run(
                [
                    uv,
                    "pip",
                    "install",
                    "--system-certs",
                    "--quiet",
                    "--python",
                    folder / "bin" / "python",
                    *requirements,
                ],
                check=True,
            )
            ready.touch()
    return folder / "bin"
