"""The versions of our code and of libraries that a partition's rows depend on; others make it stale."""

import hashlib
from functools import cache
from importlib.metadata import version

from trajectory_pipeline.letta.snapshot import CAPTURE_VERSION
from trajectory_pipeline.trajectories.convert import CONVERSION_VERSION


@cache
def capture_code_version() -> str:
    """Return a digest (64 hex digits) of what the rows and files of ``terminal_runs`` depend on."""
    return _digest(f"capture {CAPTURE_VERSION}", "adbc-driver-postgresql", "pyarrow")


@cache
def conversion_code_version() -> str:
    """Return a digest (64 hex digits) of what the rows, documents and files of ``trajectories`` depend on."""
    # Prices come from genai-prices, the text of documents from orjson, the bytes of files from pyarrow.
    return _digest(f"conversion {CONVERSION_VERSION}", "genai-prices", "orjson", "pyarrow")


def _digest(code: str, *libraries: str) -> str:
    versions = [code, *(f"{name} {version(name)}" for name in libraries)]
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()
