"""By which run each text is said, for so many texts that memory should not hold their digests."""

from collections.abc import Iterable
from pathlib import Path

from trajectory_pipeline.storage.scratch.database import ScratchDatabase

_TABLE = "CREATE TABLE texts (digest BLOB PRIMARY KEY, run_id TEXT NOT NULL) WITHOUT ROWID"
_FIND = "SELECT run_id FROM texts WHERE digest = ?"


class TextIndex:
    """Runs by the digest of what they say; ``close`` must be called."""

    def __init__(self, folder: Path) -> None:
        """Keep them in a file in a folder.

        Raises:
            OSError: the file cannot be written, here or in any method.
        """
        self._database = ScratchDatabase(folder, _TABLE)

    def find(self, digest: str) -> str | None:
        """Return the run whose text has this digest, in hexadecimal digits; None where there is none."""
        (run_id,) = self._database.row(_FIND, (bytes.fromhex(digest),)) or (None,)
        return run_id

    def add(self, texts: Iterable[tuple[str, str]]) -> None:
        """Add digests with their runs; of those that are there, the first run stays."""
        self._database.write_all(
            "INSERT OR IGNORE INTO texts VALUES (?, ?)",
            ((bytes.fromhex(digest), run_id) for digest, run_id in texts),
        )

    def close(self) -> None:
        """Remove the file."""
        self._database.close()
