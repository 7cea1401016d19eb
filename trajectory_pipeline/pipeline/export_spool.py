"""What is kept in a file until it is decided which of it is written."""

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Generic, TypeVar

_Kept = TypeVar("_Kept")


class Spool(Generic[_Kept]):
    """Objects in the order in which they were added, in a file without a name, which goes with the process."""

    def __init__(self, folder: Path) -> None:
        """Keep them in a file in this folder."""
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by ``close``
        self._number = 0

    def add(self, one: _Kept) -> None:
        """Add one."""
        pickle.dump(one, self._file)
        self._number += 1

    def __iter__(self) -> Iterator[_Kept]:
        """Yield them."""
        self._file.seek(0)
        for _ in range(self._number):
            yield pickle.load(self._file)  # noqa: S301 - written by this process, into a file that no other can open

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
