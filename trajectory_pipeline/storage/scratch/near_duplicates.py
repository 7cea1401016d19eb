"""Finds runs that say almost the same among so many that memory should not hold their signatures."""

from pathlib import Path

import numpy as np

from trajectory_pipeline.exports.near_duplicates import SIGNATURE_NUMBER, Signature, bands_of, similarity
from trajectory_pipeline.storage.scratch.database import ScratchDatabase

_RUNS = "CREATE TABLE signed (number INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, signature BLOB NOT NULL)"
_BANDS = "CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID"
_NEAR = "SELECT run_id, signature FROM bands JOIN signed USING (number) WHERE band = ?"


class NearDuplicates:
    """The runs that were kept so far, by what they say; ``close`` must be called."""

    def __init__(self, folder: Path, threshold: float) -> None:
        """Find runs that are at least so similar, from 0 to 1; they are kept in a file in a folder.

        Raises:
            OSError: the file cannot be written, here or in any method.
        """
        self._threshold = threshold
        self._database = ScratchDatabase(folder, _RUNS, _BANDS)

    def find(self, outcome: str, signature: Signature) -> tuple[str, float] | None:
        """Return the kept run that a run is most like, with the similarity; None where there is none."""
        near: dict[str, bytes] = {}
        for band in bands_of(signature, outcome, self._threshold):
            near.update(self._database.rows(_NEAR, (band,)))
        similar = [
            (similarity(signature, np.frombuffer(other, SIGNATURE_NUMBER)), run_id) for run_id, other in near.items()
        ]
        best, run_id = max(similar, default=(0.0, ""))
        return (run_id, best) if run_id and best >= self._threshold else None

    def keep(self, run_id: str, outcome: str, signature: Signature) -> None:
        """Keep a run, whatever it is like."""
        if self._database.row("SELECT 1 FROM signed WHERE run_id = ?", (run_id,)) is None:
            insert = "INSERT INTO signed (run_id, signature) VALUES (?, ?)"
            number = self._database.write(insert, (run_id, signature.tobytes()))
            bands = ((band, number) for band in bands_of(signature, outcome, self._threshold))
            self._database.write_all("INSERT OR IGNORE INTO bands VALUES (?, ?)", bands)

    def close(self) -> None:
        """Remove the file."""
        self._database.close()
