"""Runs that can be sides of pairs, by what was asked, of which there may be more than memory should hold."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trajectory_pipeline.storage.scratch.database import ScratchDatabase

_TABLE = (
    "CREATE TABLE sides (number INTEGER PRIMARY KEY, asked TEXT, succeeded INTEGER, score REAL, run_id TEXT, run BLOB,"
    " record BLOB)"
)
_INDEX = "CREATE INDEX by_task ON sides (asked, succeeded, score, run_id)"
_SIDES = "SELECT number, score, run FROM sides WHERE asked = ? AND succeeded = ? ORDER BY score"


StoredSide = tuple[int, float, Any]
"""A side: its number, how surely it is a success, 0–1, and the run as it was added."""


class PairSides:
    """Sides by what was asked; ``close`` must be called."""

    def __init__(self, folder: Path) -> None:
        """Keep them in a file in a folder.

        Raises:
            OSError: the file cannot be written, here or in any method.
        """
        self._database = ScratchDatabase(folder, _TABLE, _INDEX)

    def add(self, asked: str, score: float, run_id: str, run: object, record: bytes, *, succeeded: bool) -> None:
        """Add a run; its record is read by itself."""
        self._database.write(
            "INSERT INTO sides (asked, succeeded, score, run_id, run, record) VALUES (?, ?, ?, ?, ?, ?)",
            (asked, succeeded, score, run_id, pickle.dumps(run), record),
        )

    def tasks(self) -> Iterator[str]:
        """Yield what was asked, in the order of the first run that was asked it."""
        for (asked,) in self._database.rows("SELECT asked FROM sides GROUP BY asked ORDER BY min(number)"):
            yield asked

    def successes(self, asked: str) -> Iterator[StoredSide]:
        """Yield the successes of a task, the surest first, then by run id."""
        return self._sides(f"{_SIDES} DESC, run_id", asked, succeeded=True)

    def failures(self, asked: str) -> Iterator[StoredSide]:
        """Yield the failures of a task, the surest first, then by run id."""
        return self._sides(f"{_SIDES}, run_id", asked, succeeded=False)

    def record(self, number: int) -> bytes:
        """Return the record of a side."""
        record: bytes = self._database.row("SELECT record FROM sides WHERE number = ?", (number,))[0]
        return record

    def close(self) -> None:
        """Remove the file."""
        self._database.close()

    def _sides(self, statement: str, asked: str, *, succeeded: bool) -> Iterator[StoredSide]:
        for number, score, run in self._database.rows(statement, (asked, succeeded)):
            # Written by this process, into a file that no other can open.
            yield number, score, pickle.loads(run)  # noqa: S301
