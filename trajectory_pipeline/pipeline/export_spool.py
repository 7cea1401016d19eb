"""Encoded runs of a partition, kept in a file until it is decided which of them are written."""

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trajectory_pipeline.exports.source import NoPlace
from trajectory_pipeline.pipeline.export_encoder import EncodedRun


class EncodedRuns:
    """Runs in the order in which they were added, in a file without a name, which goes with the process.

    Attributes:
        texts: digests of what those say that have a place in the form, by run.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the runs in a file in this folder."""
        self.texts: dict[str, str] = {}
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by ``close``
        self._number = 0

    def add(self, run: EncodedRun) -> None:
        """Add a run."""
        pickle.dump(run, self._file)
        self._number += 1
        if not isinstance(run.encoded, NoPlace):
            self.texts[run.selected.run_id] = run.text_digest

    def __iter__(self) -> Iterator[EncodedRun]:
        """Yield the runs."""
        self._file.seek(0)
        for _ in range(self._number):
            yield pickle.load(self._file)  # noqa: S301 - written by this process, into a file that no other can open

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
