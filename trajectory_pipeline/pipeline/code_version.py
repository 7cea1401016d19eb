"""Whether a partition may be up to date: its ledger entry, and the versions of code that its rows depend on."""

import hashlib
from functools import cache
from importlib.metadata import version

from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.schema.versions import CAPTURE_VERSION, CONVERSION_VERSION
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction, StoredEntry


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


def comparable_entry(
    partition: PartitionTransaction, asset: str, inputs_digest: str | None = None
) -> StoredEntry | None:
    """Return the ledger's entry if only the partition's own rows are left to compare; without a digest, inputs too."""
    entry = None if partition.has_invalidations else partition.entry(asset)
    if entry is None or entry.schema_version != SCHEMA_VERSION:
        return None
    if inputs_digest is not None and entry.inputs_digest != inputs_digest:
        return None
    # A materialization restores a pruned partition, and tries quarantined runs again.
    return entry if entry.result == "complete" else None
