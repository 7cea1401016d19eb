"""Which code makes a partition's rows: with other code, the same input may give others.

Belongs here: a digest of that code. Does not belong here: versions that people raise (``schema``); one that somebody
forgets to raise must not keep a partition from being made anew.
"""

import hashlib
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable

_PACKAGES = (
    "letta",
    "schema",
    "storage/postgres",
    "storage/parquet",
    "pipeline",
    "trajectories",
    "trajectories/columnar",
)
_LIBRARIES = ("genai-prices", "orjson", "pyarrow")
"""Whose version may show in a row: prices, texts of JSON, the bytes of a file."""


@cache
def code_version() -> str:
    """Return a digest (64 hex digits) of the modules and library versions that rows and files are made by."""
    digest = hashlib.sha256()
    for name in _LIBRARIES:
        digest.update(f"{name} {version(name)}\n".encode())
    root = files("trajectory_pipeline")
    for package in _PACKAGES:
        for module in sorted(root.joinpath(package).iterdir(), key=lambda entry: entry.name):
            if module.name.endswith(".py"):
                _add(digest, f"{package}/{module.name}", module)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, module: Traversable) -> None:
    source = module.read_bytes()
    digest.update(f"{name} {len(source)}\n".encode())
    digest.update(source)
